"""The embeddings of texts, kept once made where the encoders are frozen."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paramerge.listing import listed
from paramerge.training.kept import Kept, weights_sha256
from paramerge.training.methods import text_encoders
from paramerge.training.models.unet import UNET
from paramerge.training.prompts import Prompts, together

__all__ = ["TextEncoding", "chunks_of"]

Encode = Callable[[Any, str, Any], Prompts]
"""The embeddings of one text, given the pipeline, the text and the device."""


@dataclass
class TextEncoding:
    """Encodes texts as the pipeline does when it draws, each by itself, so that none depends on the others.

    Attributes
    ----------
    trained:
        Whether the encoders are trained: then only the texts of a batch are encoded, with gradient.
    chunks:
        The most encoder lengths that a text may have; each part is encoded alone, and all are put behind each
        other, short texts filled up by empty parts.
    on_disk:
        The folder that keeps embeddings of frozen encoders.
    encode:
        The model's own way to encode a text.
    """

    pipeline: Any
    device: Any
    trained: bool = False
    chunks: int = 1
    on_disk: Kept = field(default_factory=lambda: Kept(None))
    encode: Encode = UNET.encode
    _weights: str = ""
    _kept: dict[str, Prompts] = field(default_factory=dict)
    _cut: set[str] = field(default_factory=set)

    def __call__(self, texts: Sequence[str]) -> Prompts:
        """The embeddings of ``texts``, in their order, on the device."""
        each = {text: self._encode(text) if self.trained else self._remembered(text) for text in texts}
        return together([each[text] for text in texts], self.device)

    def prepare(self, texts: Sequence[str]) -> None:
        """Encode the coming texts, and warn of texts that are longer than the model reads."""
        if not self.trained:
            for text in texts:
                self._remembered(text)
        else:
            for text in texts:
                self._parts(text)
        if self._cut:
            warnings.warn(
                f"the model reads only the beginning of {len(self._cut)} texts (prompt_chunks reads more): "
                f"{listed(sorted(text[:60] for text in self._cut))}",
                stacklevel=2,
            )

    @torch.no_grad()
    def _remembered(self, text: str) -> Prompts:
        if text not in self._kept:
            made = self.on_disk.get(self._facts(text) if self.on_disk.is_on else {}, lambda: self._made(text))
            lengths = tuple(made["lengths"].tolist()) if "lengths" in made else ()
            self._kept[text] = Prompts(made["states"], made.get("pooled"), lengths)
        return self._kept[text]

    def _made(self, text: str) -> dict[str, Tensor]:
        found = self._encode(text)
        pooled = {} if found.pooled is None else {"pooled": found.pooled}
        lengths = {"lengths": torch.tensor(found.lengths)} if found.lengths else {}
        return {"states": found.states, **pooled, **lengths}

    def _facts(self, text: str) -> dict[str, Any]:
        """All that decides the embeddings of a text."""
        if not self._weights:
            self._weights = weights_sha256(text_encoders(self.pipeline).values())
        tokens = [tokenizer(text).input_ids for tokenizer in self._tokenizers()]
        parts = {"tokens": tokens, "chunks": self.chunks, "weights": self._weights}
        return {"text": text, **parts, "device": torch.device(self.device).type}

    def _tokenizers(self) -> list[Any]:
        names = ("tokenizer", "tokenizer_2", "tokenizer_3")
        return [t for name in names if (t := getattr(self.pipeline, name, None)) is not None]

    def _encode(self, text: str) -> Prompts:
        parts = [self.encode(self.pipeline, part, self.device) for part in self._parts(text)]
        if len(parts) == 1:
            return parts[0]
        return Prompts(torch.cat([part.states for part in parts], 1), parts[0].pooled)

    def _parts(self, text: str) -> list[str]:
        # of several encoders that read unlike lengths, the one that reads the longest text counts
        limit = max(tokenizer.model_max_length for tokenizer in self._tokenizers())
        readers = [tokenizer for tokenizer in self._tokenizers() if tokenizer.model_max_length == limit]
        parts = chunks_of(text, readers, self.chunks)
        if len(parts) > self.chunks:
            self._cut.add(text)
        return (parts + [""] * self.chunks)[: self.chunks]


def chunks_of(text: str, tokenizers: Sequence[Any], chunks: int) -> list[str]:
    """``text`` cut between words into parts that each tokenizer takes whole; one word too long is one part.

    For a single chunk, and for a text that fits into one, the text itself comes first, as it is.
    """

    def fits(part: str) -> bool:
        return all(len(t(part).input_ids) <= t.model_max_length for t in tokenizers)

    if fits(text):
        return [text]
    if chunks == 1:
        return [text, ""]
    parts: list[str] = []
    for word in text.split():
        longer = f"{parts[-1]} {word}" if parts else word
        if parts and fits(longer):
            parts[-1] = longer
        else:
            parts.append(word)
    return parts
