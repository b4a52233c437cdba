"""The threads that carry out the tasks of one file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch

from paramerge.adapters.overflow import overflowing
from paramerge.apply.dense import LayerResult
from paramerge.bake.spans import Sink
from paramerge.bake.stream import TensorStream
from paramerge.bake.tasks import WORKERS, Task
from paramerge.files.source import Source


def run_tasks(
    source: Source, sink: Sink, tasks: Iterator[Task], report: Callable[[int], None]
) -> list[LayerResult]:
    """Do all tasks on as many threads as :data:`WORKERS`; the outcome for each layer, in any order.

    ``report`` is called with bytes done, from any of the threads. The first error ends the others' work.
    """
    stop, lock = threading.Event(), threading.Lock()

    def work() -> list[LayerResult]:
        torch.set_num_threads(1)  # the workers are the parallelism; more threads would only contend
        layers: list[LayerResult] = []
        stream = TensorStream(source, sink, report)
        try:
            while not stop.is_set():
                with lock:
                    task = next(tasks, None)
                if task is None:
                    break
                with overflowing():
                    layers += stream.run(task)
        except BaseException:
            stop.set()
            raise
        return layers

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="bake") as pool:
            futures = [pool.submit(work) for _ in range(WORKERS)]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except BaseException:  # Ctrl-C: let the workers end their task, then leave
                stop.set()
                raise
            return [layer for future in futures for layer in future.result()]
    finally:
        torch.set_num_threads(threads)
