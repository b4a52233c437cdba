"""``resize``: an adapter of a lower rank, by rank or by energy for each layer; LoRA, LoCon and PaRa."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paramerge.adapters import Adapter, ParaModule
from paramerge.adapters.unread import refuse_unread, unread_warnings
from paramerge.apply.amounts import check_amounts
from paramerge.checkpoints.layout import Base
from paramerge.errors import FamilyError, UsageError
from paramerge.files.outputs import check_output_file, inputs_of
from paramerge.files.private import public_metadata
from paramerge.files.source import check_unchanged
from paramerge.formats import write_para
from paramerge.formats.kept_metadata import kept_metadata
from paramerge.merge.combine import Progress, combine
from paramerge.merge.report import MergedInput, MergedLayer, MergeReport
from paramerge.merge.request import CombineOptions, Input
from paramerge.models.names import ModuleName
from paramerge.resolve.weights import BaseWeights
from paramerge.wording import call, option


def resize(
    adapter: Adapter,
    output: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str = "F16",
    base: Base | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    allow_unmatched: bool = False,
    private: bool = False,
) -> MergeReport:
    """Write ``adapter`` with less: a merge of one, truncated.

    A LoRA keeps its leading singular directions (the nearest of its rank), a PaRa those that take most from
    ``base``, or without a base its first.

    Raises
    ------
    UsageError
        Not exactly one of ``rank`` and ``energy``; an energy for a PaRa without a base.
    FamilyError
        Another family: its factors have no order of importance.
    UnmatchedError
        Keys that are not understood, without ``allow_unmatched``.
    OutputError
        ``output`` is an input, exists already (without ``overwrite``), or cannot be written.
    """
    check_amounts(rank, energy, one=True)
    if adapter.family not in ("lora", "para"):
        raise FamilyError(
            f"{' and '.join(adapter.families)} cannot be resized",
            where=adapter.path,
            expected="a LoRA, a LoCon or a PaRa",
            found=", ".join(adapter.families),
            hint=f"bake it, and extract a smaller one: {call('extract', tuned='BAKED', base='BASE')}",
        )
    options = CombineOptions(
        rank=rank, energy=energy, dtype=dtype, allow_unmatched=allow_unmatched, private=private
    )
    if adapter.family == "para" and energy is not None:
        return _para_by_energy(
            adapter, output, options, base, progress or (lambda done, total: None), overwrite
        )
    return combine([Input(adapter.path)], [adapter], output, options, base, progress, overwrite=overwrite)


def _para_by_energy(
    adapter: Adapter,
    output: Path,
    options: CombineOptions,
    base: Base | None,
    progress: Progress,
    overwrite: bool,
) -> MergeReport:
    """Keep of each layer the fewest directions that take this share of ``||Q^T W||^2`` from the base."""
    if base is None:
        raise UsageError(
            "no base was given, and what a direction removes depends on its weights",
            where=option("energy"),
            expected=option("base"),
            hint=f"give the checkpoint, or say {option('rank')}",
        )
    refuse_unread(adapter, allowed=options.allow_unmatched)
    output = check_output_file(output, inputs_of(adapter, base), overwrite=overwrite)
    weights = BaseWeights(base)
    adapter = weights.check(adapter)
    bases: dict[ModuleName, np.ndarray] = {}
    layers = []
    for done, (name, module) in enumerate(adapter.modules.items()):
        if not isinstance(module, ParaModule):
            continue
        progress(done, len(adapter.modules))
        Q = module.some_directions()
        removed = Q.T @ weights.matrix(name)
        U, s, _ = np.linalg.svd(removed, full_matrices=False)
        held = np.cumsum(s**2) / max(float(np.sum(s**2)), np.finfo(np.float64).tiny)
        kept = int(np.sum(held < (options.energy or 1) * (1 - 1e-12))) + 1
        bases[name] = Q @ U[:, :kept]
        share = float(held[min(kept, len(held)) - 1])
        layers.append(MergedLayer(name, (Q.shape[1],), Q.shape[1], bases[name].shape[1], kept_energy=share))
    progress(len(adapter.modules), len(adapter.modules))
    digests = tuple(source.sha256() for source in adapter.opened)
    check_unchanged(adapter, base)
    hashes = [text for text in adapter.base_hashes if len(text) == 64]
    own = kept_metadata(adapter.metadata)
    write_para(
        output, bases, architecture=adapter.architecture, base_sha256=hashes or None, dtype=options.dtype,
        metadata=(public_metadata(own) if options.private else own)
        | {"resize.energy": f"{options.energy:g}", "resize.source_sha256": digests[0]},
        overwrite=overwrite,
    )  # fmt: skip
    given = MergedInput(adapter.path, "para", adapter.dialect, 1.0, len(adapter.modules), digests)
    size = output.stat().st_size
    left = tuple(unread_warnings(adapter))
    return MergeReport("para", output, size, adapter.architecture, (given,), tuple(layers), options, left)
