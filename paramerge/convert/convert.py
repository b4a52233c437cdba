"""``convert``: an adapter in another format, or a PaRa (and LoRAs after it) as one LoRA for a named base.

Layers are read, written otherwise where they must be, and rounded one at a time; the same inputs and options
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paramerge.adapters import Adapter, LayerModule, LoraModule, ParaModule
from paramerge.adapters.folding import folded
from paramerge.adapters.overflow import overflowing
from paramerge.adapters.parts import Part
from paramerge.adapters.rounding import rounded
from paramerge.adapters.unread import refuse_unread
from paramerge.checkpoints.layout import Base
from paramerge.convert.naming import has_single_names, joined
from paramerge.convert.parts import names_change_alone, part_of
from paramerge.convert.request import (
    ConvertOptions,
    check_output,
    check_request,
    refuse_other_names,
    refuse_unread_names,
)
from paramerge.convert.truncated import lora_part
from paramerge.convert.writing import Writing, counted_notes
from paramerge.errors import AdapterError, FamilyError
from paramerge.files.header import Header, read_header
from paramerge.formats.diffusers import SEVERAL_RANKS, has_several_ranks
from paramerge.formats.registry import named_dialect
from paramerge.merge.mixed import as_one_lora
from paramerge.merge.request import CombineOptions, Input
from paramerge.models.names import ModuleName, in_order
from paramerge.resolve.checks import check_architectures, common_architecture
from paramerge.resolve.namings import record_for, renamed
from paramerge.resolve.weights import BaseWeights, LayerShapes
from paramerge.summarised import Summarised


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer that was written, and the errors of a change that had to be written otherwise, or smaller."""

    name: ModuleName
    family: str
    rank: int
    rounding: float
    truncation: float = 0.0


@dataclass(frozen=True, repr=False)
class ConversionReport(Summarised):
    """The outcome of a conversion."""

    to: str
    outputs: tuple[Path, ...]
    """The files written."""
    architecture: str | None
    layers: tuple[ConvertedLayer, ...] = field(repr=False)
    notes: Mapping[str, int]
    """Notes on changed forms, each with the number of layers."""
    left_out: tuple[str, ...]
    """Layers and keys that are not in the output."""

    def summary(self) -> Mapping[str, object]:
        """The facts that it is shown by."""
        return {
            "to": self.to,
            "outputs": ", ".join(map(str, self.outputs)),
            "architecture": self.architecture,
            "layers": len(self.layers),
            "rounding": f"{self.rounding:.2g}",
            "left_out": len(self.left_out) or None,
        }

    @property
    def rounding(self) -> float:
        """The largest rounding error of a layer."""
        return max((layer.rounding for layer in self.layers), default=0.0)

    @property
    def truncation(self) -> float:
        """The largest part of a layer's change that a lower rank misses."""
        return max((layer.truncation for layer in self.layers), default=0.0)


def convert(
    inputs: Sequence[Input],
    adapters: Sequence[Adapter],
    output: Path,
    options: ConvertOptions,
    base: Base | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    overwrite: bool = False,
) -> ConversionReport:
    """Write the opened ``adapters`` of ``inputs`` (one, or a PaRa and others for a LoRA) as ``options.to``.

    Raises
    ------
    UsageError
        Inputs that do not go together, a name that the format does not have.
    FamilyError
        A family, or a form of one, that the format cannot hold; a PaRa for a LoRA's format without a base.
    UnmatchedError
        Keys of the input that are not understood, without ``partial``.
    ArchitectureError, ShapeError, NonFiniteError
        Adapters that do not belong together or to the base, or that are not finite.
    InputChangedError
        A file was written to or replaced since it was opened.
    OutputError
        ``output`` is an input, exists already (without ``overwrite``), or cannot be written.
    """
    to_lora = check_request(inputs, adapters, options, base)
    output = check_output(output, options.to, adapters, base, overwrite=overwrite)
    check_architectures(adapters)
    left_out = [key for adapter in adapters for leftover in adapter.leftovers for key in leftover.keys]
    for adapter in adapters:
        refuse_unread(adapter, allowed=options.partial)
    weights = None if base is None else BaseWeights(base)
    if weights is not None:
        adapters = [weights.check(adapter) for adapter in adapters]
    to = named_dialect(options.to)
    record = record_for(adapters[0], base) if to.parts not in ("para", "deft") else None
    single = record is not None and has_single_names(to, record)
    if record is not None and not to_lora:
        adapters = [renamed(adapter, record, single=single, checked=base is not None) for adapter in adapters]
    elif weights is None and not to.underscored:
        refuse_unread_names(adapters)
    if to.key == "diffusers" and record is None:
        for adapter in adapters:
            refuse_other_names(adapter, base)
    if to_lora and weights is not None:
        parts: Iterator[Part] = _as_lora(inputs, adapters, weights, options, progress)
    else:
        parts = _parts(adapters[0], options, weights, left_out, progress)
    if record is not None and single:
        parts = joined(parts, record)
    job = Writing(output, options, adapters, weights, to_lora, overwrite)
    with overflowing():
        written = job.write(list(parts))
    return ConversionReport(
        options.to,
        tuple(job.files),
        job.architecture,
        tuple(
            ConvertedLayer(part.name, part.family, part.rank, part.rounding, part.truncation)
            for part in written
        ),
        counted_notes(written) | _rank_notes(written, options),
        tuple(left_out),
    )


