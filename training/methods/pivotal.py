"""Pivotal tuning (Roich et al. 2021): a new word and an adapter, trained together.

The adapter is saved as its method has it, the word beside it as a textual inversion's file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from paramerge.training.config import TrainConfig
from paramerge.training.methods.textual_inversion import attach as attach_word
from paramerge.training.methods.trained import Trained

__all__ = ["WORD_FILE", "with_word"]

WORD_FILE = "embedding.safetensors"


def with_word(adapter: Trained, pipeline: Any, config: TrainConfig) -> Trained:
    """The parameters of ``adapter`` and of a new word in the text encoders' vocabularies."""
    word = attach_word(pipeline, config, WORD_FILE)

    def save(folder: Path, metadata: Mapping[str, str]) -> list[Path]:
        return [*adapter.save(folder, metadata), *word.save(folder, metadata)]

    return replace(
        adapter,
        parameters={**adapter.parameters, **word.parameters},
        save=save,
        text=True,
        words=frozenset(word.parameters),
    )
