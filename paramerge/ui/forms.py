"""A person's choices on the page, as the arguments of the library and as the command line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from paramerge.apply.given import Adapter
from paramerge.bake.call import plan_bake
from paramerge.bake.plan import Plan
from paramerge.merge.call import plan_merge
from paramerge.ui.library import Library

DTYPES = ("keep", "fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True)
class Row:
    """One adapter on the page; ``name`` is None where none is chosen."""

    name: str | None
    strength: float = 1.0
    blocks: str = ""

    def word(self, library: Library) -> str:
        """The adapter as the command line takes it."""
        text = str(library.adapter(self.name))
        blocks = f":{self.blocks.strip()}" if self.blocks.strip() else ""
        return text if self.strength == 1 and not blocks else f"{text}@{self.strength:g}{blocks}"

    def adapter(self, library: Library) -> Adapter:
        """The adapter as the library takes it."""
        return Adapter(library.adapter(self.name), self.strength, self.blocks.strip() or None)


@dataclass(frozen=True, slots=True)
class BakeForm:
    """A bake: a base, adapters in order, and the options of the whole."""

    base: str | None
    rows: tuple[Row, ...]
    merge: Literal["joint", "sequential"] = "joint"
    gamma: float = 0.0
    dtype: str = "keep"
    only: str = ""
    allow_unmatched: bool = False
    output: str = ""
    overwrite: bool = False

    @property
    def chosen(self) -> tuple[Row, ...]:
        """The rows with an adapter."""
        return tuple(row for row in self.rows if row.name)

    def plan(self, library: Library) -> Plan:
        """The plan, from headers alone; raises as :func:`~paramerge.bake.call.plan_bake` does."""
        return plan_bake(
            library.base(self.base),
            [row.adapter(library) for row in self.chosen],
            merge=self.merge,
            gamma=self.gamma or None,
            dtype=self.dtype,
            only=self.only.split(),
            allow_unmatched=self.allow_unmatched,
        )

    def command(self, library: Library) -> str:
        """The command line that does the same."""
        words = ["paramerge", "bake", "--base", str(library.base(self.base))]
        for row in self.chosen:
            words += ["--adapter", row.word(library)]
        words += _options(self.merge, self.gamma, self.dtype)
        for pattern in self.only.split():
            words += ["--only", pattern]
        words += ["--allow-unmatched"] if self.allow_unmatched else []
        return _line(words, library.new_file(self.output), self.overwrite)


@dataclass(frozen=True, slots=True)
class MergeForm:
    """A merge of checkpoints, with adapters baked into the result."""

    models: tuple[str | None, ...]
    method: str = "weighted-sum"
    parameters: str = ""
    blocks: str = ""
    rows: tuple[Row, ...] = ()
    dtype: str = "keep"
    output: str = ""
    overwrite: bool = False

    def _models(self, library: Library) -> list[Path]:
        return [library.base(name) for place, name in enumerate(self.models) if name or place == 0]

    @property
    def _given(self) -> dict[str, Any]:
        return dict(word.partition("=")[::2] for word in self.parameters.split())

    def plan(self, library: Library) -> Plan:
        """The plan, from headers alone; raises as :func:`~paramerge.merge.call.plan_merge` does."""
        return plan_merge(
            self._models(library),
            method=self.method,
            blocks=self.blocks.strip() or None,
            adapters=[row.adapter(library) for row in self.rows if row.name],
            dtype=None if self.dtype == "keep" else self.dtype,
            **self._given,
        )

    def command(self, library: Library) -> str:
        """The command line that does the same."""
        words = ["paramerge", "merge", *map(str, self._models(library)), "--method", self.method]
        for name, value in self._given.items():
            words += [f"--{name}", str(value)]
        words += ["--blocks", self.blocks.strip()] if self.blocks.strip() else []
        for row in self.rows:
            words += ["--adapter", row.word(library)] if row.name else []
        words += _options("joint", 0.0, self.dtype)
        return _line(words, library.new_file(self.output), self.overwrite)


def _options(merge: str, gamma: float, dtype: str) -> list[str]:
    words = ["--merge", merge] if merge != "joint" else []
    words += ["--gamma", f"{gamma:g}"] if gamma else []
    return words + (["--dtype", dtype] if dtype != "keep" else [])


def _line(words: Sequence[str], output: Path, overwrite: bool) -> str:
    return shlex.join([*words, *(["--overwrite"] if overwrite else []), "-o", str(output)])
