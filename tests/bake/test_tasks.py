"""Pieces of work: a worker holds no more than its buffer, the copy of what is converted included."""

from __future__ import annotations

import pytest

from paramerge.apply.tensor_plan import TensorPlan
from paramerge.bake import tasks
from paramerge.bake.tasks import make_tasks
from paramerge.files.header import TensorInfo


def plans(dtypes: list[str]) -> list[TensorPlan]:
    """Tensors of 100 halves one after the other, and the dtype that each gets."""
    infos = [TensorInfo(f"t{i}", "F16", (10, 10), 200 * i, 200 * (i + 1)) for i in range(len(dtypes))]
    return [TensorPlan(info, "unet", dtype, ()) for info, dtype in zip(infos, dtypes, strict=True)]


@pytest.mark.parametrize(("dtype", "together"), [("F16", 5), ("BF16", 2), ("F32", 1)])
def test_a_group_fills_the_buffer_and_no_more(
    dtype: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BUFFER_BYTES", 1000)
    made = make_tasks(plans([dtype] * 10), 0)
    assert [len(task.tensors) for task in made] == [together] * (10 // together)
    assert not any(task.large for task in made)


def test_one_conversion_counts_for_its_whole_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BUFFER_BYTES", 1000)
    made = make_tasks(plans(["F16", "BF16", "F16", "F16"]), 0)
    assert [len(task.tensors) for task in made] == [2, 2]


def test_what_exceeds_the_buffer_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BUFFER_BYTES", 500)
    made = make_tasks(plans(["F16", "F32", "F16"]), 8)
    assert [(len(task.tensors), task.large) for task in made] == [(1, False), (1, True), (1, False)]
    assert [task.tensors[0].position for task in made] == [8, 208, 608]
