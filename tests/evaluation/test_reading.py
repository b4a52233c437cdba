"""A fault of the disk while models are loaded is an error, or changes nothing: never other numbers."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contrastive_model import contrastive_model
from tiny_pipelines import sd_pipeline

from paramerge.checkpoints.layout import open_base
from paramerge.errors import ParamergeError
from paramerge.generation import loading
from paramerge.generation.loading import load_pipeline
from paramerge.generation.small_files import tokenizers_of
from paramerge.training.evaluation.clip import load_clip
from paramerge.training.tiny.tokenizer import make_tokenizer


def failing_stats(
    folder: Path, names: str, load: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """What ``load`` gives where each look at a file of ``folder`` with one of ``names`` fails in turn."""
    real, calls, failing = os.stat, 0, 0

    def stat(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        nonlocal calls
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        if text == str(folder) or (text.startswith(f"{folder}/") and names in text):
            calls += 1
            if calls == failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO), text)
        return real(path, *rest, **options)

    monkeypatch.setattr(os, "stat", stat)
    found = [load()]
    total = calls
    assert total
    for number in range(1, total + 1):
        calls, failing = 0, number
        try:
            found.append(load())
        except (ParamergeError, OSError):
            continue
    return found


def test_a_clip_is_what_it_is_whichever_look_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = contrastive_model(tmp_path / "clip")

    def load() -> bytes:
        clip = load_clip(str(folder))
        pictures = clip.embed_pictures(np.full((1, 32, 32, 3), 100, np.uint8))
        return clip.embed_texts(["a dog", "two"]).numpy().tobytes() + pictures.numpy().tobytes()

    assert len(set(failing_stats(folder, "token", load, monkeypatch))) == 1


def test_tokenizers_are_what_they_are_whichever_look_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tokenizer().save_pretrained(tmp_path / "tokenizer")

    def load() -> str:
        tokenizer = tokenizers_of(tmp_path, {"tokenizer": ["transformers", "CLIPTokenizer"]})["tokenizer"]
        return str((tokenizer("a noto <v1>").input_ids, tokenizer.model_max_length, str(tokenizer)))

    assert len(set(failing_stats(tmp_path, "tokenizer", load, monkeypatch))) == 1


def test_a_pipeline_takes_these_tokenizers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = sd_pipeline(tmp_path)
    mine = make_tokenizer()
    monkeypatch.setattr(loading, "tokenizers_of", lambda *_: {"tokenizer": mine})
    assert load_pipeline(open_base(folder), None).tokenizer is mine
