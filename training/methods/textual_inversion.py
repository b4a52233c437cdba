"""Textual inversion: new vectors in the text encoders' vocabulary, and nothing else.

Saved as diffusers' and AUTOMATIC1111's readers take it: for one text encoder a tensor named as the token, for
SDXL ``clip_l`` and ``clip_g``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paramerge.errors import UsageError
from paramerge.files.writer import write_safetensors
from paramerge.training.config import TrainConfig
from paramerge.training.methods import text_encoders
from paramerge.training.methods.trained import Trained

__all__ = ["LearnedTokens", "attach"]

_SDXL_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


class LearnedTokens(nn.Module):
    """A token embedding whose rows from ``first`` on are the trained ``vectors``; the others stay."""

    def __init__(self, embedding: nn.Module, first: int, vectors: Tensor) -> None:
        super().__init__()
        self.embedding = embedding
        self.first = first
        self.vectors = nn.Parameter(vectors)

    @property
    def weight(self) -> Tensor:
        """The embedding's own rows (transformers looks at their dtype)."""
        found: Any = self.embedding.weight
        return found  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """The embeddings of ``ids``."""
        new = ids >= self.first
        old: Tensor = self.embedding(ids.masked_fill(new, 0))
        rows = self.vectors[(ids - self.first).clamp(min=0)].to(old.dtype)
        return torch.where(new[..., None], rows, old)


def attach(pipeline: Any, config: TrainConfig, file: str = "adapter.safetensors") -> Trained:
    """A placeholder of so many vectors in every tokenizer and text encoder, saved as ``file``."""
    count = config.placeholder_vectors
    tokens = [config.placeholder, *(f"{config.placeholder}_{i}" for i in range(1, count))]
    parameters: dict[str, nn.Parameter] = {}
    for component, encoder in text_encoders(pipeline).items():
        tokenizer = getattr(pipeline, component.replace("text_encoder", "tokenizer"))
        vectors = _start(tokenizer, encoder, config)
        first = len(tokenizer)
        if tokenizer.add_tokens(tokens) != count:
            raise UsageError(
                "the placeholder is a word of the model already",
                where="placeholder",
                found=config.placeholder,
            )
        learned = LearnedTokens(encoder.get_input_embeddings(), first, vectors)
        encoder.set_input_embeddings(learned)
        parameters[f"{component}.vectors"] = learned.vectors

    def save(folder: Path, metadata: Mapping[str, str]) -> list[Path]:
        path = folder / file
        several = len(parameters) > 1
        tensors = {
            _SDXL_KEYS[key.partition(".")[0]] if several else config.placeholder: value.detach().cpu().numpy()
            for key, value in parameters.items()
        }
        write_safetensors(path, tensors, {"format": "pt", **metadata})
        return [path]

    return Trained(parameters, save, decays=False, text=True)


def _start(tokenizer: Any, encoder: Any, config: TrainConfig) -> Tensor:
    """The vectors to start from, (n, width): the initialiser's, or like the vocabulary's at random."""
    table: Tensor = encoder.get_input_embeddings().weight.detach().float()
    if config.initializer:
        ids = tokenizer(config.initializer, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise UsageError(
                "the start of a textual inversion is not one token",
                where="initializer",
                expected="a word that the tokenizer has as one token",
                found=f"{config.initializer!r}, {len(ids)} tokens",
            )
        return table[ids].repeat(config.placeholder_vectors, 1).clone()
    noise = torch.randn(config.placeholder_vectors, table.shape[1]).to(table.device)
    return table.mean(0) + noise * table.std(0)
