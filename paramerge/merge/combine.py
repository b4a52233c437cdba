"""Adapter + adapter -> adapter: PaRas jointly, LoRAs by concatenation, both together as one LoRA for a base.

Layers are worked on one at a time, in the order of their names; the output depends on the inputs, their order
and the options alone, so the same call gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from paramerge.adapters import Adapter, LoraModule, ParaModule
from paramerge.adapters.overflow import overflowing
from paramerge.adapters.unread import refuse_unread
from paramerge.apply.cautions import given_twice, unusual_strengths
from paramerge.checkpoints.layout import Base
from paramerge.errors import UsageError
from paramerge.files.hashing import source_sha256
from paramerge.files.outputs import check_output_file, inputs_of
from paramerge.files.private import public_metadata, without_names
from paramerge.files.source import check_unchanged
from paramerge.formats.kept_metadata import kept_of_several
from paramerge.formats.lora_writer import write_lora
from paramerge.formats.native import write_para
from paramerge.merge.dialects import dialect_for
from paramerge.merge.lora import SummedLayer, sum_layer
from paramerge.merge.mixed import as_one_lora
from paramerge.merge.para import JointLayer, chosen_keep, join_layer
from paramerge.merge.report import MergedInput, MergedLayer, MergeReport
from paramerge.merge.request import CombineOptions, Input, check_request
from paramerge.models.names import ModuleName, in_order
from paramerge.resolve.checks import (
    check_architectures,
    common_architecture,
    common_bases,
    warnings_of,
)
from paramerge.resolve.spellings import in_one_spelling
from paramerge.resolve.weights import BaseWeights, LayerShapes
from paramerge.version import __version__
from paramerge.wording import option

MERGE_KEY = "merge.recipe"
"""Metadata key of the output: the inputs by SHA-256 with their scales, and all options, as JSON."""

Progress = Callable[[int, int], None]


def combine(
    inputs: Sequence[Input],
    adapters: Sequence[Adapter],
    output: Path,
    options: CombineOptions,
    base: Base | None = None,
    progress: Progress | None = None,
    *,
    overwrite: bool = False,
) -> MergeReport:
    """Merge the opened ``adapters`` of ``inputs`` into one file.

    Raises
    ------
    UsageError, FamilyError
        The options or families do not go together (see :func:`check_request`).
    ArchitectureError, ShapeError, UnmatchedError
        The adapters do not belong together, or not to ``base``; keys that are not understood.
    InputChangedError
        A file was written to or replaced since it was opened.
    OutputError
        ``output`` is an input, exists already (without ``overwrite``), or cannot be written.
    """
    kind = check_request(inputs, adapters, options, base is not None)
    weights = None if base is None else BaseWeights(base)
    output = check_output_file(output, inputs_of(base, *adapters), overwrite=overwrite)
    for adapter in adapters:
        refuse_unread(adapter, allowed=options.allow_unmatched)
    adapters = in_one_spelling(adapters)
    check_architectures(adapters)
    if weights is not None:
        adapters = [weights.check(adapter) for adapter in adapters]
    job = _Job(inputs, adapters, options, weights, progress or (lambda done, total: None), overwrite)
    with overflowing():
        layers = {"para": job.merge_paras, "lora": job.merge_loras, "mixed": job.merge_both}[kind](output)
    return MergeReport(
        family="para" if kind == "para" else "lora",
        output=output,
        bytes=output.stat().st_size,
        architecture=common_architecture(adapters),
        inputs=job.described,
        layers=tuple(layers),
        options=job.options,
        warnings=(
            *unusual_strengths([(given.path.name, given.scale) for given in inputs]),
            *given_twice(adapters),
            *warnings_of(adapters, options.gamma),
            *_order_warnings(kind, adapters),
        ),
    )


class _Job:
    """One merge under way: reads layer by layer, then writes."""

    def __init__(
        self,
        inputs: Sequence[Input],
        adapters: Sequence[Adapter],
        options: CombineOptions,
        base: BaseWeights | None,
        progress: Progress,
        overwrite: bool,
    ) -> None:
        self.overwrite = overwrite
        bounded = options.gamma is not None or options.rank is not None
        if bounded and any(adapter.family == "para" for adapter in adapters):
            options = replace(options, keep=chosen_keep(options, base))
        self.options = options
        self.scales = [given.scale for given in inputs]
        self.adapters = adapters
        self.base = base
        self.progress = progress
        self.architecture = common_architecture(adapters)
        self.shapes = LayerShapes(base, self.architecture)
        self.described = tuple(map(_described, inputs, adapters))

    def merge_paras(self, output: Path) -> list[MergedLayer]:
        """PaRa + PaRa -> PaRa."""
        joints = [
            join_layer(self._paras(name), len(self.adapters), self.options, self.base, self.shapes)
            for name in self._names()
        ]
        kept = {joint.name: joint.Q for joint in joints if joint.rank}
        _refuse_nothing(output, bool(kept), "the rank boundary leaves no direction in any layer")
        check_unchanged(*self.adapters, self.base)
        write_para(
            output,
            kept,
            architecture=self.architecture,
            base_sha256=common_bases(self.adapters),
            gamma=self.options.gamma,
            dtype=self.options.dtype,
            metadata=self._metadata(),
            overwrite=self.overwrite,
        )
        return [_joint_report(joint) for joint in joints]

    def merge_loras(self, output: Path) -> list[MergedLayer]:
        """LoRA + LoRA -> LoRA."""
        options = self.options
        sums = [
            sum_layer(self._loras(name), self.scales, options.rank, options.energy, options.dtype)
            for name in self._names()
        ]
        self._write_lora(output, sums, common_bases(self.adapters))
        return [_sum_report(layer) for layer in sums]

    def merge_both(self, output: Path) -> list[MergedLayer]:
        """PaRa + LoRA -> the LoRA for this base."""
        if self.base is None:
            raise UsageError(
                "a PaRa and a LoRA cannot become one adapter without a base", expected=option("base")
            )
        pairs = [
            as_one_lora(
                name,
                self._paras(name),
                self._loras(name),
                self.scales,
                self.options,
                self.base,
                self.shapes,
            )
            for name in self._names()
        ]
        with_paras = [layer.name for layer, joint in pairs if joint is not None]
        self._write_lora(
            output,
            [layer for layer, _ in pairs],
            [source_sha256(file) for file in self.base.files(with_paras)],
        )
        return [_both_report(layer, joint) for layer, joint in pairs]

    def _names(self) -> Iterator[ModuleName]:
        """All layers in one order, for any order of the inputs; reports the progress."""
        names = in_order({name for adapter in self.adapters for name in adapter.modules})
        for done, name in enumerate(names):
            self.progress(done, len(names))
            yield name
        self.progress(len(names), len(names))

    def _paras(self, name: ModuleName) -> dict[int, ParaModule]:
        found = ((i, adapter.modules.get(name)) for i, adapter in enumerate(self.adapters))
        return {i: module for i, module in found if isinstance(module, ParaModule)}

    def _loras(self, name: ModuleName) -> dict[int, LoraModule]:
        found = ((i, adapter.modules.get(name)) for i, adapter in enumerate(self.adapters))
        return {i: module for i, module in found if isinstance(module, LoraModule)}

    def _write_lora(self, output: Path, layers: Sequence[SummedLayer], base_sha256: Sequence[str]) -> None:
        kept = {layer.name: layer.factors for layer in layers if layer.factors is not None}
        _refuse_nothing(output, bool(kept), "the sum of these LoRAs is zero in every layer")
        check_unchanged(*self.adapters, self.base)
        write_lora(
            output,
            kept,
            architecture=self.architecture,
            base_sha256=base_sha256,
            dtype=self.options.dtype,
            metadata=self._metadata(),
            overwrite=self.overwrite,
            dialect=dialect_for(self.adapters, kept, self.architecture).key,
        )

    def _metadata(self) -> dict[str, str]:
        options = self.options
        recipe = {
            "paramerge": __version__,
            "inputs": [
                {
                    "files": [
                        {"name": source.name, "sha256": digest}
                        for source, digest in zip(adapter.sources, given.sha256, strict=True)
                    ],
                    "family": given.family,
                    "scale": given.scale,
                }
                for adapter, given in zip(self.adapters, self.described, strict=True)
            ],
            "options": {
                name: value
                for name in ("gamma", "keep", "rank", "energy", "dtype")
                if (value := getattr(options, name)) is not None
            },
        }
        kept = kept_of_several([adapter.metadata for adapter in self.adapters])
        if options.private:
            kept, recipe = public_metadata(kept), without_names(recipe)
        return kept | {MERGE_KEY: json.dumps(recipe, separators=(",", ":"), sort_keys=True)}


def _described(given: Input, adapter: Adapter) -> MergedInput:
    hashes = tuple(source.sha256() for source in adapter.opened)
    return MergedInput(given.path, adapter.family, adapter.dialect, given.scale, len(adapter.modules), hashes)


def _joint_report(joint: JointLayer) -> MergedLayer:
    return MergedLayer(
        name=joint.name,
        ranks=joint.ranks,
        full_rank=joint.joint_rank,
        rank=joint.rank,
        limit=joint.limit,
        dependent=joint.dependent,
        kept_energy=joint.kept_energy,
    )


def _sum_report(layer: SummedLayer) -> MergedLayer:
    return MergedLayer(
        name=layer.name,
        ranks=layer.ranks,
        full_rank=layer.full_rank,
        rank=layer.rank,
        norm=layer.norm,
        error=layer.error,
        rounding=layer.rounding,
    )


def _both_report(layer: SummedLayer, joint: JointLayer | None) -> MergedLayer:
    report = _sum_report(layer)
    if joint is None:
        return report
    return replace(report, limit=joint.limit, dependent=joint.dependent, kept_energy=joint.kept_energy)


def _order_warnings(kind: str, adapters: Sequence[Adapter]) -> list[str]:
    families = [adapter.family for adapter in adapters]
    if kind != "mixed" or "para" not in families[families.index("lora") :]:
        return []
    return ["a LoRA was named before a PaRa; the output has PaRa first, as the paper asks"]


def _refuse_nothing(output: Path, anything: bool, why: str) -> None:
    if not anything:
        raise UsageError("nothing is left to write", where=output, found=why)
