"""A user's decisions where files of one shape mean different things to different trainers."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from typing import Literal

from paramerge.errors import UsageError
from paramerge.wording import option

KronaOrder = Literal["code", "paper"]

KRONA_KEY = "krona.order"
"""Metadata key of a DiffuseKronA whose rows are not in the published code's order: ``paper``."""

_ROWS = re.compile(r"(stacked|interleaved)|stacked:([1-9]\d{0,5})")


@dataclass(frozen=True, slots=True)
class Interpretation:
    """The user's decision on a question that a file leaves open; None everywhere follows the file's own
    trainer.

    Attributes
    ----------
    lokr_scale:
        The factor on a LoKr layer with two whole factors. LyCORIS takes 1 for every alpha, PEFT alpha / r.
    krona:
        The order of a DiffuseKronA's rows: ``code``, as the published code computes, or ``paper``, the plain
        ``A (x) B``.
    rows:
        The order of the rows in an adapter's layers that hold q, k and v, for bases that have them head by
        head (MiniMax H3): ``stacked``, all of q, then k, then v, or ``interleaved``, as the base has them.
        ``stacked:128`` says the width of a head, too, where the base does not.
    alpha:
        The alpha of a PEFT file without its configuration: ``rank``, or a number.
    released:
        Whether files of kohya's names are PaRas of the authors' released code, ``W - up down``: ``yes`` or
        ``no``.
    """

    lokr_scale: float | None = None
    krona: KronaOrder | None = None
    rows: str | None = None
    alpha: str | None = None
    released: str | None = None

    def __post_init__(self) -> None:
        if self.lokr_scale is not None and not math.isfinite(self.lokr_scale):
            raise UsageError(
                "the scale is not a finite number", where=option("lokr_scale"), found=self.lokr_scale
            )
        if self.krona not in (None, "code", "paper"):
            raise UsageError(
                "no such order", where=option("krona"), expected="code or paper", found=self.krona
            )
        if self.rows is not None and not _ROWS.fullmatch(self.rows):
            raise UsageError(
                "no such order of rows",
                where=option("rows"),
                expected="interleaved, stacked, or stacked:WIDTH with the width of a head",
                found=self.rows,
            )

        if self.released not in (None, "yes", "no"):
            raise UsageError(
                "no such choice", where=option("released"), expected="yes or no", found=self.released
            )
        if self.alpha not in (None, "rank") and not _is_number(str(self.alpha)):
            raise UsageError(
                "no such alpha", where=option("alpha"), expected="rank, or a number", found=self.alpha
            )

    @property
    def stated_alpha(self) -> float | None:
        """The number of :attr:`alpha`; None where the rank is meant."""
        return None if self.alpha in (None, "rank") else float(str(self.alpha))

    @property
    def head_width(self) -> int | None:
        """The rows that q, k and v each have of a head, where :attr:`rows` says so."""
        stated = (self.rows or "").partition(":")[2]
        return int(stated) if stated else None

    @property
    def decided(self) -> dict[str, object]:
        """The decisions that are not left to the file's own trainer, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


BY_TRAINER = Interpretation()
"""Everything as the file's own trainer has it."""
