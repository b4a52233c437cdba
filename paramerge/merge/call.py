"""``paramerge.merge``: adapters into one adapter, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paramerge.apply.given import Adapter, PathLike, hashing, open_given, opened_base
from paramerge.apply.steps import Step
from paramerge.merge.combine import combine
from paramerge.merge.report import MergeReport
from paramerge.merge.request import CombineOptions, KeepChoice, input_of

if TYPE_CHECKING:
    from paramerge.adapters import Adapter as OpenedAdapter
    from paramerge.checkpoints.layout import Base


def merge(
    adapters: Iterable[Adapter | Step | PathLike | OpenedAdapter],
    output: PathLike,
    *,
    base: PathLike | Base | None = None,
    merge: Literal["joint", "sequential"] = "joint",
    gamma: float | None = None,
    keep: KeepChoice | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "fp16",
    allow_unmatched: bool = False,
    private: bool = False,
    overwrite: bool = False,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Merge adapters into one: ``merge(["a.safetensors", "b.safetensors@0.8"], "both.safetensors")``.

    PaRas are merged jointly, LoRAs are added, each times its scale; both together become a LoRA for ``base``.

    Parameters
    ----------
    adapters:
        As for :func:`paramerge.bake`; a PaRa has no strength here.
    output:
        The file to write.
    base:
        The checkpoint, where the answer depends on it.
    merge, gamma, keep, rank, energy, dtype, allow_unmatched, private:
        See :class:`~paramerge.merge.request.CombineOptions`.
    overwrite, rehash, progress:
        As for :func:`paramerge.bake`; ``progress`` counts layers.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.merge.combine.combine`.
    """
    options = CombineOptions(merge, gamma, keep, rank, energy, dtype, allow_unmatched, private)
    opened = open_given(adapters)
    with hashing(rehash=rehash):
        return combine(
            [input_of(step) for step, _ in opened],
            [adapter for _, adapter in opened],
            Path(output),
            options,
            None if base is None else opened_base(base),
            progress,
            overwrite=overwrite,
        )
