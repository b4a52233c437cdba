"""A quantised checkpoint as a plain one, for libraries that would take its codes for weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paramerge.apply.steps import BakeOptions
from paramerge.checkpoints.layout import Base, open_base


@contextmanager
def plain_checkpoint(base: Base, dtype: Any) -> Iterator[Base]:
    """The checkpoint itself, or within the block a copy of its true values in torch's ``dtype``.

    Raises
    ------
    CheckpointError
        A quantised layer cannot be read.
    OutputError
        There is no room for the copy.
    """
    if not any(file.quantised for file in base.files):
        yield base
        return
    from paramerge.bake.bake import bake
    from paramerge.bake.plan import make_plan

    plan = make_plan(base, (), BakeOptions(dtype=str(dtype)))
    with tempfile.TemporaryDirectory(prefix="paramerge-") as folder:
        name = base.path.resolve().name
        output = Path(folder) / (name if base.is_folder else f"{Path(name).stem}.safetensors")
        yield open_base(bake(plan, output).output)