def _rank_notes(parts: Sequence[Part], options: ConvertOptions) -> dict[str, int]:
    several = options.to == "diffusers" and has_several_ranks(parts)
    return {SEVERAL_RANKS: len(parts)} if several else {}


def _parts(
    adapter: Adapter,
    options: ConvertOptions,
    weights: BaseWeights | None,
    left_out: list[str],
    progress: Callable[[int, int], None],
) -> Iterator[Part]:
    header, to = read_header(adapter.opened[0]), named_dialect(options.to)
    written = 0
    for done, module in enumerate(adapter.modules.values()):
        progress(done, len(adapter.modules))
        try:
            part = _truncated(module, options, weights)
            part = part or part_of(module, adapter, header, to, options.dtype)
        except FamilyError:
            if not options.partial:
                raise
            left_out.append(str(module.name))
            continue
        written += len(part.tensors)
        yield part
    progress(len(adapter.modules), len(adapter.modules))
    if names_change_alone(adapter, to) and not left_out and options.rank is None:
        _check_all_written(header, written)


def _truncated(module: LayerModule, options: ConvertOptions, weights: BaseWeights | None) -> Part | None:
    """The LoRA of the rank that was asked for, in the place of another family; None where it stays."""
    if options.rank is None or module.family == "lora":
        return None
    return lora_part(module, options.rank, options.dtype, weights)


def _check_all_written(header: Header, written: int) -> None:
    """Refuse a conversion of names alone that writes fewer tensors than were read."""
    if written < len(header.tensors):
        raise AdapterError(
            "some tensors of this adapter would not be in the output",
            where=header.path,
            expected=f"{len(header.tensors)} tensors",
            found=f"{written} that were understood",
            hint="please report it, with the output of: paramerge inspect",
        )


def _as_lora(
    inputs: Sequence[Input],
    adapters: Sequence[Adapter],
    weights: BaseWeights,
    options: ConvertOptions,
    progress: Callable[[int, int], None],
) -> Iterator[Part]:
    """The LoRA with the effect on this base of the PaRas (jointly) and then the LoRAs (T5)."""
    dtype, folds = options.dtype or "F16", named_dialect(options.to).alpha == "folded"
    combine, scales = CombineOptions(dtype=dtype), [given.scale for given in inputs]
    shapes = LayerShapes(weights, common_architecture(adapters))
    names = in_order({name for adapter in adapters for name in adapter.modules})
    for done, name in enumerate(names):
        progress(done, len(names))
        found = [(place, adapter.modules.get(name)) for place, adapter in enumerate(adapters)]
        paras = {place: module for place, module in found if isinstance(module, ParaModule)}
        loras = {place: module for place, module in found if isinstance(module, LoraModule)}
        layer, _ = as_one_lora(name, paras, loras, scales, combine, weights, shapes)
        if layer.factors is None:
            continue
        factors = layer.factors
        up, down, alpha = factors.up, factors.down, factors.alpha
        if folds and alpha != factors.rank:
            up, down = folded(up, down, alpha / factors.rank, dtype)
            alpha = float(factors.rank)
        up, down = rounded(name, up, dtype), rounded(name, down, dtype)
        if factors.kernel:
            up, down = up.reshape(*up.shape, 1, 1), down.reshape(len(down), -1, *factors.kernel)
        yield Part(name, "lora", {"up": up, "down": down}, alpha, factors.rank, layer.rounding)
    progress(len(names), len(names))
