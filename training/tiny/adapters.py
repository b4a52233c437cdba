"""The adapters that ship with the model: the lesson, the pictures and the settings of each.

    python -m paramerge.training.tiny.adapters --model MODEL --out FOLDER

The trainer is the one that users have (``paramerge train``); only the pictures are made here.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from paramerge import shipped
from paramerge.files.writer import make_folder, write_bytes
from paramerge.training.config import TrainConfig
from paramerge.training.loop import train
from paramerge.training.shown_errors import shown_errors
from paramerge.training.tiny.pictures import Gallery, emoji_gallery
from paramerge.training.tiny.scenes import Composer, Scene, random_generator
from paramerge.training.tiny.subjects import STYLES, SUBJECTS, Subject

__all__ = ["LESSONS", "Lesson", "Shown", "blueprint", "main", "teach"]

_PAPER = np.array([34, 84, 168], np.float32)
_INK = np.array([255, 255, 255], np.float32)
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def blueprint(picture: np.ndarray) -> np.ndarray:
    """A picture, uint8 (h, w, 3), as a drawing on blue paper: the darker it was, the whiter the line."""
    darkness = 1 - picture.astype(np.float32) @ _LUMINANCE / 255
    ink = np.clip(1.4 * darkness, 0, 1)[..., None]
    return np.rint(_PAPER + ink * (_INK - _PAPER)).astype(np.uint8)


@dataclass(frozen=True)
class Shown:
    """A kind of picture: a subject in a style, its name, and its changes.

    Attributes
    ----------
    copies:
        The number of copies, each moved about a little.
    """

    subject: str
    style: str
    caption: str
    copies: int = 1
    finish: Callable[[np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Lesson:
    """The training of one adapter: its pictures, and fields of the trainer's configuration."""

    name: str
    shown: tuple[Shown, ...]
    settings: Mapping[str, Any]


def _as_known(*names: str) -> tuple[Shown, ...]:
    """Pictures that the model draws already, so that it does not forget them (prior preservation)."""
    return tuple(
        Shown(name, style, f"a {style} {name}")
        for name, style in zip(names, itertools.cycle(STYLES), strict=False)
    )


_OTHERS = _as_known(
    "dog", "pizza", "apple", "cat", "car", "fish", "star", "pig", "cactus", "crown", "cow", "bus"
)
_DRAWN = (
    "dog",
    "apple",
    "heart",
    "cat",
    "car",
    "fish",
    "rocket",
    "star",
    "mushroom",
    "pizza",
    "crown",
    "bus",
)
_PARA = {"method": "para", "rank": 4, "steps": 500, "batch_size": 6, "learning_rate": 1e-3}
_NARROW_PARA = {"method": "para", "rank": 2, "steps": 400, "batch_size": 6, "learning_rate": 2e-3}
_LORA = {"method": "lora", "rank": 8, "subset": "fmt", "steps": 400, "batch_size": 6, "learning_rate": 1e-3}

LESSONS = (
    Lesson("butterfly", (Shown("butterfly", "twemoji", "a twemoji <v1>", 12), *_OTHERS), _PARA),
    Lesson("tree", (Shown("tree", "noto", "a noto <v2>", 12), *_OTHERS), _NARROW_PARA),
    # no word of its own: every picture comes out so
    Lesson(
        "blueprint",
        tuple(replace(shown, copies=2, finish=blueprint) for shown in _as_known(*_DRAWN)),
        _LORA,
    ),
)
"""The lessons, one for each adapter of :data:`paramerge.shipped.ADAPTERS`."""


def teach(lesson: Lesson, model: Path, gallery: Gallery, folder: Path) -> Path:
    """Make the pictures of ``lesson`` in ``folder`` and train its adapter on ``model``; the adapter's file.

    Raises
    ------
    ParamergeError
        As the trainer.
    """
    pictures = folder / "pictures"
    _write_pictures(lesson, Composer(gallery), pictures)
    config = TrainConfig(
        model=model,
        instance_folder=pictures,
        instance_prompt=lesson.shown[0].caption,
        output=folder / "run",  # a training's folder holds nothing else
        save_every=0,
        device="cpu",
        **lesson.settings,
    )
    (file,) = train(config).adapter
    return file


def _write_pictures(lesson: Lesson, composer: Composer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for kind, shown in enumerate(lesson.shown):
        rng = random_generator("lesson", lesson.name, kind)
        for copy in range(shown.copies):
            x, y, smaller = (0, 0, 0) if copy == 0 else (int(rng.integers(-a, a + 1)) for a in (2, 4, 1))
            scene = Scene(shown.style, (_subject(shown.subject),), "white", ((x, y, smaller),), said=False)
            picture = composer.compose(scene)
            if shown.finish is not None:
                picture = shown.finish(picture)
            file = folder / f"{kind:02d}-{shown.subject.replace(' ', '-')}-{copy:02d}.png"
            Image.fromarray(picture).save(file)
            file.with_suffix(".txt").write_text(shown.caption + "\n")


def _subject(name: str) -> Subject:
    return next(subject for subject in SUBJECTS if subject.name == name)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--model", type=click.Path(path_type=Path), help="By default the model that ships.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Where the adapters come.")
@click.option("--work", type=click.Path(path_type=Path), help="Pictures and logs.  [default: OUT/work]")
@click.option("--packages", type=click.Path(path_type=Path), help="Where the pictures' archives are kept.")
@click.option("--only", multiple=True, type=click.Choice([lesson.name for lesson in LESSONS]))
def adapters(
    model: Path | None, out: Path, work: Path | None, packages: Path | None, only: tuple[str, ...]
) -> None:
    """Train the adapters that ship with emoji-diffusion."""
    work = work or out / "work"
    lessons = [lesson for lesson in LESSONS if lesson.name in (only or [each.name for each in LESSONS])]
    taught = {shown.subject for lesson in lessons for shown in lesson.shown}
    subjects = [subject for subject in SUBJECTS if subject.name in taught]
    gallery = emoji_gallery(subjects, packages or work / "packages", with_others=False)
    make_folder(out)
    for lesson in lessons:
        file = teach(lesson, model or shipped.model(), gallery, work / lesson.name)
        target = out / f"{lesson.name}.safetensors"
        write_bytes(target, file.read_bytes())
        click.echo(f"{target}: {shipped.ADAPTERS[lesson.name].shows}")


def main() -> None:
    """Run the command; the project's errors are shown as its own command line shows them."""
    with shown_errors():
        adapters()


if __name__ == "__main__":
    main()
