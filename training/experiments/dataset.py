"""The subjects of experiments: a folder of pictures each, their names in prompts, and the prompts.

A folder of data holds a folder of pictures for each subject and, if it is not in the DreamBooth dataset's own
layout, a ``dataset.toml``::

    [prompts]
    instance = "a photo of {subject}"              # what a subject's pictures are said to show in training
    plain = "a photo of {subject}"                 # Table 2
    diversity = ["a {subject} made of gold"]       # Table 1
    alignment = ["a {subject} on the beach"]       # Figure 3, and the other comparisons
    editing = ["a {subject} wearing a hat"]        # Figure 5
    composition = ["a {first} next to a {second}"] # Figure 4

    [[subjects]]
    folder = "bear_plushie"
    word = "sks stuffed animal"                    # {subject} in prompts
    kind = "stuffed animal"                        # {subject} for the base model and for the text score
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from paramerge.errors import FileFormatError, UsageError
from paramerge.regular_files import is_there, read_text
from paramerge.strict_toml import read_toml
from paramerge.training.pictures import find_pictures

__all__ = ["DREAMBOOTH_PROMPTS", "PAPER_SUBJECTS", "Dataset", "Prompts", "Subject", "open_dataset"]

PAPER_SUBJECTS = (
    "bear_plushie",
    "cat",
    "dog8",
    "duck_toy",
    "grey_sloth_plushie",
    "monster_toy",
    "red_cartoon",
    "wolf_plushie",
)
"""The subjects of the paper's tables, by their folders in the DreamBooth dataset."""
_CLASSES = "prompts_and_classes.txt"
_WORDS = ("sks", "olis")
"""Rare tokens, as DreamBooth takes them; a second subject in a picture has the second."""


@dataclass(frozen=True)
class Subject:
    """A subject: its folder of pictures, its word in prompts, and the kind of thing it is."""

    folder: Path
    word: str
    kind: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name


@dataclass(frozen=True)
class Prompts:
    """Templates with ``{subject}``; those of two subjects have ``{first}`` and ``{second}``."""

    instance: str
    plain: str
    diversity: tuple[str, ...]
    alignment: tuple[str, ...]
    editing: tuple[str, ...]
    composition: tuple[str, ...]


DREAMBOOTH_PROMPTS = Prompts(
    instance="a photo of {subject}",
    plain="a photo of {subject}",
    diversity=("a {subject} sculpture made of gold", "a {subject} on a skateboard in Times Square"),
    alignment=(
        "a {subject} in the jungle",
        "a {subject} in the snow",
        "a {subject} on the beach",
        "a {subject} on a cobblestone street",
        "a {subject} on top of a wooden floor",
        "a {subject} with the Eiffel Tower in the background",
    ),
    editing=("a photo of {subject} wearing a red hat", "a photo of {subject} in the snow"),
    composition=("{first} in the kitchen with a {second} next to it",),
)
"""The paper's prompts where it prints them, and the DreamBooth dataset's."""


@dataclass(frozen=True)
class Dataset:
    """All subjects and the prompts for them.

    Attributes
    ----------
    origin:
        The source of the prompts, for tables.
    """

    folder: Path
    subjects: tuple[Subject, ...]
    prompts: Prompts
    origin: str

    def first(self, count: int) -> tuple[Subject, ...]:
        """The first ``count`` subjects.

        Raises
        ------
        UsageError
            There are not so many.
        """
        if len(self.subjects) < count:
            raise UsageError(
                "this data has too few subjects for the experiment",
                where=self.folder,
                expected=f"{count} subjects",
                found=len(self.subjects),
                hint="choose a smaller --budget, or add subjects",
            )
        return self.subjects[:count]


def open_dataset(folder: Path) -> Dataset:
    """Read ``dataset.toml``, or the DreamBooth dataset's layout where there is none.

    Raises
    ------
    UsageError
        There is no such folder, no subject in it, or a subject without pictures.
    FileFormatError
        ``dataset.toml`` is not as it should be.
    """
    if not folder.is_dir():
        raise UsageError("there is no such folder", where="--data", found=folder)
    file = folder / "dataset.toml"
    dataset = _from_toml(folder, file) if is_there(file) else _from_dreambooth(folder)
    for subject in dataset.subjects:
        find_pictures(subject.folder, f"--data: {subject.name}")
    if not dataset.subjects:
        raise UsageError(
            "there is no subject in this folder",
            where=folder,
            expected="a folder of pictures for each subject",
        )
    return dataset


def _from_dreambooth(folder: Path) -> Dataset:
    """Folders in the paper's order, then others; classes from the dataset's own list where it is there."""
    kinds = _classes(folder / _CLASSES)
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    ordered = [name for name in PAPER_SUBJECTS if name in names]
    ordered += [name for name in names if name not in ordered]
    subjects = []
    for place, name in enumerate(ordered):
        kind = kinds.get(name, name.rstrip("0123456789").replace("_", " "))
        subjects.append(Subject(folder / name, f"{_WORDS[place % len(_WORDS)]} {kind}", kind))
    return Dataset(folder, tuple(subjects), DREAMBOOTH_PROMPTS, "the paper and the DreamBooth dataset")


def _classes(file: Path) -> dict[str, str]:
    if not is_there(file):
        return {}
    pairs = [line.split(",") for line in read_text(file, what="this list of classes").splitlines()]
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2 and " " not in pair[0]}


def _from_toml(folder: Path, file: Path) -> Dataset:
    content = read_toml(file, what="this dataset")
    try:
        given = {key: _plain(value) for key, value in content["prompts"].items()}
        subjects = [
            Subject(folder / entry["folder"], str(entry["word"]), str(entry["kind"]))
            for entry in content["subjects"]
        ]
        prompts = Prompts(**given)
    except (KeyError, TypeError, AttributeError) as error:
        raise FileFormatError(
            f"this dataset cannot be read ({type(error).__name__}: {error})",
            where=file,
            expected=f"[prompts] with {', '.join(f.name for f in fields(Prompts))}, "
            "and [[subjects]] with folder, word and kind",
        ) from error
    for field in fields(Prompts):
        wanted = ("{first}", "{second}") if field.name == "composition" else ("{subject}",)
        value = getattr(prompts, field.name)
        for text in (value,) if isinstance(value, str) else value:
            if not all(part in text for part in wanted):
                raise FileFormatError(
                    "a prompt has no place for its subject",
                    where=f"{file}: {field.name}",
                    expected=" and ".join(wanted),
                    found=text,
                )
    return Dataset(folder, tuple(subjects), prompts, file.name)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
