"""The changes of additive families, made by blocks of rows, so that none need be whole in memory."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_BLOCK_ELEMENTS = 1 << 20


class Change(ABC):
    """A matrix (d, k) in float64 that is known by its factors."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(d, k)``."""

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, (stop - start, k)."""

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """All rows in blocks of a few MiB, each with its first row's index."""
        rows, columns = self.shape
        step = max(1, _BLOCK_ELEMENTS // max(1, columns))
        for start in range(0, rows, step):
            yield start, self.rows(start, min(start + step, rows))

    def whole(self) -> np.ndarray:
        """All of it."""
        return self.rows(0, self.shape[0])

    def norm(self) -> float:
        """Its Frobenius norm."""
        return math.hypot(*(frobenius_norm(block) for _, block in self.blocks()))


@dataclass(frozen=True)
class Product(Change):
    """``scale * B A``: B (d, r), A (r, k)."""

    B: np.ndarray
    A: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        found: np.ndarray = (self.scale * self.B[start:stop]) @ self.A
        return found

    def norm(self) -> float:
        """Its Frobenius norm, without forming it."""
        return abs(self.scale) * product_norm(self.B, self.A)


@dataclass(frozen=True)
class Hadamard(Change):
    """``scale * (B1 A1) o (B2 A2)``, element by element: Bi (d, r), Ai (r, k)."""

    B1: np.ndarray
    A1: np.ndarray
    B2: np.ndarray
    A2: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.B1.shape[0], self.A1.shape[1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        found: np.ndarray = (self.B1[start:stop] @ self.A1) * (self.B2[start:stop] @ self.A2)
        found *= self.scale
        return found


@dataclass(frozen=True)
class Kronecker(Change):
    """``scale * (L (x) R)``: L (a, b), R (c, e), the product (a c, b e)."""

    L: np.ndarray
    R: np.ndarray
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.L.shape[0] * self.R.shape[0], self.L.shape[1] * self.R.shape[1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        left, right = np.divmod(np.arange(start, stop), self.R.shape[0])
        return self._outer(left, right)

    def _outer(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Rows that are ``L[left] (x) R[right]``, one for each pair."""
        found = (self.scale * self.L[left])[:, :, None] * self.R[right][:, None, :]
        return np.asarray(found.reshape(len(left), self.shape[1]))

    def norm(self) -> float:
        return abs(self.scale) * frobenius_norm(self.L) * frobenius_norm(self.R)


@dataclass(frozen=True)
class ShuffledKronecker(Kronecker):
    """``L (x) R`` with its rows in the order of DiffuseKronA's public code: R's index runs slowest."""

    def rows(self, start: int, stop: int) -> np.ndarray:
        right, left = np.divmod(np.arange(start, stop), self.L.shape[0])
        return self._outer(left, right)


@dataclass(frozen=True)
class Difference(Change):
    """A matrix as it is."""

    D: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.D.shape[0], self.D.shape[1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self.D[start:stop]


@dataclass(frozen=True)
class Rows(Change):
    """Runs ``(start, stop)`` of another change's rows, one after the other."""

    of: Change
    runs: tuple[tuple[int, int], ...]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(stop - start for start, stop in self.runs), self.of.shape[1]

    def rows(self, start: int, stop: int) -> np.ndarray:
        found, first = [], 0  # `first`: where a run begins among these rows
        for begin, end in self.runs:
            here = range(max(start - first, 0), min(stop - first, end - begin))
            if here:
                found.append(self.of.rows(begin + here.start, begin + here.stop))
            first += end - begin
        return np.concatenate(found) if found else np.zeros((0, self.shape[1]))


def frobenius_norm(values: np.ndarray) -> float:
    """Frobenius norm of float64 numbers, also of those whose squares are beyond float64's range."""
    unit = _unit(values, 150)
    return float(np.linalg.norm(values / unit)) * unit if unit != 1 else float(np.linalg.norm(values))


def product_loss(up: np.ndarray, down: np.ndarray, new_up: np.ndarray, new_down: np.ndarray) -> float:
    """``||B'A' - BA|| / ||BA||`` of thin factors; 0 where they are the same."""
    B, A = new_up.astype(np.float64), new_down.astype(np.float64)
    off_up, off_down = B - up, A - down
    if not (off_up.any() or off_down.any()):
        return 0.0
    # B'A' - BA = (B' - B) A' + B (A' - A): thin, and nothing cancels
    lost = product_norm(np.concatenate([off_up, up], axis=1), np.concatenate([A, off_down], axis=0))
    norm = product_norm(up, down)
    return lost / norm if norm else 0.0


def product_norm(up: np.ndarray, down: np.ndarray) -> float:
    """Frobenius norm of ``up @ down`` from two r x r matrices: ``||BA||^2 = sum((B^T B) * (A A^T))``.

    Float64, in which the fourth powers of the factors' numbers are kept within range.
    """
    units = _unit(up, 70), _unit(down, 70)
    B, A = (X if unit == 1 else X / unit for X, unit in zip((up, down), units, strict=True))
    squared = float(np.sum((B.T @ B) * (A @ A.T)))
    # rounding can leave a product that is zero a little below it; NaN stays NaN
    return math.sqrt(squared if not squared < 0 else 0.0) * units[0] * units[1]


def _unit(values: np.ndarray, exponent: int) -> float:
    """The power of two nearest the largest number, or 1 where that is within 10^-exponent to 10^exponent."""
    largest = float(np.max(np.abs(values), initial=0.0))
    if largest == 0 or not math.isfinite(largest) or 10.0**-exponent < largest < 10.0**exponent:
        return 1.0
    return math.ldexp(1.0, math.frexp(largest)[1] - 1)
