"""One thread: read a piece of the source, edit its tensors, write it at its place in the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from paramerge.apply.dense import LayerResult, room_for
from paramerge.apply.encoder import Encoder
from paramerge.apply.kernel import Blocks, TensorEditor, as_codes, as_matrix
from paramerge.apply.tensor_plan import TensorPlan, matrix_shape
from paramerge.bake.spans import Sink
from paramerge.bake.tasks import BUFFER_BYTES, Placed, Task, held_bytes
from paramerge.files.positioned import ALIGNMENT, aligned_buffer
from paramerge.files.source import Source


class TensorStream:
    """A worker's buffers, with the source and the sink. Not shared between threads.

    Memory does not grow with the tensors: a weight larger than the buffer is read twice when a step depends
    on it, once to look at and once to write.
    """

    def __init__(self, source: Source, sink: Sink, report: Callable[[int], None]) -> None:
        self._source = source
        self._sink = sink
        self._report = report
        self._input = _buffer()
        self._output: memoryview | None = None
        self._blocks = Blocks()

    def run(self, task: Task) -> list[LayerResult]:
        """Do one task; returns the outcome for its layers."""
        if not task.large:
            return self._run_group(task.tensors)
        if task.tensors[0].plan.touched:
            with room_for(task.tensors[0].plan):
                return self._run_large(task.tensors[0])
        self._copy_large(task.tensors[0])
        return []

    def _run_group(self, tensors: Sequence[Placed]) -> list[LayerResult]:
        first, last = tensors[0], tensors[-1]
        converted = any(placed.plan.converted for placed in tensors)
        size = last.position + last.plan.nbytes - first.position
        if all(placed.plan.values is not None for placed in tensors):  # none is copied from the source
            data = out = self._output_view(size, first.position)
        else:
            data = self._read(first.plan.info.start, last.plan.info.stop, first.position)
            out = self._output_view(size, first.position) if converted else data
        results = []
        for placed in tensors:
            start = placed.plan.info.start - first.plan.info.start
            source = data[start : start + placed.plan.info.nbytes]
            target = out[placed.position - first.position :][: placed.plan.nbytes]
            if placed.plan.touched and target:
                with room_for(placed.plan):
                    results += self._edit(placed, source, target)
            elif converted:
                target[:] = source
        self._sink.write(out, first.position)
        self._report(last.plan.info.stop - first.plan.info.start)
        return results

    def _edit(self, placed: Placed, source: memoryview, target: memoryview) -> list[LayerResult]:
        plan = placed.plan
        columns = matrix_shape(plan.shape)[1]
        out = _matrix(plan, target, columns)
        weight = out if plan.values is not None else as_matrix(source, plan.info.dtype, columns)
        editor = TensorEditor(plan, self._blocks)
        if editor.must_look:
            editor.look(weight, 0)
        if editor.encoder is not None:
            editor.measure(weight, 0)
            self._write_parts(editor.encoder, placed)
        editor.write(weight, out, 0)
        return editor.results

    def _write_parts(self, encoder: Encoder, placed: Placed) -> None:
        """Write the scales and marks that go with codes."""
        for key, data in encoder.finish().items():
            self._sink.write(memoryview(data), placed.parts[key])

    def _run_large(self, placed: Placed) -> list[LayerResult]:
        """A tensor larger than the buffer, by runs of whole rows."""
        plan = placed.plan
        rows, columns = matrix_shape(plan.shape)
        read_row, written_row = plan.info.nbytes // rows, plan.nbytes // rows
        step = max(1, BUFFER_BYTES // held_bytes(read_row, written_row, plan.converted))
        runs = [(start, min(start + step, rows)) for start in range(0, rows, step)]
        editor = TensorEditor(plan, self._blocks)

        def read(start: int, stop: int, position: int) -> memoryview:
            if plan.values is not None:  # which are read by themselves: there is a place for them alone
                return self._output_view((stop - start) * written_row, position)
            return self._read(plan.info.start + start * read_row, plan.info.start + stop * read_row, position)

        def weight(data: memoryview) -> torch.Tensor:
            if plan.values is not None:
                return _matrix(plan, data, columns)
            return as_matrix(data, plan.info.dtype, columns)

        if editor.must_look:
            for start, stop in runs:
                editor.look(weight(read(start, stop, 0)), start)
        if editor.encoder is not None:
            for start, stop in runs:
                editor.measure(weight(read(start, stop, 0)), start)
            self._write_parts(editor.encoder, placed)
        for start, stop in runs:
            position = placed.position + start * written_row
            data = read(start, stop, position)
            out = self._output_view((stop - start) * written_row, position) if plan.converted else data
            editor.write(weight(data), _matrix(plan, out, columns), start)
            self._sink.write(out, position)
            self._report((stop - start) * read_row)
        return editor.results

    def _copy_large(self, placed: Placed) -> None:
        info = placed.plan.info
        for start in range(0, info.nbytes, BUFFER_BYTES):
            stop = min(start + BUFFER_BYTES, info.nbytes)
            data = self._read(info.start + start, info.start + stop, placed.position + start)
            self._sink.write(data, placed.position + start)
            self._report(len(data))

    def _read(self, start: int, stop: int, position: int) -> memoryview:
        """Bytes ``start`` to ``stop`` of the source, aligned in memory as ``position`` is in the output."""
        shift = position % ALIGNMENT
        if stop - start > len(self._input) - ALIGNMENT:  # a single row may exceed the buffer
            self._input = _buffer(stop - start)
        view = self._input[shift : shift + stop - start]
        self._source.read_into(view, start)
        return view

    def _output_view(self, size: int, position: int) -> memoryview:
        shift = position % ALIGNMENT
        if self._output is None or size > len(self._output) - ALIGNMENT:
            self._output = _buffer(size)
        return self._output[shift : shift + size]


def _matrix(plan: TensorPlan, data: memoryview, columns: int) -> torch.Tensor:
    """Bytes of the output as a matrix: numbers, or codes."""
    return as_codes(data, columns) if plan.encoding is not None else as_matrix(data, plan.dtype, columns)


def _buffer(size: int = BUFFER_BYTES) -> memoryview:
    return memoryview(aligned_buffer(max(size, BUFFER_BYTES) + ALIGNMENT))
