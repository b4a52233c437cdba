"""Texts beside the pictures: each picture is trained with its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import sd_pipeline

from paramerge.errors import FileFormatError, UsageError
from paramerge.training.config import TrainConfig
from paramerge.training.loop import train
from paramerge.training.pictures import captions_of, find_pictures


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_pipeline(tmp_path_factory.mktemp("sd"))[0]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def caption(pictures: Path, **texts: str) -> None:
    for name, text in texts.items():
        (pictures / f"{name}.txt").write_text(text, encoding="utf-8")


def trained(model: Path, pictures: Path, output: Path) -> tuple[dict[str, torch.Tensor], str]:
    config = TrainConfig(
        model=model,
        instance_folder=pictures,
        instance_prompt="a noto dog",
        output=output,
        steps=2,
        rank=2,
        learning_rate=1e-2,
        batch_size=2,
        subset="cao",
        device="cpu",
    )
    result = train(config)
    return load_file(output / "adapter.safetensors"), result.data_sha256


def test_captions_that_say_the_prompt_change_nothing_and_others_do(
    model: Path, pictures: Path, tmp_path: Path
) -> None:
    without, data = trained(model, pictures, tmp_path / "without")
    caption(pictures, a="a noto dog\n", b="a noto dog")
    same, captioned = trained(model, pictures, tmp_path / "same")
    assert data != captioned  # another run all the same: it does not resume the first
    for key, value in without.items():
        assert torch.equal(value, same[key]), key
    caption(pictures, b="a twemoji cat")
    other, again = trained(model, pictures, tmp_path / "other")
    assert again != captioned
    assert any(not torch.equal(value, other[key]) for key, value in without.items())


def test_all_pictures_have_one_or_none_has(pictures: Path) -> None:
    files = find_pictures(pictures, "instance_folder")
    assert captions_of(files) == ()
    caption(pictures, b="two")
    with pytest.raises(UsageError, match="only some") as caught:
        captions_of(files)
    assert "a.txt" in str(caught.value)
    caption(pictures, a="one")
    assert captions_of(files) == ("one", "two")


def test_an_empty_caption_and_one_that_is_no_text_are_errors(pictures: Path) -> None:
    caption(pictures, a=" \n", b="two")
    files = find_pictures(pictures, "instance_folder")
    with pytest.raises(FileFormatError, match="empty"):
        captions_of(files)
    (pictures / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(FileFormatError, match="no UTF-8 text"):
        captions_of(files)
