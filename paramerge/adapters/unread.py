"""The one rule for keys of an adapter that become no change: refused, unless the user allowed it."""

from __future__ import annotations

from collections.abc import Sequence

from paramerge.adapters.adapter import Adapter
from paramerge.errors import UnmatchedError
from paramerge.models.names import ModuleName
from paramerge.wording import option

_SHOWN = 8


def refuse_unread(
    adapter: Adapter,
    *,
    allowed: bool,
    unmatched: Sequence[ModuleName] = (),
    base: str | None = None,
    guess: str | None = None,
) -> None:
    """Refuse keys that a verb would leave out, listed with the reason.

    Parameters
    ----------
    allowed:
        The user's word that they may be left out.
    unmatched:
        Layers of the adapter that the base does not have.
    base:
        The base of the adapter, in words, where there is one.
    guess:
        Why the base does not have the ``unmatched``.

    Raises
    ------
    UnmatchedError
        There are such keys or layers, and they are not ``allowed``.
    """
    keys = [key for leftover in adapter.leftovers for key in leftover.keys]
    count = len(unmatched) + len(keys)
    if allowed or not count:
        return
    one = count == 1
    fault = "is not understood" if one else "are not understood"
    if base is not None:
        fault = f"{'lands' if one else 'land'} nowhere in the base"
    reasons = dict.fromkeys(leftover.reason for leftover in adapter.leftovers)
    raise UnmatchedError(
        f"{count} {'key' if one else 'keys'} of this adapter {fault}",
        where=adapter.path,
        expected=f"layers of {base}" if base is not None else "keys that are all of a known layer",
        found=shown([*map(str, unmatched), *keys]),
        hint=f"{'; '.join([*([guess] if guess else []), *reasons])}; to go on without them, add "
        f"{option('allow_unmatched')}",
    )


def unread_warnings(adapter: Adapter) -> list[str]:
    """A line for each reason: how many keys were left out, which, and why."""
    return [
        f"{adapter.path.name}: {len(item.keys)} keys are left out ({item.reason}): {shown(item.keys)}"
        for item in adapter.leftovers
    ]


def shown(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    first = ", ".join(names[:_SHOWN])
    return first if len(names) <= _SHOWN else f"{first}, and {len(names) - _SHOWN} more"
