"""The dtypes by all names that people and programs give them: ``fp16``, ``F16``, ``float16``, torch.half.

One table and one parser for every ``dtype`` of the library and of the command line. NumPy is not needed here,
so that ``--help`` stays quick.
"""

from __future__ import annotations

from collections.abc import Sequence

from paramerge.errors import UsageError
from paramerge.wording import option

_SPELLINGS = {
    "F64": ("fp64", "float64", "double"),
    "F32": ("fp32", "float32", "float"),
    "F16": ("fp16", "float16", "half"),
    "BF16": ("bf16", "bfloat16"),
    "F8_E4M3": ("fp8_e4m3", "float8_e4m3fn", "f8_e4m3fn", "float8_e4m3"),
    "F8_E5M2": ("fp8_e5m2", "float8_e5m2"),
}
"""The name in safetensors; then the short one that paramerge shows, that of NumPy and torch, and others."""

WRITTEN = ("F16", "BF16", "F32")
"""Dtypes that adapters and converted models are written in."""

KEEP = "keep"
"""In the place of a dtype: each tensor keeps its own."""

_CANONICAL = {spelling.lower(): dtype for dtype, names in _SPELLINGS.items() for spelling in (dtype, *names)}


def parse_dtype(value: object, allowed: Sequence[str] = WRITTEN, name: str = "dtype") -> str:
    """The name in safetensors of a dtype in any spelling; a dtype of NumPy or torch will do, too.

    ``name`` is the argument that it was given for.

    Raises
    ------
    UsageError
        It is none of ``allowed`` (names in safetensors, and perhaps :data:`KEEP`).
    """
    dtype = value if isinstance(value, str) and value in allowed else dtype_named(value)
    if dtype not in allowed:
        raise UsageError(
            "this dtype cannot be chosen",
            where=option(name),
            expected=", ".join(map(short_name, allowed)),
            found=value,
        )
    return str(dtype)


def dtype_named(value: object) -> str:
    """The name in safetensors of a dtype in any spelling; of any other text, the text in capitals."""
    text = value.__name__ if isinstance(value, type) else str(value)  # numpy.float16 is a class
    text = text.strip().removeprefix("torch.")
    return _CANONICAL.get(text.lower(), text.upper())


def short_name(dtype: str) -> str:
    """The short name that is shown (``fp16``) of a name in safetensors; others are as they are."""
    return _SPELLINGS[dtype][0] if dtype in _SPELLINGS else dtype


def library_name(dtype: str) -> str:
    """NumPy's and torch's name (``float16``) of a name in safetensors (one of :data:`WRITTEN`)."""
    return _SPELLINGS[dtype][1]
