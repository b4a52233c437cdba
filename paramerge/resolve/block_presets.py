"""Vectors of block weights that go by a name, as the tables that users of block merges share have them.

Each is 26 numbers for a UNet of SD1.5: ``BASE``, ``IN00`` to ``IN11``, ``MID``, ``OUT00`` to ``OUT11``. But
for ``ALL_B`` the base is 0. The curves go over the 25 blocks, ``x`` from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

_BLOCKS = 25


def _curve(shape: Callable[[float], float]) -> tuple[float, ...]:
    return (0.0, *(shape(index / (_BLOCKS - 1)) for index in range(_BLOCKS)))


def _at(places: Iterable[int], value: float = 1.0, soft: Iterable[int] = ()) -> tuple[float, ...]:
    """``value`` at these of the 25 blocks, half of it at others, else 0."""
    full, half = set(places), set(soft)
    return (0.0, *(value if i in full else value / 2 if i in half else 0.0 for i in range(_BLOCKS)))


def _ends(each: int) -> tuple[float, ...]:
    return _at([*range(each), *range(_BLOCKS - each, _BLOCKS)])


def _smooth(x: float) -> float:
    return x * x * (3 - 2 * x)


def _folded(x: float) -> float:
    """Up from 0 to 1, down again, and so on."""
    rest = x % 2
    return min(rest, 2 - rest)


def _reverse(vector: tuple[float, ...]) -> tuple[float, ...]:
    return (vector[0], *(1 - value for value in vector[1:]))


_HERMITE = _curve(lambda x: 25 / 6 * x * (1 - x) * (1 - 2 * x) + _smooth(x))
_RISING = {
    "SMOOTHSTEP": _curve(_smooth),
    **{f"SMOOTHSTEP*{n}": _curve(lambda x, n=n: _folded(n * _smooth(x))) for n in (2, 3, 4)},  # type: ignore[misc]
    **{f"SMOOTHSTEP/{n}": _curve(lambda x, n=n: _smooth(_folded(n * x))) for n in (2, 3, 4)},  # type: ignore[misc]
}

PRESETS = {
    "GRAD_V": _curve(lambda x: abs(1 - 2 * x)),
    "GRAD_A": _curve(lambda x: 1 - abs(1 - 2 * x)),
    "FLAT_25": _curve(lambda x: 0.25),
    "FLAT_75": _curve(lambda x: 0.75),
    **{f"WRAP{count:02}": _ends(count // 2) for count in (8, 12, 14, 16)},
    "MID12_50": _at(range(5, 19), 0.5),
    "OUT07": _at(range(18, 25)),
    "OUT12": _at(range(13, 25)),
    "OUT12_5": _at(range(13, 25), soft=[12]),
    "RING08_SOFT": _at([6, 7, 8, 16, 17, 18], soft=[5, 9, 15, 19]),
    "RING08_5": _at([*range(6, 10), *range(15, 19)]),
    "RING10_5": _at([*range(5, 10), *range(15, 20)]),
    "RING10_3": _at([*range(6, 11), *range(14, 19)]),
    **_RISING,
    **{
        f"{'REVERSE-' if name == 'SMOOTHSTEP' else 'R_'}{name}": _reverse(vector)
        for name, vector in _RISING.items()
    },
    "COSINE": _curve(lambda x: (1 + math.cos(math.pi * x)) / 2),
    "REVERSE_COSINE": _curve(lambda x: (1 - math.cos(math.pi * x)) / 2),
    "FAKE_CUBIC_HERMITE": _HERMITE,
    "FAKE_REVERSE_CUBIC_HERMITE": _reverse(_HERMITE),
    "ALL_A": (0.0,) * (_BLOCKS + 1),
    "ALL_B": (1.0,) * (_BLOCKS + 1),
}
"""By name, in capitals."""
