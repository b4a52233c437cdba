"""How much of an adapter is kept: a rank, a share of its energy, a rank boundary; one rule for all verbs."""

from __future__ import annotations

from paramerge.errors import UsageError
from paramerge.wording import option


def check_amounts(
    rank: int | None = None, energy: float | None = None, gamma: float | None = None, *, one: bool = False
) -> None:
    """Refuse amounts that there cannot be; None is none.

    Parameters
    ----------
    rank:
        How many directions: 1 or more.
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
            "say how much is kept, in one way",
            where=f"{option('rank')}, {option('energy')}",
            expected=f"{option('rank')} with a number, or {option('energy')} with a share",
            found="neither" if rank is None else "both",
        )
    if rank is not None and rank < 1:
        raise UsageError(
            "a rank counts directions", where=option("rank"), expected="a whole number above 0", found=rank
        )
    for name, said, value in (
        ("energy", "an energy is a share of the squared norm", energy),
        ("gamma", "gamma is a share of a layer's rank", gamma),
    ):
        if value is not None and not 0 < value <= 1:
            raise UsageError(said, where=option(name), expected="a number above 0 and at most 1", found=value)
