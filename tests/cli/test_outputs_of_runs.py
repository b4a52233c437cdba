"""What generate, demo, train, evaluate and experiment write replaces nothing that is not theirs."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baking import para_file, random_bases, shapes_of
from PIL import Image
from tiny_pipelines import sd_pipeline

from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import main
from paramerge.errors import OutputError, UsageError
from paramerge.training.class_pictures import draw_missing_class_pictures
from paramerge.training.config import TrainConfig
from paramerge.training.config_file import config_to_toml
from paramerge.training.evaluation.records import claim_folder
from paramerge.training.run_folder import check_run_folder

MINE = b"a file of mine"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a PaRa, and pictures; copied for each test."""
    folder = tmp_path_factory.mktemp("made")
    model, _ = sd_pipeline(folder)
    shapes = shapes_of(model)
    layers = [name for name in shapes if "attn1.to_q" in name]
    para_file(folder / "a.safetensors", random_bases(shapes, layers, 2), open_base(model).architecture)
    (folder / "dog").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "dog" / "a.png")
    return folder


@pytest.fixture
def files(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "files")
    return tmp_path / "files"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


GENERATED = {
    "the adapter": lambda files: files / "a.safetensors",
    "the adapter by a link": lambda files: link(files / "l.png", files / "a.safetensors"),
    "a file of the model": lambda files: files / "model" / "model_index.json",
    "a place in the model": lambda files: files / "model" / "grid.png",
    "another picture": lambda files: files / "dog" / "a.png",
    "a folder": lambda files: files / "dog",
    "no folder": lambda files: files / "nowhere" / "grid.png",
    "another ending": lambda files: files / "grid.jpg",
}


def link(name: Path, target: Path) -> Path:
    name.symlink_to(target)
    return name


