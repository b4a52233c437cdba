"""Adapters and bases as a caller hands them over, the same in every verb.

A list of adapters holds :class:`Para`, :class:`Lora` and :class:`Adapter`, or plain paths; text may have a
strength behind it, as on the command line (``"b.safetensors@0.8"``). Adapters and bases that are open already
will do as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from paramerge.apply.steps import Kind, Step, parse_step
from paramerge.arguments import wrong_type
from paramerge.errors import UsageError
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.resolve.blocks import BlockWeights, parse_blocks
from paramerge.wording import option

if TYPE_CHECKING:  # naming adapters must not import NumPy
    from paramerge.adapters import Adapter as OpenedAdapter
    from paramerge.checkpoints.layout import Base

PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of any family, and how strongly it is applied.

    Attributes
    ----------
    path:
        A file, a folder, or an adapter that :func:`~paramerge.formats.open_adapter` has opened.
    strength:
        A PaRa's, 0 to 1, or the factor on any other family's change.
    blocks:
        Factors on the strength, by block of the UNet: ``{"IN04": 0.5, "OUT00": 0}``, or text as the command
        line takes it (``"IN04=0.5,OUT00=0"``, or a vector of numbers).

    Raises
    ------
    UsageError
        A strength or a block out of range.
    """

    path: PathLike | OpenedAdapter
    strength: float = 1.0
    blocks: BlockWeights | Mapping[str, float] | str | None = None
    kind: ClassVar[Kind] = "adapter"

    def __post_init__(self) -> None:
        self.step()

    def step(self) -> Step:
        """The step of a bake that it is."""
        blocks = self.blocks
        if isinstance(blocks, Mapping):
            blocks = ",".join(f"{name}={weight!r}" for name, weight in blocks.items())
        if isinstance(blocks, str):
            blocks = parse_blocks(blocks)
        return Step(self.kind, path_of(self.path), self.strength, blocks)


@dataclass(frozen=True, slots=True)
class Para(Adapter):
    """A PaRa with a strength from 0 to 1; an adapter of another family is refused. See :class:`Adapter`."""

    kind: ClassVar[Kind] = "para"


@dataclass(frozen=True, slots=True)
class Lora(Adapter):
    """A LoRA with any finite scale; an adapter of another family is refused. See :class:`Adapter`."""

    kind: ClassVar[Kind] = "lora"


def path_of(given: PathLike | OpenedAdapter) -> Path:
    """The path of a file, or of an adapter that is open."""
    return Path(given) if isinstance(given, (str, os.PathLike)) else given.path


def step_of(given: Adapter | Step | PathLike | OpenedAdapter) -> Step:
    """An entry of a list of adapters as a step: text is read as ``FILE@STRENGTH:BLOCKS``."""
    if isinstance(given, Step):
        return given
    if isinstance(given, Adapter):
        return given.step()
    return parse_step("adapter", given) if isinstance(given, str) else Step("adapter", path_of(given))


def open_given(
    adapters: Iterable[Adapter | Step | PathLike | OpenedAdapter],
    other: Callable[[Path], OpenedAdapter | None] = lambda path: None,
    interpretation: Interpretation = BY_TRAINER,
) -> list[tuple[Step, OpenedAdapter]]:
    """Each adapter opened, with its step; of those that are open already the files are not opened again.

    ``other`` is asked first, by verbs that read more than :func:`~paramerge.formats.open_adapter` does.
    ``interpretation`` is for those that are not open yet.

    Raises
    ------
    UsageError
        One path instead of a list, or an entry of no known kind.
    ParamergeError
        Whatever :func:`~paramerge.formats.open_adapter` refuses.
    """
    from paramerge.adapters import Adapter as OpenedAdapter
    from paramerge.formats import open_adapter

    if isinstance(adapters, (str, os.PathLike, Adapter, Step, OpenedAdapter)):
        raise UsageError(
            "one adapter was given in the place of a list",
            where=option("adapters"),
            expected=f"[{adapters if isinstance(adapters, str) else '...'}]",
            hint="put it into a list",
        )
    if not isinstance(adapters, Iterable):
        raise wrong_type("adapters", "a list of paths, paramerge.Para, Lora or Adapter", adapters)
    opened = []
    for given in adapters:
        source = given.path if isinstance(given, Adapter) else given
        if not isinstance(given, (Adapter, Step, str, os.PathLike, OpenedAdapter)):
            raise UsageError(
                "this is no adapter",
                where=option("adapters"),
                expected="a path, or paramerge.Para, Lora or Adapter",
                found=type(given).__name__,
            )
        step = step_of(given)
        if isinstance(source, OpenedAdapter):
            refuse_other_family(source, step.kind)
            opened.append((step, source))
        else:
            opened.append((step, other(step.path) or open_adapter(step.path, step.kind, interpretation)))
    return opened


def refuse_other_family(adapter: OpenedAdapter, kind: Kind) -> None:
    """Refuse an open adapter that was given as a PaRa or LoRA and is of another family."""
    from paramerge.formats.families import wrong_family

    if kind not in ("adapter", adapter.family):
        raise wrong_family(kind, adapter.family, adapter.path)


def unscaled(opened: Iterable[tuple[Step, OpenedAdapter]], verb: str) -> list[OpenedAdapter]:
    """The adapters of a verb that takes no strengths.

    Raises
    ------
    UsageError
    """
    adapters = []
    for step, adapter in opened:
        if step.strength != 1 or step.blocks is not None:
            raise UsageError(
                f"a strength was given to {verb}, which takes none",
                where=step.path,
                expected="the file alone",
                found=f"@{step.strength:g}",
            )
        adapters.append(adapter)
    return adapters


def opened_base(base: PathLike | Base, variant: str | None = None) -> Base:
    """The checkpoint at a path, or by its shipped name; one that is open is as it is.

    Raises
    ------
    UsageError
        A variant of a base that was opened before.
    ParamergeError
        Whatever :func:`~paramerge.checkpoints.layout.open_base` refuses.
    """
    from paramerge.checkpoints.layout import Base, open_base
    from paramerge.shipped import named_model

    if isinstance(base, (str, os.PathLike)):
        return open_base(named_model(Path(base)), variant)
    if not isinstance(base, Base):
        raise wrong_type("base", "a path, or a checkpoint from paramerge.open_base", base)
    if variant is not None:
        raise UsageError(
            "a variant was given for a base that is open already",
            where=option("variant"),
            found=variant,
            hint="open the base with it, or give the base's path",
        )
    return base


def patterns(only: Iterable[str]) -> tuple[str, ...]:
    """The patterns chosen by ``only``; one text is one pattern."""
    return (only,) if isinstance(only, str) else tuple(only)


def hashing(*, rehash: bool) -> AbstractContextManager[None]:
    """With ``rehash`` every file is hashed anew, instead of believing hashes of earlier runs."""
    from paramerge.files.hashing import distrust_cache

    return distrust_cache() if rehash else nullcontext()
