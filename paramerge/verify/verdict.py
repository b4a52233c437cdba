"""The outcome of a verification, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Verdict = Literal["identical", "differs", "cannot tell", "damaged"]

EXIT_CODES: Mapping[Verdict, int] = {"identical": 0, "differs": 10, "cannot tell": 11, "damaged": 12}
"""The exit codes of ``paramerge verify``; errors have their own (:mod:`paramerge.errors`)."""


@dataclass(frozen=True)
class TensorDifference:
    """A tensor of the output that is not what the recipe makes.

    Attributes
    ----------
    elements, of:
        The number of elements that differ, and of all.
    relative_error:
        ``||found - made|| / ||made||`` (Frobenius); infinite where an element is NaN or Inf. None for whole
        numbers and codes.
    units:
        The largest difference of an element, in numbers of its dtype that lie between: units in the last
        place. None where there is no relative error.
    is_rounding:
        Whether all elements are as near as two computations with other instructions or versions may come.
    """

    file: str
    key: str
    dtype: str
    elements: int
    of: int
    relative_error: float | None
    units: int | None
    is_rounding: bool


@dataclass(frozen=True)
class Verification:
    """The outcome of :func:`paramerge.verify`.

    Attributes
    ----------
    verdict:
        ``identical``: made again, all of it the same. ``differs``: made again, and not the same.
        ``cannot tell``: inputs are missing, or differences are within the rounding of other versions.
        ``damaged``: not what was once written, by its own hashes.
    findings:
        The reasons, and all that was noticed, a line each.
    header:
        Whether every header has its own hash; None where there is none.
    content:
        Whether the tensors have the content hash of the recipe; None where it has none.
    is_made_again:
        Whether the inputs were there, and everything was computed again.
    tensors:
        The number of tensors that were made again and compared.
    differences:
        The tensors that are not what was made.
    versions:
        By package (``kernel``: the processor's instructions), the version of the recipe and the one here,
        where they differ.
    missing:
        The inputs that are not there.
    """

    path: Path
    verdict: Verdict
    findings: tuple[str, ...]
    header: bool | None = None
    content: bool | None = None
    is_made_again: bool = False
    tensors: int = 0
    bytes: int = 0
    differences: tuple[TensorDifference, ...] = ()
    versions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """The exit code of ``paramerge verify``."""
        return EXIT_CODES[self.verdict]

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        return {**asdict(self), "path": str(self.path), "exit_code": self.exit_code}
