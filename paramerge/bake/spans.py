"""Places of tensors in an output file: a piece of its bytes cut into pieces of tensors; sinks for both."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from paramerge.apply.tensor_plan import TensorPlan
from paramerge.files.content_hash import TensorDigests


class Sink(Protocol):
    """The place that the bytes of an output go to, from several threads, in pieces that do not overlap."""

    def write(self, data: memoryview, position: int) -> None:
        """Take ``data``, which is at ``position`` of the file."""


class TensorSpans:
    """The tensors of a file whose data begin at ``data_start``, one after the other."""

    def __init__(self, tensors: Sequence[TensorPlan], data_start: int) -> None:
        self._tensors = tensors
        self._starts = list(accumulate((tensor.nbytes for tensor in tensors), initial=data_start))

    def cut(self, data: memoryview, position: int) -> Iterator[tuple[TensorPlan, int, memoryview]]:
        """Each piece of a tensor in ``data``, which is at ``position``, with its offset in the tensor."""
        index = bisect_right(self._starts, position) - 1
        done = 0
        while done < len(data):
            offset = position + done - self._starts[index]
            count = min(self._starts[index + 1] - position - done, len(data) - done)
            if count:
                yield self._tensors[index], offset, data[done : done + count]
            done += count
            index += 1


class HashedSink:
    """A sink that adds every tensor to ``digests`` on the way into another.

    The pieces of one tensor come from one worker, in their order.
    """

    def __init__(self, sink: Sink, spans: TensorSpans, digests: TensorDigests) -> None:
        self._sink, self._spans, self._digests = sink, spans, digests

    def write(self, data: memoryview, position: int) -> None:
        """Hash ``data`` and pass it on."""
        for tensor, _, piece in self._spans.cut(data, position):
            self._digests.update(tensor.info.key, piece)
        self._sink.write(data, position)
