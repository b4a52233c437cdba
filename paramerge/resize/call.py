"""``paramerge.resize``: an adapter of a lower rank, in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from paramerge.apply.given import Adapter, PathLike, hashing, open_given, opened_base, unscaled
from paramerge.apply.steps import Step
from paramerge.arguments import as_path
from paramerge.merge.report import MergeReport
from paramerge.resize.resize import resize as resize_opened

if TYPE_CHECKING:
    from paramerge.adapters import Adapter as OpenedAdapter
    from paramerge.checkpoints.layout import Base


def resize(
    adapter: Adapter | Step | PathLike | OpenedAdapter,
    output: PathLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "fp16",
    base: PathLike | Base | None = None,
    allow_unmatched: bool = False,
    private: bool = False,
    overwrite: bool = False,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Write a LoRA, LoCon or PaRa with less: ``resize("style.safetensors", "small.safetensors", rank=8)``.

    Parameters
    ----------
    adapter:
        As in the list for :func:`paramerge.bake`, without a strength.
    output:
        The file to write.
    rank, energy:
        One of both: the most directions of a layer, or the share of its squared norm to hold, in (0, 1].
    base:
        PaRa: the base that decides which directions matter.
    dtype, allow_unmatched, private, overwrite, rehash, progress:
        As for :func:`paramerge.merge`.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.resize.resize.resize`.
    """
    (opened,) = unscaled(open_given([adapter]), "a change of rank")
    with hashing(rehash=rehash):
        return resize_opened(
            opened,
            as_path(output, "output"),
            rank=rank,
            energy=energy,
            dtype=dtype,
            base=None if base is None else opened_base(base),
            progress=progress,
            overwrite=overwrite,
            allow_unmatched=allow_unmatched,
            private=private,
        )
