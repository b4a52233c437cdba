"""Model stock: how far from the first model the mean of its fine-tunes should be taken."""

from __future__ import annotations

import numpy as np

from paramerge.merge.methods.method import Method


def model_stock(gram: np.ndarray) -> np.ndarray:
    """Model stock: ``m0 + t mean(m_i - m0)`` with ``t = N c / (1 + (N - 1) c)``.

    ``c`` is the mean cosine between the differences of the N models to the first, of the tensor as one
    vector. Where ``c`` is not above 0, or a model does not differ, nothing is shared: ``t`` is 0.
    """
    differences = gram[1:, 1:]
    count = len(differences)
    lengths = np.sqrt(np.diag(differences))
    if not lengths.all():
        return np.zeros(count + 1)
    cosines = differences / np.outer(lengths, lengths)
    c = (cosines.sum() - count) / (count * (count - 1))
    t = max(0.0, count * c / (1 + (count - 1) * c)) if c > 0 else 0.0
    return np.concatenate([[0.0], np.full(count, t / count)])


MODEL_STOCK = Method(
    "model-stock",
    model_stock,
    "differences",
    (3, None),
    "Jang et al. 2024, arXiv:2403.19522, equation 6",
)
