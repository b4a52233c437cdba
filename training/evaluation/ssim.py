"""Structural similarity of pictures, and which pairs of a set are compared.

The diversity of a set is the mean SSIM over its pairs: the higher, the more alike the pictures are.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from paramerge.errors import UsageError

__all__ = ["SSIM", "pairs_of", "ssim"]

SSIM = "SSIM (torchmetrics, Gaussian window of 11, sigma 1.5, RGB)"
"""The metric in words, for tables and files."""
_SMALLEST = 11


def pairs_of(count: int, limit: int | None = None, seed: int = 0) -> np.ndarray:
    """The pairs (i, j), i < j, of ``count`` pictures, int64 (pairs, 2), in order.

    Parameters
    ----------
    limit:
        At most as many, drawn at random by ``seed`` without repetition; None for all.
    """
    total = math.comb(count, 2)
    rows, columns = np.triu_indices(count, 1)
    pairs = np.stack([rows, columns], axis=1).astype(np.int64)
    if limit is None or limit >= total:
        return pairs
    chosen = np.random.default_rng(seed).choice(total, limit, replace=False)
    return pairs[np.sort(chosen)]


def ssim(first: np.ndarray, second: np.ndarray, device: str = "cpu") -> np.ndarray:
    """The SSIM of each pair, float64 (n,), of uint8 pictures (n, height, width, 3).

    Computed in float64 (float32 on devices that have no other): on plain backgrounds the variances that
    SSIM divides by are differences of nearly equal numbers.

    Raises
    ------
    UsageError
        The pictures have different sizes, or are smaller than SSIM's window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if first.shape != second.shape or min(first.shape[1:3]) < _SMALLEST:
        raise UsageError(
            "SSIM cannot compare these pictures",
            expected=f"pictures of one size, {_SMALLEST} pixels or more",
            found=f"{first.shape[1:3]} and {second.shape[1:3]}",
        )
    dtype = torch.float32 if device.startswith("mps") else torch.float64
    a, b = (torch.from_numpy(part).to(device).permute(0, 3, 1, 2).to(dtype) / 255 for part in (first, second))
    with torch.no_grad():
        values = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    return np.atleast_1d(torch.as_tensor(values).cpu().double().numpy())
