"""``paramerge.extract``: the adapter between two checkpoints, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from paramerge.apply.given import PathLike, hashing, opened_base, patterns
from paramerge.arguments import as_path
from paramerge.deprecation import also_takes
from paramerge.extract.extract import ExtractionReport
from paramerge.extract.extract import extract as extract_opened
from paramerge.extract.families import ExtractOptions

if TYPE_CHECKING:
    from paramerge.checkpoints.layout import Base


def _has_options(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return len(args) > 3 or "options" in kwargs


@also_takes(_has_options, extract_opened, "give the options by name")
def extract(
    tuned: PathLike | Base,
    base: PathLike | Base,
    output: PathLike,
    *,
    family: str = "para",
    rank: int | None = None,
    energy: float | None = None,
    gamma: float | None = None,
    lokr_factor: int = -1,
    kronecker: tuple[int, int] = (64, 4),
    only: Iterable[str] = (),
    partial: bool = False,
    dtype: str = "fp16",
    overwrite: bool = False,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ExtractionReport:
    """Write the difference of two checkpoints as an adapter: ``extract("tuned", "base", "a.safetensors")``.

    Parameters
    ----------
    tuned, base:
        The checkpoint that was made, and the one that it was made from.
    output:
        The file to write.
    family:
        ``para`` (recovered, or refused if it was none), ``lora``, ``lokr`` or ``krona`` (the nearest).
    rank, energy, gamma, lokr_factor, kronecker, only, partial, dtype:
        See :class:`~paramerge.extract.families.ExtractOptions`.
    overwrite, rehash, progress:
        As for :func:`paramerge.bake`; ``progress`` counts layers.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.extract.extract.extract`.
    """
    options = ExtractOptions(
        family, rank, energy, gamma, lokr_factor, kronecker, patterns(only), partial, dtype
    )
    with hashing(rehash=rehash):
        return extract_opened(
            opened_base(tuned),
            opened_base(base),
            as_path(output, "output"),
            options,
            progress or (lambda done, total: None),
            overwrite=overwrite,
        )
