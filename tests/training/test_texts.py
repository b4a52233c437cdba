"""Texts: the batch's alone are encoded with gradient, long ones in parts, tags shuffled, captions dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import OPTIONS, settings

from paramerge.checkpoints.layout import open_base
from paramerge.generation.loading import load_pipeline
from paramerge.training.batches import caption_of
from paramerge.training.chance import generator
from paramerge.training.config import TrainConfig
from paramerge.training.loop import train
from paramerge.training.texts import TextEncoding, chunks_of

CONFIG = TrainConfig(model=Path("m"), instance_folder=Path("p"), instance_prompt="x", output=Path("o"))


@pytest.fixture(scope="module")
def pipeline(sd: Path) -> Any:
    return load_pipeline(open_base(sd), torch.float32)


@pytest.mark.parametrize("method", ["para", "textual-inversion"])
def test_only_the_texts_of_the_batch_are_encoded_with_gradient(
    method: str, sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(5):
        Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"a <sks> {i}")
    seen: list[str] = []
    original = TextEncoding._encode

    def counted(self: TextEncoding, text: str) -> Any:
        seen.append(text)
        return original(self, text)

    monkeypatch.setattr(TextEncoding, "_encode", counted)
    more = {**OPTIONS.get(method, {}), "method": method, "train_text_encoder": method == "para"}
    config = settings(sd, pictures, tmp_path / "o", **{**more, "steps": 3, "subset": "ex-ca-hl"})
    train(replace(config, batch_size=2))
    assert len(seen) <= 3 * 2  # of 5 captions and the prompt in each step
    assert len(set(seen)) > 2


def test_frozen_encoders_are_asked_once_for_each_text(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = TextEncoding(pipeline, "cpu")
    texts.prepare(["a dog", "a cat"])
    monkeypatch.setattr(TextEncoding, "_encode", None)
    found = texts(["a cat", "a dog", "a cat"])
    assert torch.equal(found.states[0], found.states[2])
    assert not torch.equal(found.states[0], found.states[1])
    want = pipeline.encode_prompt(["a dog"], "cpu", 1, False)[0]
    torch.testing.assert_close(found.states[1:2], want)


LONG = " ".join(["red dog"] * 20)


def test_a_long_text_is_cut_and_said_or_read_in_parts(pipeline: Any) -> None:
    with pytest.warns(UserWarning, match="only the beginning of 1 texts"):
        TextEncoding(pipeline, "cpu").prepare([LONG, "a dog"])
    texts = TextEncoding(pipeline, "cpu", chunks=4)
    texts.prepare([LONG, "a dog"])
    limit = pipeline.tokenizer.model_max_length
    states = texts([LONG, "a dog"]).states
    assert states.shape[:2] == (2, 4 * limit)
    assert torch.equal(states[1, limit : 2 * limit], states[1, 2 * limit : 3 * limit])  # empty parts
    assert not torch.equal(states[0, limit : 2 * limit], states[1, limit : 2 * limit])
    parts = chunks_of(LONG, [pipeline.tokenizer], 4)
    assert " ".join(parts) == LONG
    assert all(len(pipeline.tokenizer(part).input_ids) <= limit for part in parts)
    torch.testing.assert_close(states[:1, :limit], texts([parts[0]]).states[:, :limit])


def test_a_long_text_trains_in_parts(sd: Path, dog: Path, tmp_path: Path) -> None:
    config = settings(sd, dog, tmp_path, instance_prompt=LONG, prompt_chunks=4, subset="cao", steps=1)
    assert train(config).adapter[0].is_file()


def test_tags_are_shuffled_and_captions_dropped() -> None:
    config = replace(CONFIG, shuffle_tags=True, keep_tags=1, caption_dropout=0.25)
    found = [caption_of("a, b,c, d", 0, config, generator(step)) for step in range(400)]
    assert {text.split(", ")[0] for text in found if text} == {"a"}
    assert len(set(found)) == 7  # 3! and none
    assert 60 < found.count("") < 140
    assert found == [caption_of("a, b,c, d", 0, config, generator(step)) for step in range(400)]
    assert {caption_of("a, b", 1, config, generator(step)) for step in range(9)} == {""}  # the class prompt
    assert caption_of(None, 0, CONFIG, generator(0)) == "x"


def test_shuffled_and_dropped_captions_resume(sd: Path, dog: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"shuffle_tags": True, "caption_dropout": 0.3, "instance_prompt": "a, noto, dog"}
    config = settings(sd, dog, tmp_path / "a", subset="ex-ca-hl", save_every=1, **more)
    whole = train(config)
    part = replace(config, output=tmp_path / "b")
    train(replace(part, steps=2))
    assert train(part, resume=True).losses == whole.losses
