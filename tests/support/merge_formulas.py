"""The merge methods' formulas in NumPy float64, written from their papers; nothing here uses paramerge.

Each takes the models' tensors, as stored, and the parameters; ``masks`` are random choices, 1 for kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]


def weighted_sum(models: Sequence[Array], weights: Sequence[float]) -> Array:
    return np.asarray(sum(w * m for w, m in zip(weights, models, strict=True)))


def add_difference(models: Sequence[Array], strength: float) -> Array:
    a, b, c = models
    return a + strength * (b - c)


def train_difference(models: Sequence[Array], strength: float) -> Array:
    a, b, c = models
    near, far = np.abs(b - a), np.abs(b - c)
    with np.errstate(invalid="ignore"):
        share = np.nan_to_num(near / (near + far))
    return a + 1.8 * strength * share * (b - c)


def slerp(models: Sequence[Array], weights: Sequence[float]) -> Array:
    """Two models: Shoemake's formula. More: the mean on the sphere, by the definition that it minimises."""
    shares = np.asarray(weights) / np.sum(weights)
    lengths = np.array([np.linalg.norm(m) for m in models])
    units = [m / length for m, length in zip(models, lengths, strict=True)]
    if len(models) == 2:
        o = np.arccos(np.clip(np.sum(units[0] * units[1]), -1, 1))
        q = (np.sin((1 - shares[1]) * o) * units[0] + np.sin(shares[1] * o) * units[1]) / np.sin(o)
        return np.asarray((shares @ lengths) * q)
    q = sum(w * u for w, u in zip(shares, units, strict=True))
    q = q / np.linalg.norm(q)
    for _ in range(500):
        step = np.zeros_like(q)
        for w, u in zip(shares, units, strict=True):
            seen = np.sum(u * q)
            away = u - seen * q
            if np.linalg.norm(away) > 1e-300:
                step = step + w * np.arctan2(np.linalg.norm(away), seen) * away / np.linalg.norm(away)
        size = np.linalg.norm(step)
        if size < 1e-15:
            break
        q = np.cos(size) * q + np.sin(size) * step / size
    return np.asarray((shares @ lengths) * q)


def cosine(models: Sequence[Array], strength: float, whole: bool) -> Array:
    a, b = models
    flat_a, flat_b = (m.reshape(m.shape[0], -1) if m.ndim else m.reshape(1, 1) for m in models)
    lengths = np.linalg.norm(flat_a, axis=0) * np.linalg.norm(flat_b, axis=0)
    similarity = np.divide(
        (flat_a * flat_b).sum(axis=0), lengths, out=np.zeros_like(lengths), where=lengths > 0
    )
    if whole:
        similarity = (similarity + np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))) / 2
    k = np.clip(similarity - strength, 0, 1)
    return (k * flat_a + (1 - k) * flat_b).reshape(a.shape)


def largest(d: Array, count: int) -> NDArray[np.bool_]:
    """Which elements are among the ``count`` largest; all that are as large as the smallest of them."""
    if count == 0:
        return np.zeros(d.shape, bool)
    return np.asarray(np.abs(d) >= np.sort(np.abs(d).ravel())[::-1][count - 1])


def elected(differences: Sequence[Array], weights: Sequence[float]) -> Array:
    weighted = [w * d for w, d in zip(weights, differences, strict=True)]
    sign = np.sign(sum(weighted))
    agree = [(np.sign(d) == sign) & (sign != 0) for d in weighted]
    total = sum(d * own for d, own in zip(weighted, agree, strict=True))
    shares = sum(abs(w) * own for w, own in zip(weights, agree, strict=True))
    return np.divide(total, shares, out=np.zeros_like(total), where=shares > 0)


def added(
    models: Sequence[Array], kept: Sequence[Array], weights: Sequence[float], strength: float, elect: bool
) -> Array:
    together = elected(kept, weights) if elect else weighted_sum(kept, weights)
    return models[0] + strength * together


def ties(models: Sequence[Array], weights: Sequence[float], density: float, strength: float) -> Array:
    differences = [m - models[0] for m in models[1:]]
    kept = [d * largest(d, round(density * d.size)) for d in differences]
    return added(models, kept, weights, strength, elect=True)


def dare(
    models: Sequence[Array], masks: Sequence[Array], weights: Sequence[float], density: float,
    strength: float, signs: str, rescale: bool, seed: int,
) -> Array:  # fmt: skip
    kept = [k * (m - models[0]) / (density if rescale else 1) for k, m in zip(masks, models[1:], strict=True)]
    return added(models, kept, weights, strength, elect=signs == "elect")


def della_chances(d: Array, density: float, epsilon: float) -> Array:
    rows = d.reshape(d.shape[0], -1) if d.ndim > 1 else d.reshape(1, -1)
    ranks = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1)
    n = rows.shape[1]
    rise = ranks / (n - 1) if n > 1 else np.full(rows.shape, 0.5)
    return np.asarray((density - epsilon / 2 + epsilon * rise).reshape(d.shape))


def breadcrumbs(
    models: Sequence[Array],
    weights: Sequence[float],
    density: float,
    outliers: float,
    strength: float,
    signs: str,
) -> Array:
    kept = []
    for m in models[1:]:
        d = m - models[0]
        top = round(outliers * d.size)
        kept.append(d * largest(d, min(d.size, top + round(density * d.size))) * ~largest(d, top))
    return added(models, kept, weights, strength, elect=signs == "elect")


def model_stock(models: Sequence[Array]) -> Array:
    differences = [m - models[0] for m in models[1:]]
    n = len(differences)
    cosines = [
        np.sum(d * e) / (np.linalg.norm(d) * np.linalg.norm(e))
        for i, d in enumerate(differences)
        for e in differences[:i]
    ]
    c = np.mean(cosines)
    t = n * c / (1 + (n - 1) * c) if c > 0 else 0.0
    return np.asarray(models[0] + t * sum(differences) / n)


def geometric_median(models: Sequence[Array], weights: Sequence[float]) -> Array:
    """By a general minimiser, in the coordinates of the models."""
    shares = np.asarray(weights) / np.sum(weights)
    flat = np.stack([m.ravel() for m in models])

    def cost(c: Array) -> float:
        y = c @ flat[1:] + (1 - c.sum()) * flat[0]
        return float(shares @ np.linalg.norm(flat - y, axis=1))

    found = minimize(
        cost, shares[1:], method="Nelder-Mead", options={"xatol": 1e-12, "fatol": 1e-14, "maxiter": 9000}
    )
    return np.asarray((found.x @ flat[1:] + (1 - found.x.sum()) * flat[0]).reshape(models[0].shape))


def perpendicular(models: Sequence[Array], strength: float) -> Array:
    a, b, c = models
    d, e = b - c, a - c
    return a + strength * (d - np.sum(d * e) / np.sum(e * e) * e)


FORMULAS: dict[str, Callable[..., Any]] = {
    "weighted-sum": weighted_sum,
    "add-difference": add_difference,
    "train-difference": train_difference,
    "slerp": slerp,
    "cosine-a": lambda models, strength: cosine(models, strength, whole=False),
    "cosine-b": lambda models, strength: cosine(models, strength, whole=True),
    "ties": ties,
    "breadcrumbs": breadcrumbs,
    "model-stock": model_stock,
    "geometric-median": geometric_median,
    "perpendicular": perpendicular,
}
"""The methods without chance."""
