"""``paramerge.inspect``: the kind and the content of a file or folder."""

from __future__ import annotations

from paramerge.apply.given import PathLike
from paramerge.inspect.inspection import (
    AdapterFacts,
    CheckpointFacts,
    ForeignFacts,
    UnknownFacts,
    inspect_path,
)
from paramerge.interpretation import BY_TRAINER, Interpretation


def inspect(
    path: PathLike, interpretation: Interpretation = BY_TRAINER
) -> AdapterFacts | ForeignFacts | CheckpointFacts | UnknownFacts:
    """Find out the kind of the file or folder at ``path``: an adapter, a checkpoint, or neither.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.inspect.inspection.inspect_path`.
    """
    return inspect_path(path, interpretation)
