"""Measuring and drawing: any number of processes, stopped and gone on with, and what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contrastive_model import contrastive_model
from PIL import Image
from rounding import SSIM_ERROR, forward_error
from tiny_pipelines import sd_pipeline

from paramerge.checkpoints.layout import open_base
from paramerge.errors import FileFormatError, UsageError
from paramerge.generation.loading import load_pipeline
from paramerge.generation.sampling import Request, draw
from paramerge.training.evaluation.clip import load_clip
from paramerge.training.evaluation.drawing import PictureJob, Sampling, draw_missing
from paramerge.training.evaluation.lpips import load_perceptual
from paramerge.training.evaluation.measuring import Measures, SetScores, measure
from paramerge.training.evaluation.processes import Processes
from paramerge.training.evaluation.records import Records, claim_folder
from paramerge.training.evaluation.sets import PictureSet, read_pictures
from paramerge.training.evaluation.ssim import pairs_of, ssim
from paramerge.training.evaluation.stlpips import find_weights
from paramerge.training.evaluation.summary import summed_up


@pytest.fixture(scope="module")
def measures(tmp_path_factory: pytest.TempPathFactory) -> Measures:
    try:
        find_weights()
        distance = load_perceptual("stlpips-alex")
    except UsageError:
        distance = None
    folder = contrastive_model(tmp_path_factory.mktemp("models") / "clip")
    return Measures(load_clip(str(folder)), distance, batch=2)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[PictureSet]:
    """Two runs of a label with references and text, and a set with neither."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    files = []
    for number in range(11):
        image = rng.integers(0, 256, (8, 8, 3)).repeat(8, axis=0).repeat(8, axis=1).astype(np.uint8)
        files.append(folder / f"{number:02d}.png")
        Image.fromarray(image).save(files[-1])
    references = tuple(files[9:])
    return [
        PictureSet("a", 0, tuple(files[:3]), "a noto dog", references),
        PictureSet("a", 1, tuple(files[3:6]), "a noto dog", references),
        PictureSet("b", 0, tuple(files[6:9])),
    ]


def together(count: int, work: Callable[[Processes], Any]) -> list[Any]:
    """Run ``work`` as ``count`` processes would, a thread for each."""
    barrier = threading.Barrier(count, timeout=120)
    results: dict[int, Any] = {}

    def one(rank: int) -> None:
        try:
            results[rank] = work(Processes(rank, count, lambda: barrier.wait() and None))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(count)]


def test_scores_are_those_of_the_metrics_themselves(
    sets: list[PictureSet], measures: Measures, tmp_path: Path
) -> None:
    scores = measure(sets, measures, tmp_path)
    pictures, references = read_pictures(sets[1].pictures), read_pictures(sets[1].references)
    clip = measures.clip
    assert clip is not None
    embedded = clip.embed_pictures(pictures)
    values = scores[1].values
    near = 2 * forward_error(clip._model)  # of both vectors of a cosine
    np.testing.assert_allclose(values["text"], embedded @ clip.embed_texts(["a noto dog"])[0], atol=near)
    wanted = (embedded @ clip.embed_pictures(references).T).mean(dim=1)
    np.testing.assert_allclose(values["image"], wanted, atol=near)
    pairs = pairs_of(3)
    np.testing.assert_allclose(
        values["diversity"], ssim(pictures[pairs[:, 0]], pictures[pairs[:, 1]]), atol=SSIM_ERROR
    )
    if measures.perceptual is not None:
        near = forward_error(measures.perceptual._distance)
        np.testing.assert_allclose(
            values["perceptual"], measures.perceptual.similarity(pictures, references), atol=near
        )
    assert set(scores[2].values) == {"diversity"}
    rows = summed_up(scores)
    assert [(row.label, row.pictures) for row in rows] == [("a", 6), ("b", 3)]
    assert rows[0].values["text"].runs == (scores[0].mean("text"), scores[1].mean("text"))


@pytest.mark.parametrize("count", [2, 3])
def test_the_number_of_processes_changes_nothing(
    sets: list[PictureSet], measures: Measures, tmp_path: Path, count: int
) -> None:
    alone = measure(sets, measures, tmp_path / "alone")
    shared = together(count, lambda each: measure(sets, measures, tmp_path / "shared", each))
    assert all(scores == alone for scores in shared)
    files = sorted((tmp_path / "shared").iterdir())
    assert len(files) == count
    lines = [len(path.read_text().splitlines()) for path in files]
    assert max(lines) - min(lines) <= 1


