"""``paramerge evaluate`` as a user types it, on a tiny random pipeline and a random contrastive model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from baking import para_file, random_bases, shapes_of
from contrastive_model import contrastive_model
from PIL import Image
from tiny_pipelines import sd_pipeline

from paramerge.checkpoints.layout import open_base
from paramerge.cli.evaluate import _DISTANCES, _SAMPLERS
from paramerge.cli.main import main
from paramerge.generation.sampling import SCHEDULERS
from paramerge.training.evaluation.lpips import DISTANCES

DRAWING = ("--steps", 1, "-n", 3, "--runs", 2, "--batch", 2, "--prompt", "a noto <v1>", "--prompt", "a cat")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, a PaRa, a contrastive model, and pictures of a subject."""
    folder = tmp_path_factory.mktemp("files")
    model, _ = sd_pipeline(folder)
    shapes = shapes_of(model)
    layers = [name for name in shapes if "attn" in name]
    para_file(folder / "a.safetensors", random_bases(shapes, layers, 8), open_base(model).architecture)
    contrastive_model(folder / "scorer")
    (folder / "dog").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        image = Image.fromarray(rng.integers(0, 256, (80, 64, 3), dtype=np.uint8))
        image.save(folder / "dog" / f"{number}.png")
    return folder


def call(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *(str(argument) for argument in arguments)])
    return int(caught.value.code or 0)


def drawn(files: Path, output: Path) -> tuple[object, ...]:
    scorer = ("--clip", files / "scorer", "--lpips", "none", "--device", "cpu")
    return (
        *("--model", files / "model", "--para", files / "a.safetensors", *DRAWING, *scorer),
        *("--text", "a noto dog", "--text", "a cat", "--references", files / "dog", "-o", output),
    )


def test_the_sentence_people_type(files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Drawn, measured and written; a second call has nothing left to do and says the same."""
    assert call(*drawn(files, tmp_path / "out")) == 0
    shown = capfd.readouterr().out
    for words in ("a noto <v1>", "±", "average pairwise SSIM", "scorer (local, sha256 "):
        assert words in shown
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["label"], row["pictures"]) for row in rows] == [("a noto <v1>", 6), ("a cat", 6)]
    for row in rows:
        assert set(row["metrics"]) == {"diversity", "text", "image"}
        assert [len(each["diversity"]) for each in row["values"]] == [3, 3]
        assert "scorer (local" in row["metrics"]["text"]["model"]
    assert len(list((tmp_path / "out" / "pictures").rglob("*.png"))) == 12
    with Image.open(tmp_path / "out" / "results.png") as image:
        assert image.width > 300
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "pictures").rglob("*.png")}
    assert call(*drawn(files, tmp_path / "out"), "--json") == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["rows"][0]["metrics"] == rows[0]["metrics"]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_other_settings_need_another_folder(
    files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = ("--pictures", files / "dog", "--clip", "none", "--lpips", "none", "-o", tmp_path / "out")
    assert call(*folder) == 0
    assert call(*folder, "--max-pairs", 1) == 2
    assert "max_pairs" in capfd.readouterr().err
    shipped_pictures = tmp_path / "out" / "results.jsonl"
    assert json.loads(shipped_pictures.read_text())["label"] == "dog"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "either --model with --prompt, or --pictures"),
        (("--model", "m", "--pictures", "p"), "either --model"),
        (("--model", "m"), "at least one --prompt"),
        (("--pictures", "p", "--prompt", "a cat"), "--text"),
        (("--pictures", "missing", "--clip", "none", "--lpips", "none"), "no such folder"),
        (("--pictures", "DOG", "--text", "a", "--text", "b", "--clip", "none", "--lpips", "none"), "text"),
    ],
)
def test_what_does_not_go_together_is_said(
    files: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    given = [str(files / "dog") if argument == "DOG" else argument for argument in arguments]
    assert call(*given, "-o", tmp_path / "out") == 2
    assert words in capfd.readouterr().err


def test_the_choices_are_those_of_the_library() -> None:
    """The command names them itself: its help must not import torch."""
    assert set(_SAMPLERS) == set(SCHEDULERS)
    assert {*_DISTANCES} - {"none"} == set(DISTANCES)


@pytest.mark.slow
def test_two_processes_give_what_one_gives(files: Path, tmp_path: Path) -> None:
    """Started as accelerate's launcher does it for GPUs: each draws and measures its share."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for count, name in ((1, "one"), (2, "two")):
        command = [*launch, str(count), "-m", "paramerge.cli", "evaluate"]
        command += [str(part) for part in drawn(files, tmp_path / name)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("average pairwise SSIM") == 1
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "results.jsonl").read_bytes() == (two / "results.jsonl").read_bytes()
    pictures = sorted(path.relative_to(one) for path in one.rglob("pictures/*/*.png"))
    assert [(one / path).read_bytes() == (two / path).read_bytes() for path in pictures] == [True] * 12
    assert len(list((two / "records").iterdir())) == 2