@pytest.mark.parametrize("place", GENERATED)
def test_pictures_replace_nothing(place: str, files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = GENERATED[place](files)
    before = content(files)
    given = ("--model", files / "model", "--para", files / "a.safetensors", "--prompt", "x", "-n", 1)
    overwrite = [] if place == "another picture" else ["--overwrite"]
    assert call("generate", *given, "--steps", 1, "-o", output, *overwrite) == 6
    assert content(files) == before


def test_a_picture_is_replaced_where_that_is_said(files: Path) -> None:
    given = ("--model", files / "model", "--prompt", "a noto dog", "-n", 1, "--steps", 1, "--device", "cpu")
    assert call("generate", *given, "-o", files / "grid") == 0
    assert (files / "grid.png").is_file()
    assert call("generate", *given, "-o", files / "grid.png") == 6
    assert call("generate", *given, "-o", files / "grid.png", "--overwrite") == 0


@pytest.mark.parametrize("name", ["grid.png", "merged.safetensors", "emoji-diffusion.safetensors"])
def test_the_demo_replaces_nothing_unasked(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(MINE)
    assert call("demo", "-o", tmp_path, "--steps", 1) == 6
    assert "--overwrite" in capfd.readouterr().err
    assert content(tmp_path) == {name: hashlib.sha256(MINE).hexdigest()}


def config(files: Path, output: Path, **more: Any) -> TrainConfig:
    plain = {"instance_prompt": "a dog", "device": "cpu"}
    return TrainConfig(
        model=files / "model", instance_folder=files / "dog", output=output, **{**plain, **more}
    )


PLACES: dict[str, Callable[[Path], Path]] = {
    "the model": lambda files: files / "model",
    "in the model": lambda files: files / "model" / "unet",
    "below the model": lambda files: files / "model" / "new",
    "the subject's pictures": lambda files: files / "dog",
    "below the pictures": lambda files: files / "dog" / "new",
    "pictures by a link": lambda files: link(files / "link", files / "dog"),
    "around all": lambda files: files,
    "a file": lambda files: files / "a.safetensors",
}


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("place", PLACES)
def test_a_training_writes_into_no_input(place: str, resume: bool, files: Path) -> None:
    output = PLACES[place](files)
    before = content(files)
    if place == "around all" and resume:
        (files / "config.toml").write_bytes(MINE)
        before = content(files)
    with pytest.raises(OutputError):
        check_run_folder(config(files, output), resume)
    assert content(files) == before


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["adapter.safetensors", "config.toml", "log.jsonl", "loss.png", "notes"])
def test_a_training_replaces_nothing(name: str, resume: bool, files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).write_bytes(MINE)
    if name == "notes" and resume:
        check_run_folder(config(files, folder), resume)  # what is kept beside a run is nobody's business
        return
    with pytest.raises(OutputError):
        check_run_folder(config(files, folder), resume)
    assert content(folder) == {name: hashlib.sha256(MINE).hexdigest()}


def test_a_run_of_ours_is_resumed_and_no_other(files: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    given = config(files, folder)
    check_run_folder(given, False)
    check_run_folder(given, False)  # empty
    (folder / "config.toml").write_text(config_to_toml(given))
    check_run_folder(given, True)  # killed before it had a log
    with pytest.raises(OutputError):
        check_run_folder(config(files, folder, steps=3), True)  # may be anybody's
    (folder / "log.jsonl").write_text("")
    check_run_folder(given, True)
    with pytest.raises(UsageError, match="already"):
        check_run_folder(given, False)
    (folder / "config.toml").write_text("a = 1")  # somebody else's
    with pytest.raises(OutputError):
        check_run_folder(given, True)


def test_class_pictures_are_drawn_among_no_others(files: Path, tmp_path: Path) -> None:
    for place in (files / "dog", files / "model", files / "dog" / "class"):
        given = config(files, tmp_path / "run", class_folder=place, class_prompt="a dog", class_images=2)
        before = content(files)
        with pytest.raises(OutputError):
            draw_missing_class_pictures(None, given, place)
        assert content(files) == before
    for output in (tmp_path / "class", tmp_path / "class" / "run"):
        given = config(files, output, class_folder=tmp_path / "class", class_prompt="a dog")
        with pytest.raises(OutputError):
            check_run_folder(given, False)


def test_class_pictures_that_are_there_stay(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one of the first was removed, so that there are fewer than their numbers say."""
    from paramerge.generation import sampling

    black = np.zeros((8, 8, 3), np.uint8)
    monkeypatch.setattr(sampling, "draw", lambda pipeline, request: [[black]])
    folder = tmp_path / "class"
    folder.mkdir()
    for name in ("class-0001.png", "class-0002.png"):
        (folder / name).write_bytes(MINE)
    given = config(files, tmp_path / "run", class_folder=folder, class_prompt="a dog", class_images=4)
    assert draw_missing_class_pictures(None, given, folder) == 2
    assert len(list(folder.iterdir())) == 4
    assert all((folder / f"class-000{n}.png").read_bytes() == MINE for n in (1, 2))


def test_an_evaluation_takes_no_folder_of_others(files: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "results.jsonl").write_bytes(MINE)
    given = ("evaluate", "--pictures", files / "dog", "--clip", "none", "--lpips", "none")
    before = content(tmp_path)
    for place in (tmp_path / "full", files / "dog", files / "dog" / "scores"):
        assert call(*given, "-o", place) == 6
        assert content(tmp_path) == before
    assert call(*given, "-o", tmp_path / "scores") == 0
    assert call(*given, "-o", tmp_path / "scores") == 0  # the same again: nothing is left to do
    for text in ("[]", "[" * 100_000, "{", "null"):
        (tmp_path / "scores" / "settings.json").write_text(text)
        assert call(*given, "-o", tmp_path / "scores") == 3


def test_an_experiment_writes_into_no_input(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(OutputError):
        claim_folder(tmp_path / "data" / "new", {}, [tmp_path / "data"])
