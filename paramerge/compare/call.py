"""``paramerge.compare``: the effects of adapters on each other, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from paramerge.apply.given import Adapter, PathLike, open_given, opened_base, unscaled
from paramerge.apply.steps import Step
from paramerge.compare.compare import Comparison
from paramerge.compare.compare import compare as compare_opened

if TYPE_CHECKING:
    from paramerge.adapters import Adapter as OpenedAdapter
    from paramerge.checkpoints.layout import Base


def compare(
    adapters: Iterable[Adapter | Step | PathLike | OpenedAdapter],
    base: PathLike | Base | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    allow_unmatched: bool = False,
) -> Comparison:
    """Compare every two adapters: ``compare(["cat.safetensors", "dog.safetensors"])``.

    Parameters
    ----------
    adapters:
        As for :func:`paramerge.bake`, two or more, without strengths.
    base:
        Compare also their effects on this checkpoint's weights.
    progress:
        Called with layers done and layers in all.
    allow_unmatched:
        Leave out keys that are not understood, instead of refusing.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.compare.compare.compare`.
    """
    return compare_opened(
        unscaled(open_given(adapters), "a comparison"),
        None if base is None else opened_base(base),
        progress or (lambda done, total: None),
        allow_unmatched=allow_unmatched,
    )
