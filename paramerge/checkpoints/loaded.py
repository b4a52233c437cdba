"""A model in memory as a base: its layers are named and planned on, and nothing of it is read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from paramerge.checkpoints.layout import Base, base_of
from paramerge.files.dtypes import BITS
from paramerge.files.header import Header, TensorInfo
from paramerge.files.source import Source


def base_of_tensors(name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32") -> Base:
    """The base that a file with these tensors would be.

    Parameters
    ----------
    name:
        The name of the model in errors.
    shapes:
        Key to shape, with the keys of a single file (``model.diffusion_model.*``, ``text_encoders.*``).
    dtype:
        The dtype that results are rounded to, by a header's name.

    Raises
    ------
    CheckpointError
        What :func:`~paramerge.checkpoints.layout.open_base` refuses: an adapter, a model with gaps ...
    """
    tensors = {}
    for key, shape in shapes.items():
        info = TensorInfo(key, dtype, tuple(shape), 0, 0)
        tensors[key] = info._replace(stop=info.elements * BITS[dtype] // 8)
    with tempfile.TemporaryFile() as empty:
        descriptor = os.dup(empty.fileno())
        source = Source(Path(name), descriptor, os.fstat(descriptor))
    return base_of(Header(source, tensors, {}, 0, 0))
