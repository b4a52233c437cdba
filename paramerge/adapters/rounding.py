"""Tensors of adapters in the dtype that they are stored in, rounded once and checked."""

from __future__ import annotations

import numpy as np

from paramerge.errors import NonFiniteError
from paramerge.files.dtypes import NUMPY
from paramerge.models.names import ModuleName
from paramerge.wording import option


def rounded(name: ModuleName, factor: np.ndarray, dtype: str) -> np.ndarray:
    """The factor in ``dtype``.

    Raises
    ------
    NonFiniteError
        It holds NaN or Inf, or a number beyond the range of ``dtype``.
    """
    with np.errstate(over="ignore", under="ignore"):  # an overflow is refused just below
        stored = np.asarray(factor).astype(NUMPY[dtype])
    if not np.isfinite(stored.astype(np.float32)).all():
        finite = np.isfinite(np.asarray(factor, np.float64)).all()
        raise NonFiniteError(
            f"a factor is beyond the range of {dtype}" if finite else "a factor holds NaN or Inf",
            where=name,
            hint=f"store it with {option('dtype', 'bf16')} or fp32"
            if finite
            else "the adapter's training diverged",
        )
    return stored
