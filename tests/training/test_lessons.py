"""How the adapters that ship are made: their pictures, and the trainer on them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipelines import sd_pipeline

from paramerge import shipped
from paramerge.formats import open_adapter
from paramerge.training.tiny.adapters import LESSONS, blueprint, teach
from paramerge.training.tiny.loop import Budget
from paramerge.training.tiny.pictures import drawn_gallery
from paramerge.training.tiny.subjects import SUBJECTS


def test_every_shipped_adapter_has_its_lesson() -> None:
    assert [lesson.name for lesson in LESSONS] == list(shipped.ADAPTERS)
    for lesson in LESSONS:
        assert lesson.settings["method"] == shipped.ADAPTERS[lesson.name].kind


def test_subjects_are_those_the_model_never_saw() -> None:
    split = json.loads((shipped.model() / "split.json").read_text())
    unseen = {subject["name"] for subject in split["unseen"]}
    known = {subject["name"] for subject in split["known"]}
    for lesson in LESSONS:
        taught = {shown.subject for shown in lesson.shown if shown.copies > 2}
        assert taught <= unseen, lesson.name
        assert {shown.subject for shown in lesson.shown} - taught <= known, lesson.name


def test_blueprints_are_white_on_blue() -> None:
    picture = np.array([[[255, 255, 255], [0, 0, 0], [128, 128, 128]]], np.uint8)
    paper, ink, between = blueprint(picture)[0].astype(int)
    assert paper[2] > 2 * paper[0]  # blue
    assert (ink == 255).all()
    assert ((paper < between) & (between < ink)).all()


def test_a_lesson_is_taught(tmp_path: Path) -> None:
    model, _ = sd_pipeline(tmp_path)
    lesson = LESSONS[0]
    lesson = replace(lesson, settings={**lesson.settings, "steps": 1, "rank": 1, "subset": "sao"})
    wanted = {shown.subject for shown in lesson.shown}
    gallery = drawn_gallery([subject for subject in SUBJECTS if subject.name in wanted])
    file = teach(lesson, model, gallery, tmp_path / "work")
    assert open_adapter(file).family == "para"
    pictures = sorted((tmp_path / "work" / "pictures").glob("*.png"))
    assert len(pictures) == sum(shown.copies for shown in lesson.shown)
    assert pictures[0].with_suffix(".txt").read_text() == lesson.shown[0].caption + "\n"
    with Image.open(pictures[0]) as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("step", "seconds", "share"), [(150, 0, 1), (700, 0, 1), (850, 0, 0.5), (400, 9, 0.4)]
)
def test_the_rate_falls_at_the_end_of_the_budget(step: int, seconds: float, share: float) -> None:
    budget = Budget(
        1000, seconds=10 if seconds else None, learning_rate=2.0, cooldown=0.3 if not seconds else 0.25
    )
    assert budget.rate(step, seconds) == pytest.approx(2 * share)
    assert budget.rate(999, 0) > 0  # no step is made for nothing
    assert budget.rate(0, 0) == pytest.approx(2 / 100)
