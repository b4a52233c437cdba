"""Captions, the split, and how scenes are composed, with Pillow as the outside oracle for blending."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from paramerge.training.tiny.pictures import SIZE, Gallery, drawn_gallery
from paramerge.training.tiny.scenes import (
    Composer,
    Scene,
    SceneMix,
    blend,
    draw_scene,
    premultiplied,
    random_generator,
    single,
)
from paramerge.training.tiny.split import make_split, write_split
from paramerge.training.tiny.subjects import STYLES, SUBJECTS, Subject, first_subjects

DOG, GRAPES, APPLE = Subject("dog", "dog"), Subject("grapes", "grapes", True), Subject("apple", "apple")
STILL = (0, 0, 0)


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (single(DOG, "noto"), "a noto dog"),
        (single(GRAPES, "fluent", "red"), "fluent grapes on a red background"),
        (
            Scene("twemoji", (DOG, APPLE), "orange", (STILL, STILL)),
            "a twemoji dog and an apple on an orange background",
        ),
        (Scene("noto", (APPLE, GRAPES), "white", (STILL, STILL), said=False), "a noto apple and grapes"),
    ],
)
def test_captions(scene: Scene, caption: str) -> None:
    assert scene.caption == caption


@given(count=st.integers(8, len(SUBJECTS)), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_no_scene_shows_what_is_held_out(count: int, seed: int) -> None:
    split = make_split(first_subjects(count))
    held_out = {(subject.name, style) for subject, style in split.held_out}
    assert held_out
    rng = random_generator(seed)
    for _ in range(40):
        scene = draw_scene(split, rng, SceneMix())
        assert len({subject.name for subject in scene.subjects}) == len(scene.subjects)
        for subject in scene.subjects:
            assert (subject.name, scene.style) not in held_out


@pytest.mark.parametrize("count", [8, 14, 120, len(SUBJECTS)])
def test_the_split_covers_every_pair_once(count: int) -> None:
    subjects = first_subjects(count)
    split = make_split(subjects)
    pairs = split.training + split.held_out
    assert len(pairs) == len(set(pairs)) == count * len(STYLES)
    assert split.unseen and split.missing
    assert all(len(split.styles_of(subject)) >= 2 for subject in split.known)


def test_a_longer_list_keeps_a_shorter_ones_division() -> None:
    short, long = make_split(first_subjects(50)), make_split(first_subjects(200))
    assert set(short.unseen) <= set(long.unseen)
    assert set(short.known) <= set(long.known)
    assert short.missing <= long.missing


def test_the_split_is_written(tmp_path: Path) -> None:
    split = make_split(first_subjects(20))
    write_split(split, tmp_path / "split.json")
    content = json.loads((tmp_path / "split.json").read_text())
    assert [entry["name"] for entry in content["unseen"]] == [subject.name for subject in split.unseen]
    assert {tuple(pair) for pair in content["missing"]} == split.missing
    assert sum(len(entry["styles"]) for entry in content["known"]) == len(split.training)


def test_scenes_depend_on_the_seed_alone() -> None:
    split = make_split(first_subjects(30))

    def scenes(*names: object) -> list[Scene]:
        rng = random_generator(*names)
        return [draw_scene(split, rng, SceneMix()) for _ in range(20)]

    assert scenes(3, "a") == scenes(3, "a")
    assert scenes(3, "a") != scenes(4, "a")
    assert scenes(3, "a") != scenes(3, "b")


@given(left=st.integers(-70, 70), top=st.integers(-70, 70), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_blending_is_pillows(left: int, top: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (24, 24, 4), dtype=np.uint8), "RGBA")
    canvas = np.full((SIZE, SIZE, 3), 200.0, np.float32)
    blend(canvas, premultiplied(picture, 24), left, top)
    wanted = Image.new("RGBA", (SIZE, SIZE), (200, 200, 200, 255))
    layer = Image.new("RGBA", (SIZE, SIZE))
    layer.paste(picture, (left, top))
    wanted.alpha_composite(layer)
    # premultiplied bytes, and Pillow's own blending, round once each
    assert np.abs(canvas - np.asarray(wanted)[..., :3]).max() <= 2


def test_a_pair_shows_the_first_subject_on_the_left() -> None:
    subjects = (DOG, APPLE)
    pictures = {
        (subject.name, "noto"): Image.new("RGBA", (SIZE, SIZE), colour)
        for subject, colour in zip(subjects, [(255, 0, 0, 255), (0, 0, 255, 255)], strict=True)
    }
    scene = Scene("noto", subjects, "green", (STILL, STILL))
    found = Composer(Gallery(pictures)).compose(scene)
    green = [104, 178, 98]
    for left, colour in ((1, [255, 0, 0]), (33, [0, 0, 255])):  # 30 pixels in the middle of each half
        assert found[32, left : left + 30].tolist() == [colour] * 30
        assert found[32, left - 1].tolist() == found[32, left + 30].tolist() == green
    assert found[16, 16].tolist() == green
    assert found[17, 16].tolist() == [255, 0, 0]


def test_composing_gives_batches_of_bytes() -> None:
    split = make_split(first_subjects(10))
    composer = Composer(drawn_gallery(first_subjects(10)))
    scenes = [single(subject, style) for subject, style in split.training[:5]]
    batch = composer.compose_all(scenes)
    assert batch.shape == (5, 3, SIZE, SIZE)
    assert batch.dtype == np.uint8
    np.testing.assert_array_equal(batch[2].transpose(1, 2, 0), composer.compose(scenes[2]))
