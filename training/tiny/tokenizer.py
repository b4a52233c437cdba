"""A CLIP tokenizer with a vocabulary of its own: each word of the captions is one token.

It is byte-level BPE like CLIP's, so any other prompt is spelled out in pieces. Placeholder tokens for words
that personalisation teaches are already in it, with rows in the text encoder's embedding: learning one
changes no shape.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

from paramerge.training.tiny.libraries import CLIPTokenizer
from paramerge.training.tiny.subjects import BACKGROUNDS, STYLES, SUBJECTS

__all__ = ["MAX_TOKENS", "PLACEHOLDERS", "caption_words", "learn_merges", "make_tokenizer"]

MAX_TOKENS = 24
"""The length that prompts are padded to."""
PLACEHOLDERS = tuple(f"<v{i}>" for i in range(1, 33))
"""Tokens without a meaning, for words that are taught later."""

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_EXTRA_WORDS = ("a", "an", "and", "on", "the", "of", "in", "with", "background", "picture", "emoji", "two")


def caption_words() -> list[str]:
    """Every word of captions, for any number of subjects."""
    phrases = [*_EXTRA_WORDS, *STYLES, *BACKGROUNDS, *(subject.name for subject in SUBJECTS)]
    return sorted({word for phrase in phrases for word in re.findall(r"[a-z]+", phrase)})


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """BPE's merges, the most frequent pair first, until every word is one token."""
    pieces = {word: [*word[:-1], word[-1] + _WORD_END] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in pieces.values() for pair in pairwise(parts))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            pieces[word] = _merged(parts, best)


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    i = 0
    while i < len(parts):
        if tuple(parts[i : i + 2]) == pair:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


def _byte_letters() -> list[str]:
    """A printable letter for each byte, as byte-level BPE writes them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


def make_tokenizer() -> CLIPTokenizer:
    """The tokenizer; the start and end tokens are the last of the vocabulary, as in CLIP."""
    letters = _byte_letters()
    merges = learn_merges(caption_words())
    tokens = [*letters, *(letter + _WORD_END for letter in letters), *(a + b for a, b in merges)]
    tokens = [*dict.fromkeys(tokens), _START, _END]
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )
    tokenizer.add_tokens(list(PLACEHOLDERS))
    return tokenizer