def test_what_is_measured_is_not_measured_again(
    sets: list[PictureSet], measures: Measures, tmp_path: Path
) -> None:
    """Stopped in the middle of a line, and gone on with by another number of processes."""
    whole = measure(sets, measures, tmp_path)
    (file,) = tmp_path.iterdir()
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    done: list[tuple[int, int]] = []
    assert measure(sets, measures, tmp_path, report=lambda *progress: done.append(progress)) == whole
    assert done[-1] == (len(lines) - 4, len(lines) - 4)
    again: list[tuple[int, int]] = []
    assert measure(sets, measures, tmp_path, report=lambda *progress: again.append(progress)) == whole
    assert again == []


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for task in ("a", "b"):
        records.add({"task": task, "value": 0.1})
    assert records.read() == {task: {"task": task, "value": 0.1} for task in ("a", "b")}
    file = tmp_path / "0000.jsonl"
    file.write_text("{}\n" + file.read_text())
    with pytest.raises(FileFormatError, match="line 1"):
        Records(tmp_path).read()


def test_a_folder_keeps_one_evaluation(tmp_path: Path) -> None:
    claim_folder(tmp_path, {"count": 3, "prompts": ("a",)})
    claim_folder(tmp_path, {"count": 3, "prompts": ("a",)})
    with pytest.raises(UsageError) as caught:
        claim_folder(tmp_path, {"count": 4, "prompts": ("a",)})
    assert (caught.value.expected, caught.value.found) == ("count = 3", "count = 4")
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(FileFormatError, match="damaged"):
        claim_folder(tmp_path, {})


def test_pictures_of_different_sizes_are_refused(tmp_path: Path) -> None:
    for number, side in enumerate((16, 24)):
        Image.new("RGB", (side, side)).save(tmp_path / f"{number}.png")
    files = tuple(sorted(tmp_path.glob("*.png")))
    with pytest.raises(UsageError, match="SSIM"):
        measure([PictureSet("a", 0, files)], Measures(), tmp_path / "records")
    with pytest.raises(UsageError, match="different sizes"):
        read_pictures(files)


def test_the_scores_name_their_models(sets: list[PictureSet], measures: Measures) -> None:
    named = measures.models()
    assert named["text"] == named["image"]
    assert "clip (local" in named["text"]
    assert "SSIM" in named["diversity"]
    if measures.perceptual is not None:
        assert named["perceptual"] == "stlpips-alex"
    row = summed_up([SetScores("a", 0, 1, {"text": (0.5,)})])[0].as_dict(named)
    assert json.loads(json.dumps(row))["metrics"]["text"]["model"] == named["text"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_pipeline(tmp_path_factory.mktemp("sd"))[0]


def test_pictures_are_drawn_once_and_shared(model: Path, tmp_path: Path) -> None:
    """Each has its seed's picture, whoever drew it; what is there is not drawn again."""
    sampling = Sampling(steps=2, guidance=3.0, batch=2)
    ready = [load_pipeline(open_base(model), torch.float32) for _ in range(2)]
    loaded: list[int] = []

    def load(rank: int = 0) -> Any:
        loaded.append(rank)  # loaded before, as transformers cannot load in two threads at once
        return ready[rank]

    def jobs(folder: str) -> list[PictureJob]:
        return [
            PictureJob(tmp_path / folder / str(i), prompt, (3, 4, 5))
            for i, prompt in enumerate(["a noto dog", "a cat"])
        ]

    assert draw_missing(load, jobs("alone"), sampling) == 4
    drawn = together(2, lambda each: draw_missing(lambda: load(each.rank), jobs("shared"), sampling, each))
    assert drawn == [2, 2]
    for ours, theirs in zip(jobs("alone"), jobs("shared"), strict=True):
        assert [a.read_bytes() == b.read_bytes() for a, b in zip(ours.files, theirs.files, strict=True)] == [
            True
        ] * 3
    request = Request(("a noto dog", "a cat"), seeds=(3, 4, 5), steps=2, guidance=3.0)
    for job, row in zip(jobs("alone"), draw(load(), request), strict=True):
        difference = read_pictures(job.files).astype(int) - np.stack(row)
        assert np.abs(difference).max() <= 1  # a batch may round otherwise
    loaded.clear()
    jobs("alone")[1].files[2].unlink()
    assert draw_missing(load, jobs("alone"), sampling) == 1
    assert draw_missing(load, jobs("alone"), sampling) == 0
    assert len(loaded) == 1
    assert jobs("alone")[1].files[2].read_bytes() == jobs("shared")[1].files[2].read_bytes()
