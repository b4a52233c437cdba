"""``paramerge.explain``: the adapters in a checkpoint, in one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from paramerge.apply.given import PathLike, hashing, opened_base
from paramerge.explain.candidates import open_candidates
from paramerge.explain.explain import explain as explain_opened
from paramerge.explain.findings import Explanation
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.resolve.weights import BaseWeights

if TYPE_CHECKING:
    from paramerge.adapters import Adapter
    from paramerge.checkpoints.layout import Base


def explain(
    file: PathLike | Base,
    base: PathLike | Base,
    adapters: PathLike | Iterable[PathLike | Adapter] = (),
    *,
    interpretation: Interpretation = BY_TRAINER,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Explanation:
    """Find the adapters in a checkpoint: ``explain("mix.safetensors", "base.safetensors", "adapters/")``.

    Parameters
    ----------
    file, base:
        The checkpoint to explain, and the one that it was made from.
    adapters:
        A folder, or adapters and folders: all that may be in it. With none, the change alone is shown.
    interpretation:
        The user's decisions where trainers disagree.
    rehash, progress:
        As for :func:`paramerge.bake`; ``progress`` counts layers, twice where orders are compared.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.explain.explain.explain`; an adapter that was given by itself and is for another
        model.
    """
    given = [adapters] if isinstance(adapters, (str, os.PathLike)) else adapters
    with hashing(rehash=rehash):
        opened = opened_base(base)
        candidates, left_out = open_candidates(given, BaseWeights(opened), interpretation)
        return explain_opened(
            opened_base(file), opened, candidates, progress or (lambda done, total: None), left_out
        )
