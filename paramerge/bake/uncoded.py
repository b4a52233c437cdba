"""Layers that were to be written as codes, as plain numbers after all."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from paramerge.apply.tensor_plan import FilePlan, TensorPlan


def without_codes(file: FilePlan, keys: Collection[str], dtype: str) -> FilePlan:
    """The plan of a file with the weights of ``keys`` in ``dtype``, without their scales and marks."""
    layers = [layer for key in keys if (layer := file.source.quantised.get(key)) is not None]
    gone = {tensor.key for layer in layers for tensor in layer.tensors} - set(keys)
    tensors = tuple(
        _plain(tensor, dtype) if tensor.info.key in keys else tensor
        for tensor in file.tensors
        if tensor.written_with not in keys and tensor.info.key not in gone
    )
    dequantised = tuple(dict.fromkeys((*file.dequantised, *layers)))
    return replace(file, tensors=tensors, dequantised=dequantised)


def _plain(tensor: TensorPlan, dtype: str) -> TensorPlan:
    return replace(tensor, dtype=dtype, encoding=None)
