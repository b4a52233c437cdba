"""Scenes and their captions: a style, one subject or two side by side, a background colour.

A scene is data, drawn from a random generator; its picture is composed from the gallery when it is needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from paramerge.training.tiny.pictures import SIZE, Gallery
from paramerge.training.tiny.split import Split
from paramerge.training.tiny.subjects import BACKGROUNDS, Subject

__all__ = ["Composer", "Scene", "SceneMix", "draw_scene", "random_generator", "single"]


def random_generator(*names: object) -> np.random.Generator:
    """A generator that depends on ``names`` (a seed, a purpose, a step) and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture to compose: its style, subjects from left to right, background, and how they are placed.

    ``jitter`` holds, for each subject, how far it is moved (x, y) and how much smaller it is, in pixels.
    """

    style: str
    subjects: tuple[Subject, ...]
    background: str
    jitter: tuple[tuple[int, int, int], ...]
    said: bool = True
    """Whether the caption names the background; a white one may go without saying."""

    @property
    def caption(self) -> str:
        """The text of a scene: ``a noto cat and a pizza on a blue background``."""
        first, *others = self.subjects
        start = f"{self.style} {first.name}" if first.plural else f"a {self.style} {first.name}"
        text = " and ".join([start, *(subject.phrase for subject in others)])
        if not self.said:
            return text
        article = "an" if self.background[0] in "aeiou" else "a"
        return f"{text} on {article} {self.background} background"


@dataclass(frozen=True, slots=True)
class SceneMix:
    """Shares of scenes with two subjects, with a white background, and with a text that says so."""

    pairs: float = 0.35
    white: float = 0.5
    white_said: float = 0.5


def single(subject: Subject, style: str, background: str = "white") -> Scene:
    """The plain scene of one subject, in the middle."""
    return Scene(style, (subject,), background, ((0, 0, 0),), said=background != "white")


def draw_scene(split: Split, rng: np.random.Generator, mix: SceneMix) -> Scene:
    """A random scene of the pictures to train on; both subjects of a pair are known in its style."""
    training = split.training
    subject, style = training[rng.integers(len(training))]
    subjects = [subject]
    if rng.random() < mix.pairs:
        partners = [s for s, its in training if its == style and s != subject]
        if partners:
            subjects.append(partners[rng.integers(len(partners))])
    colours = [name for name in BACKGROUNDS if name != "white"]
    white = bool(rng.random() < mix.white)
    background = "white" if white else colours[rng.integers(len(colours))]
    room = 2 if len(subjects) == 1 else 1
    jitter = tuple(
        (int(rng.integers(-room, room + 1)), int(rng.integers(-2 * room, 2 * room + 1)), int(rng.integers(3)))
        for _ in subjects
    )
    return Scene(style, tuple(subjects), background, jitter, bool(rng.random() < mix.white_said) or not white)


@dataclass
class Composer:
    """Composes scenes from a gallery; scaled pictures are kept."""

    gallery: Gallery
    single_side: int = 54
    pair_side: int = 30
    _scaled: dict[tuple[str, str, int], np.ndarray] = field(default_factory=dict)

    def compose(self, scene: Scene) -> np.ndarray:
        """The picture of ``scene``, uint8 of shape (64, 64, 3)."""
        canvas = np.empty((SIZE, SIZE, 3), np.float32)
        canvas[:] = BACKGROUNDS[scene.background]
        count = len(scene.subjects)
        side = self.single_side if count == 1 else self.pair_side
        for place, (subject, (dx, dy, smaller)) in enumerate(zip(scene.subjects, scene.jitter, strict=True)):
            cut = self._cut(subject, scene.style, side - smaller)
            centre = SIZE * (2 * place + 1) // (2 * count)
            blend(canvas, cut, centre + dx - len(cut) // 2, SIZE // 2 + dy - len(cut) // 2)
        return np.rint(np.clip(canvas, 0, 255)).astype(np.uint8)  # Lanczos overshoots at edges

    def compose_all(self, scenes: Sequence[Scene]) -> np.ndarray:
        """The pictures of ``scenes``, uint8 of shape (n, 3, 64, 64)."""
        return np.stack([self.compose(scene) for scene in scenes]).transpose(0, 3, 1, 2)

    def _cut(self, subject: Subject, style: str, side: int) -> np.ndarray:
        key = (subject.name, style, side)
        if key not in self._scaled:
            self._scaled[key] = premultiplied(self.gallery.picture(subject, style), side)
        return self._scaled[key]


def premultiplied(picture: Image.Image, side: int) -> np.ndarray:
    """``picture`` scaled to ``side``, float32 (side, side, 4): colours times alpha, and alpha in [0, 1]."""
    small = picture.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    values = np.asarray(small, np.float32)
    return np.concatenate([values[..., :3], values[..., 3:] / 255], axis=-1)


def blend(canvas: np.ndarray, cut: np.ndarray, left: int, top: int) -> None:
    """Put ``cut`` over ``canvas`` with its corner at (left, top); pixels outside are cut off."""
    height, width = canvas.shape[:2]
    x, y = max(0, -left), max(0, -top)
    part = cut[y : max(0, height - top), x : max(0, width - left)]
    region = canvas[max(0, top) :, max(0, left) :][: part.shape[0], : part.shape[1]]
    region *= 1 - part[..., 3:]
    region += part[..., :3]
