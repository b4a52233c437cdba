"""Pairs that the model never sees, so that personalisation has something new to learn.

Two kinds are held out. *Unseen* subjects are in no style: the model has no shape for them.
*Missing* pairs are a known subject in one style that it was never shown in, though it knows the style.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from paramerge.files.writer import write_bytes
from paramerge.training.tiny.subjects import STYLES, Subject

__all__ = ["Split", "make_split", "write_split"]

_UNSEEN_EVERY = 12
_MISSING_EVERY = 7


@dataclass(frozen=True)
class Split:
    """The pictures for training; a pair is a subject and a style."""

    known: tuple[Subject, ...]
    """The subjects that are trained on, in at least two styles."""
    unseen: tuple[Subject, ...]
    """Subjects that are trained on in no style."""
    missing: frozenset[tuple[str, str]]
    """Known subjects' names with the one style each that is held out."""

    def styles_of(self, subject: Subject) -> tuple[str, ...]:
        """The styles that the known ``subject`` is trained on in."""
        return tuple(style for style in STYLES if (subject.name, style) not in self.missing)

    @property
    def training(self) -> list[tuple[Subject, str]]:
        """The pairs to train on."""
        return [(subject, style) for subject in self.known for style in self.styles_of(subject)]

    @property
    def held_out(self) -> list[tuple[Subject, str]]:
        """All pairs that are held out: the missing ones, then the unseen subjects in each style."""
        missing = [(s, style) for s in self.known for style in STYLES if (s.name, style) in self.missing]
        return missing + [(subject, style) for subject in self.unseen for style in STYLES]


def make_split(subjects: tuple[Subject, ...]) -> Split:
    """Divide ``subjects`` by their place in the list alone: a longer list keeps a shorter one's division."""
    unseen = tuple(s for i, s in enumerate(subjects) if i % _UNSEEN_EVERY == _UNSEEN_EVERY - 5)
    known = tuple(subject for subject in subjects if subject not in unseen)
    places = {subject: i for i, subject in enumerate(subjects)}
    missing = {
        (subject.name, STYLES[places[subject] // _MISSING_EVERY % len(STYLES)])
        for subject in known
        if places[subject] % _MISSING_EVERY == _MISSING_EVERY - 2
    }
    return Split(known, unseen, frozenset(missing))


def write_split(split: Split, path: Path) -> None:
    """Write the split as JSON, for people and for later personalisation."""
    content = {
        "known": [{**asdict(subject), "styles": split.styles_of(subject)} for subject in split.known],
        "unseen": [asdict(subject) for subject in split.unseen],
        "missing": [list(pair) for pair in sorted(split.missing)],
    }
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
