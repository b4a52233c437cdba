"""Writing a LoRA, in kohya's dialect unless another is asked for.

kohya's scripts, ComfyUI, AUTOMATIC1111 and diffusers all load kohya's.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from paramerge.adapters.folding import folded
from paramerge.adapters.rounding import rounded
from paramerge.errors import NonFiniteError, ShapeError, UsageError
from paramerge.files.dtype_names import parse_dtype
from paramerge.files.dtypes import NUMPY
from paramerge.files.writer import write_safetensors
from paramerge.formats.kohya import KOHYA, kohya_metadata
from paramerge.formats.registry import named_dialect
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class LoraFactors:
    """One layer to write: it changes the weight by ``alpha / r * up @ down``.

    Attributes
    ----------
    up, down:
        (d, r) and (r, k), any float dtype; k is ``in * kh * kw`` for a convolution.
    alpha:
        A finite number.
    kernel:
        ``(kh, kw)`` for a convolution, ``()`` for a linear layer.
    """

    up: np.ndarray
    down: np.ndarray
    alpha: float
    kernel: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        """The rank r."""
        return int(self.down.shape[0])


def write_lora(
    path: str | os.PathLike[str],
    layers: Mapping[ModuleName, LoraFactors],
    *,
    architecture: str | None,
    base_sha256: Sequence[str] = (),
    dtype: str = "F16",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    dialect: str = "kohya",
) -> None:
    """Write a LoRA file, whole or not at all; the same layers give the same bytes.

    Parameters
    ----------
    architecture:
        ``sd15``, ``sd2``, ``sdxl`` ...; None where it is not known. It decides the text encoders' prefix.
    base_sha256:
        SHA-256 (hex) of the checkpoint's files that it was made for; a single one goes to kohya's
        ``ss_new_sd_model_hash``, several to ``paramerge.base_sha256``.
    dtype:
        ``F16``, ``BF16`` or ``F32``: each element is rounded once to it. An alpha that it cannot hold is
        stored as F32.
    metadata:
        More metadata; they replace those that are written here.
    overwrite:
        Whether a file at ``path`` may be replaced.
    dialect:
        The key of the dialect (:func:`paramerge.formats.registry.writable`); where it has no place for an
        alpha, that is multiplied into the factors.

    Raises
    ------
    UsageError
        No layers, or a value that the format does not allow.
    ShapeError, NonFiniteError
        Factors that do not fit together, or that are not finite in ``dtype``.
    OutputError
        The file cannot be written.
    """
    dtype, own = parse_dtype(dtype), named_dialect(dialect)
    if not layers:
        raise UsageError("there is no layer to write", where=path, expected="at least one layer")
    alphas: dict[str, np.ndarray] = {}
    tensors: dict[str, np.ndarray] = {}
    for name, factors in layers.items():
        stem = own.stem(name, architecture)
        _check(name, factors)
        up, down = factors.up, factors.down
        if own.alpha == "tensor":
            alphas[own.written(stem, "alpha")] = stored_alpha(name, factors.alpha, dtype)
        elif factors.alpha != factors.rank:
            wide = up.astype(np.float64), down.astype(np.float64)
            up, down = folded(*wide, factors.alpha / factors.rank, dtype)
        up, down = rounded(name, up, dtype), rounded(name, down, dtype)
        if factors.kernel:
            up = up.reshape(*up.shape, 1, 1)
            down = down.reshape(down.shape[0], -1, *factors.kernel)
        tensors[own.written(stem, "down")] = down
        tensors[own.written(stem, "up")] = up
    # the widest elements first, so that every tensor begins at a multiple of its element's size
    ordered = dict(sorted({**tensors, **alphas}.items(), key=lambda item: -item[1].itemsize))
    sizes = [(factors.rank, factors.alpha) for factors in layers.values()]
    entries = kohya_metadata(sizes, architecture, base_sha256)
    if own.base != KOHYA.key:
        entries |= own.metadata([_Written(name, each.rank) for name, each in layers.items()], architecture)
    entries |= dict(metadata or {})
    write_safetensors(path, ordered, entries, overwrite=overwrite)


@dataclass(frozen=True)
class _Written:
    """A layer of scale 1, for a dialect's metadata."""

    name: ModuleName
    rank: int
    family: str = "lora"
    alpha: float | None = None


def _check(name: ModuleName, factors: LoraFactors) -> None:
    up, down = factors.up, factors.down
    kernel = math.prod(factors.kernel)
    if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0] or 0 in (*up.shape, *down.shape):
        raise ShapeError(
            "the factors of a layer do not fit together",
            where=name,
            expected="up (d, r) and down (r, k) with r at least 1",
            found=f"up {list(up.shape)}, down {list(down.shape)}",
        )
    if len(factors.kernel) not in (0, 2) or down.shape[1] % kernel:
        raise ShapeError(
            "the kernel does not fit the down factor",
            where=name,
            expected="k a multiple of kh * kw",
            found=f"kernel {list(factors.kernel)}, k {down.shape[1]}",
        )


def stored_alpha(name: ModuleName, alpha: float, dtype: str) -> np.ndarray:
    """The alpha in ``dtype``, or in F32 where that cannot hold it; NonFiniteError if neither can."""
    single = np.float32(alpha)
    if not math.isfinite(alpha) or not np.isfinite(single) or (single == 0 and alpha != 0):
        raise NonFiniteError(
            "an alpha cannot be stored", where=name, expected="a number in the range of F32", found=alpha
        )
    with np.errstate(over="ignore", under="ignore"):
        narrow = np.asarray(alpha, NUMPY[dtype])
    return narrow if float(narrow) == alpha else np.asarray(alpha, np.float32)
