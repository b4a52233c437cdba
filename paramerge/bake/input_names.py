"""Names of a bake's inputs in what it writes: those of their files, or those of an earlier recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paramerge.adapters import Adapter
from paramerge.checkpoints.layout import Base


@dataclass(frozen=True)
class InputNames:
    """The name of a model or an adapter, and those of its files (of a folder as they lie in it)."""

    name: str
    files: tuple[str, ...]

    @classmethod
    def of(cls, opened: Base | Adapter) -> InputNames:
        """The names that the files have."""
        if isinstance(opened, Base):
            return cls(opened.path.name, tuple(str(file.relative) for file in opened.files))
        return cls(opened.path.name, tuple(source.path.name for source in opened.opened))


def names_of(opened: Sequence[Base | Adapter]) -> tuple[InputNames, ...]:
    """The names of all inputs, in order."""
    return tuple(map(InputNames.of, opened))
