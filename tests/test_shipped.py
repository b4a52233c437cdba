"""The model that ships: it loads everywhere without a special case, draws what is asked, and is credited."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import AutoTokenizer, CLIPModel

from paramerge import shipped
from paramerge.checkpoints.layout import open_base
from paramerge.checkpoints.single_file import write_single_file
from paramerge.errors import FileFormatError
from paramerge.training.tiny.quality import generate, recognition
from paramerge.training.tiny.scenes import single
from paramerge.training.tiny.subjects import SUBJECTS

_LIMIT = 40e6
_ASKED = (
    "dog",
    "apple",
    "heart",
    "house",
    "car",
    "sun",
    "banana",
    "star",
    "pig",
    "mushroom",
    "cake",
    "ghost",
)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(shipped.model(), local_files_only=True)


def test_it_is_small_and_says_whose_pictures_it_learned_from() -> None:
    files = [path for path in shipped.model().parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < _LIMIT
    assert not [path for path in files if path.suffix in (".bin", ".ckpt", ".pt", ".pkl")]
    credit = (shipped.model() / "CREDITS.md").read_text()
    for word in ("Noto", "Apache", "Twemoji", "CC-BY", "Fluent", "MIT"):
        assert word in credit
    card = (shipped.model() / "README.md").read_text()
    assert "contrastive" in card
    measured = json.loads((shipped.model() / "measured.json").read_text())
    assert measured["autoencoder_held_out"] > 20


def test_the_split_holds_out_what_personalisation_will_learn() -> None:
    split = json.loads((shipped.model() / "split.json").read_text())
    known = {subject["name"] for subject in split["known"]}
    unseen = {subject["name"] for subject in split["unseen"]}
    assert unseen
    assert split["missing"]
    assert not known & unseen
    assert {name for name, _ in split["missing"]} <= known


def test_the_single_file_loads_and_draws_the_same(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    file = write_single_file(shipped.model(), tmp_path / "emoji.safetensors")
    assert open_base(file).architecture == "sd15"
    other = StableDiffusionPipeline.from_single_file(
        file, config=str(shipped.model()), local_files_only=True, torch_dtype=torch.float32
    )
    for name in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pipeline, name).state_dict(), getattr(other, name).state_dict()
        for key, value in ours.items():
            assert torch.equal(value.float(), theirs[key].float()), f"{name}.{key}"
    prompts = ["a noto dog", "a twemoji apple and a star"]
    assert np.array_equal(generate(pipeline, prompts, 0, 3, 3.0), generate(other, prompts, 0, 3, 3.0))


def test_it_draws_what_it_is_asked(pipeline: StableDiffusionPipeline) -> None:
    """The contrastive model's own word, among the twelve plain subjects; by chance it would be one."""
    model = CLIPModel.from_pretrained(shipped.contrastive(), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(shipped.contrastive(), local_files_only=True)
    scenes = [single(s, "fluent") for s in SUBJECTS if s.name in _ASKED]
    pictures = generate(pipeline, [scene.caption for scene in scenes], 0, 12, 3.0)
    found = recognition(model, tokenizer, pictures, scenes)
    assert found.subject >= 0.75


def test_without_it_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shipped, "_ASSETS", tmp_path)
    for get in (shipped.model, shipped.contrastive, lambda: shipped.adapter_file("blueprint")):
        with pytest.raises(FileFormatError, match="without its model"):
            get()


def test_its_name_stands_for_it_but_a_folder_of_that_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.named_model(Path(shipped.MODEL_NAME)) == shipped.model()
    Path(shipped.MODEL_NAME).mkdir()
    assert shipped.named_model(Path(shipped.MODEL_NAME)) == Path(shipped.MODEL_NAME)
