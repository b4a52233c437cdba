"""The part of an adapter to keep: a rank, a share of its energy, a rank boundary; one rule for every verb."""

from __future__ import annotations

from paramerge.errors import UsageError
from paramerge.wording import option


def check_amounts(
    rank: int | None = None, energy: float | None = None, gamma: float | None = None, *, one: bool = False
) -> None:
    """Refuse amounts that are out of range; None stands for no such amount.

    Parameters
    ----------
    rank:
        The number of directions, 1 or more.
    energy:
        The share of the squared norm, in (0, 1].
    gamma:
        The rank boundary of the paper's equation 8, in (0, 1].
    one:
        Whether exactly one of ``rank`` and ``energy`` must be given.

    Raises
    ------
    UsageError
    """
    if one and (rank is None) == (energy is None):
        raise UsageError(
            "the amount to keep is not given in one way",
            where=f"{option('rank')}, {option('energy')}",
            expected=f"{option('rank')} with a number, or {option('energy')} with a share",
            found="neither" if rank is None else "both",
        )
    if rank is not None and rank < 1:
        raise UsageError(
            "the rank is out of range", where=option("rank"), expected="a whole number above 0", found=rank
        )
    for name, value in (("energy", energy), ("gamma", gamma)):
        if value is not None and not 0 < value <= 1:
            raise UsageError(
                f"{name} is out of range",
                where=option(name),
                expected="a number above 0 and at most 1",
                found=value,
            )
