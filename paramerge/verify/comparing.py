"""A sink that holds what a plan makes against the bytes of a file, and hashes these on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np

from paramerge.apply.operations import FamilyOp, ParaOp
from paramerge.apply.tensor_plan import FilePlan, TensorPlan, matrix_shape
from paramerge.bake.spans import TensorSpans
from paramerge.files.content_hash import TensorDigests
from paramerge.files.header import Header, TensorInfo
from paramerge.verify.difference import Difference, Sums
from paramerge.verify.verdict import TensorDifference

_BLOCK = 1 << 19
"""Bytes compared at a time."""

_NARROW = ("F16", "F8_E4M3", "F8_E5M2")
_MOST_ROWS = 1024
"""Rows that are summed up in float32, at most (paramerge/apply/kernel.py)."""


class Comparer:
    """The tensors of a file, by key, against those that are made. Safe to use from several threads.

    The pieces of one tensor come from one worker, in their order. Tensors that the file lacks, or has of
    another dtype or shape, are passed by: :meth:`other_tensors` names them.
    """

    def __init__(
        self, name: str, header: Header, file: FilePlan, spans: TensorSpans, digests: TensorDigests | None
    ) -> None:
        self._name, self._header, self._file, self._spans = name, header, file, spans
        self._digests = digests
        self._found: dict[str, Difference] = {}
        self._local = threading.local()

    def write(self, data: memoryview, position: int) -> None:
        """Compare ``data``, which the output has at ``position``."""
        for plan, offset, piece in self._spans.cut(data, position):
            info = self._header.tensors.get(plan.info.key)
            if info is not None and _is_alike(plan, info):
                self._compare(info, offset, piece)

    @property
    def differences(self) -> list[TensorDifference]:
        """The tensors whose bytes differ, in the file's order."""
        plans = {plan.info.key: plan for plan in self._file.tensors}
        return [
            self._found[key].result(self._name, key, info.elements, _sums(plans[key]))
            for key, info in self._header.tensors.items()
            if key in self._found
        ]

    @property
    def other_tensors(self) -> Iterator[str]:
        """Tensors that one of the two has alone, or that are of another dtype or shape, a line each."""
        plans = {plan.info.key: plan for plan in self._file.tensors}
        for key, plan in plans.items():
            info = self._header.tensors.get(key)
            if info is None:
                yield f"{key} is missing"
            elif not _is_alike(plan, info):
                made = f"{plan.dtype} {list(plan.shape)}"
                yield f"{key} is {info.dtype} {list(info.shape)}, and {made} is made"
        yield from (f"{key} is not made by the recipe" for key in self._header.tensors if key not in plans)

    def _compare(self, info: TensorInfo, offset: int, piece: memoryview) -> None:
        for start in range(0, len(piece), _BLOCK):
            made = piece[start : start + _BLOCK]
            found = self._read(info.start + offset + start, len(made))
            if self._digests is not None:
                self._digests.update(info.key, found)
            same = np.array_equal(np.frombuffer(found, np.uint8), np.frombuffer(made, np.uint8))
            if same and info.key not in self._found:
                continue
            found = memoryview(bytes(found))  # what comes before it may have to be read
            difference = self._found.get(info.key) or self._begin(info, offset + start)
            if same:
                difference.add_same(made)
            else:
                difference.add(found, made)

    def _begin(self, info: TensorInfo, same: int) -> Difference:
        """The difference of a tensor of which so many bytes are the same."""
        difference = Difference(info.dtype)
        for start in range(0, same, _BLOCK):
            difference.add_same(self._read(info.start + start, min(_BLOCK, same - start)))
        self._found[info.key] = difference
        return difference

    def _read(self, start: int, count: int) -> memoryview:
        """Bytes of the file, valid until the next call in this thread."""
        buffer = getattr(self._local, "buffer", None)
        if buffer is None:
            buffer = self._local.buffer = memoryview(bytearray(_BLOCK))
        view: memoryview = buffer[:count]
        self._header.source.read_into(view, start)
        return view


def _is_alike(plan: TensorPlan, info: TensorInfo) -> bool:
    return (plan.dtype, tuple(plan.shape)) == (info.dtype, tuple(info.shape))


def _sums(plan: TensorPlan) -> Sums:
    """The sums behind a tensor: the bound of docs/architecture.md, of a merge its inputs among them."""
    dtypes = {plan.dtype, *(plan.values.dtypes if plan.values is not None else [plan.info.dtype])}
    eps = 2.0**-24 if dtypes <= {*_NARROW} else 2.0**-53
    ops = [op for edit in plan.edits for op in edit.ops]
    smallest = min(matrix_shape(plan.shape))
    n = 4 + sum(smallest if op.rank is None else op.rank for op in ops)
    if plan.values is not None or any(isinstance(op, ParaOp | FamilyOp) for op in ops):
        n += min(_MOST_ROWS, matrix_shape(plan.shape)[0])
    return Sums(n, eps)
