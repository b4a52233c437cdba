"""``extract``: the adapter that is nearest to the change of a base."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from paramerge.apply.amounts import check_amounts
from paramerge.checkpoints.layout import Base
from paramerge.errors import FamilyError, UsageError
from paramerge.extract.difference import Differences
from paramerge.extract.families import EXTRACTORS, Extracted, ExtractOptions, holds
from paramerge.extract.whole import WHOLE_FAMILIES, completed_norms, whole_difference
from paramerge.files.dtypes import NUMPY
from paramerge.files.hashing import source_sha256
from paramerge.files.outputs import check_output_file, inputs_of
from paramerge.files.source import check_unchanged
from paramerge.files.writer import write_safetensors
from paramerge.formats import write_para
from paramerge.formats.dialect import Dialect
from paramerge.formats.diffusers import DIFFUSERS, DIFFUSERS_OLD
from paramerge.formats.kohya import KOHYA, kohya_metadata
from paramerge.formats.native import BASE_HASH_KEY, PARA
from paramerge.listing import listed
from paramerge.models.names import ModuleName
from paramerge.models.registry import family_of
from paramerge.summarised import Summarised
from paramerge.version import __version__
from paramerge.wording import option

EXTRACTION_KEY = "extraction.recipe"
"""Metadata key of the output: both checkpoints by SHA-256, and the options, as JSON."""


@dataclass(frozen=True, repr=False)
class ExtractionReport(Summarised):
    """The outcome of an extraction.

    Attributes
    ----------
    layers:
        The outcome for those that were changed, without their tensors.
    unchanged:
        Layers that are the same in both checkpoints, or differ by no more than rounding.
    left_out:
        Changes that are not in the output, each with the reason.
    """

    family: str
    output: Path
    architecture: str
    layers: tuple[Extracted, ...] = field(repr=False)
    unchanged: int
    left_out: dict[str, str]
    whole: int = 0
    """Norms, biases and embeddings that are in the output as whole differences."""
    unlike: dict[str, str] = field(default_factory=dict)
    """Layers that have another shape in each checkpoint, and are in no output."""

    def summary(self) -> Mapping[str, object]:
        """The facts that it is shown by."""
        return {
            "output": self.output,
            "family": self.family,
            "architecture": self.architecture,
            "layers": len(self.layers),
            "unchanged": self.unchanged,
            "error": f"{self.error:.2g}",
            "left_out": len(self.left_out) or None,
        }

    @property
    def error(self) -> float:
        """The part of all layers' differences together that the output misses, relative in Frobenius norm."""
        total = math.hypot(*(layer.norm for layer in self.layers))
        return math.hypot(*(layer.error * layer.norm for layer in self.layers)) / total if total else 0.0

    @property
    def excess(self) -> float:
        """The largest bound of a layer: how much nearer the family could have come."""
        return max((layer.excess for layer in self.layers), default=0.0)


def extract(
    tuned: Base,
    base: Base,
    output: Path,
    options: ExtractOptions,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    overwrite: bool = False,
) -> ExtractionReport:
    """Write the adapter that turns ``base`` into ``tuned`` as nearly as its family can.

    Layers are read, decomposed and rounded one at a time. Without ``rank``, ``energy`` and ``gamma`` a PaRa
    must be exact: every changed layer a projection of the base's, to the rounding of the tuned one.

    Raises
    ------
    UsageError
        Options that the family does not have, or none where it needs one; no difference at all.
    ArchitectureError, UnmatchedError, ShapeError
        The checkpoints are not of one kind.
    FamilyError
        A change that the family cannot hold (without ``partial``); a difference that is no PaRa.
    NonFiniteError
        A weight, or a factor in the output's dtype, that is not finite.
    InputChangedError
        A checkpoint was written to or replaced since it was opened.
    OutputError
        ``output`` is an input, exists already (without ``overwrite``), or cannot be written.
    """
    _check(options)
    output = check_output_file(output, inputs_of(tuned, base), overwrite=overwrite)
    differences = Differences(base, tuned, options.only)
    architecture = _named_architecture(base)
    whole, left_out = _whole_differences(differences, architecture, options)
    if left_out and not options.partial:
        raise _unheld(options, left_out)
    found: dict[ModuleName, Extracted] = {}
    unchanged = 0
    for done, layer in enumerate(differences.changed()):
        progress(done, len(differences.layers))
        if layer is None:
            unchanged += 1
            continue
        if reason := holds(layer, options):
            left_out[str(layer.name)] = reason
            if not options.partial:
                raise _unheld(options, left_out)
            continue
        # a layer without a name is refused before the work
        _dialect(layer.name, options.family, architecture).stem(layer.name, architecture)
        extracted = EXTRACTORS[options.family](layer, options)
        if extracted is None:
            unchanged += 1
            continue
        if options.family == "para" and not extracted.exact and _must_be_exact(options):
            raise _no_para(layer.name, extracted)
        found[layer.name] = extracted
    progress(len(differences.layers), len(differences.layers))
    if not found and not whole:
        raise UsageError(
            "there is nothing to extract",
            where=tuned.path,
            expected=f"a checkpoint whose layers differ from {base.path.name}'s",
            found=f"{unchanged} layers that are the same"
            + (f", {len(left_out)} left out" if left_out else ""),
        )
    _write(found, whole, tuned, base, output, options, overwrite)
    layers = tuple(replace(layer, tensors={}) for layer in found.values())
    return ExtractionReport(
        options.family, output, base.architecture, layers, unchanged, left_out, len(whole), differences.unlike
    )


def _named_architecture(base: Base) -> str | None:
    """The architecture by whose names and sizes an adapter goes: the same for inpainting and plain."""
    return None if base.architecture == "unknown" else family_of(base.architecture)


def _whole_differences(
    differences: Differences, architecture: str | None, options: ExtractOptions
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors for the norms, biases and embeddings that changed; the other changes, each with the reason why
    it is left out."""
    tensors: dict[str, np.ndarray] = {}
    left_out = differences.changed_beside()
    for name, difference in differences.changed_parameters():
        here: dict[str, np.ndarray] = {}
        if options.family in WHOLE_FAMILIES:
            dialect = _dialect(name, options.family, architecture)
            here = whole_difference(name, difference, dialect, architecture, options)
        tensors |= here
        if not here:
            left_out[str(name)] = "a norm, bias or embedding"
    return tensors, left_out


def _write(
    found: dict[ModuleName, Extracted],
    whole: dict[str, np.ndarray],
    tuned: Base,
    base: Base,
    output: Path,
    options: ExtractOptions,
    overwrite: bool,
) -> None:
    hashes = [source_sha256(source) for source in base.weight_sources]
    recipe = {
        "paramerge": __version__,
        "tuned_sha256": [source_sha256(source) for source in tuned.weight_sources],
        "base_sha256": hashes,
        "family": options.family,
        **{key: value for key in ("rank", "energy", "gamma") if (value := getattr(options, key)) is not None},
    }
    check_unchanged(tuned, base)
    metadata = {EXTRACTION_KEY: json.dumps(recipe, separators=(",", ":"), sort_keys=True)}
    architecture = _named_architecture(base)
    if options.family == "para":
        bases = {name: layer.tensors["basis"] for name, layer in found.items()}
        write_para(
            output, bases, architecture=architecture, base_sha256=hashes, gamma=options.gamma,
            dtype=options.dtype, metadata=metadata, overwrite=overwrite,
        )  # fmt: skip
        return
    tensors = completed_norms(whole)
    for name, layer in found.items():
        tensors |= _named(name, layer, options.family, architecture)
    entry = "ss_new_sd_model_hash" if len(hashes) == 1 else BASE_HASH_KEY
    metadata[entry] = ",".join(hashes)
    if options.family != "krona":
        sizes = [(layer.rank, float(layer.rank)) for layer in found.values()]
        metadata = kohya_metadata(sizes, architecture, ()) | metadata
    if options.family == "lokr" or whole:
        metadata["ss_network_module"] = "lycoris.kohya"
    ordered = dict(sorted(tensors.items(), key=lambda i: (-i[1].itemsize, i[0])))
    write_safetensors(output, ordered, metadata, overwrite=overwrite)


def _named(
    name: ModuleName, layer: Extracted, family: str, architecture: str | None
) -> dict[str, np.ndarray]:
    dialect = _dialect(name, family, architecture)
    stem = dialect.stem(name, architecture)
    tensors = {dialect.written(stem, role): value for role, value in layer.tensors.items()}
    if dialect is KOHYA:
        whole = "lokr_w1" in layer.tensors and "lokr_w2" in layer.tensors
        tensors[dialect.written(stem, "alpha")] = np.asarray(1 if whole else layer.rank, NUMPY["F16"])
    return tensors


def _dialect(name: ModuleName, family: str, architecture: str | None) -> Dialect:
    """The dialect of the file: kohya's, or for LoRAs of other models diffusers'."""
    if family == "para":
        return PARA
    if family == "krona":
        return DIFFUSERS_OLD  # that of the published code
    other = architecture is None or name.component not in ("unet", "text_encoder", "text_encoder_2")
    return DIFFUSERS if other and family == "lora" else KOHYA


def _must_be_exact(options: ExtractOptions) -> bool:
    return options.rank is None and options.energy is None and options.gamma is None


def _check(options: ExtractOptions) -> None:
    given = {option("rank"): options.rank, option("energy"): options.energy, option("gamma"): options.gamma}
    given_names = [name for name, value in given.items() if value is not None]
    if options.family not in EXTRACTORS:
        raise UsageError(
            "no such family can be extracted",
            where=option("family"),
            expected=", ".join(EXTRACTORS),
            found=options.family,
        )
    wrong = [name for name in given_names if name == option("gamma")] if options.family != "para" else []
    wrong = given_names if options.family == "krona" else wrong
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)} does not apply to this family", where=option("family", options.family)
        )
    check_amounts(options.rank, options.energy, options.gamma, one=options.family == "lora")


def _unheld(options: ExtractOptions, left_out: dict[str, str]) -> FamilyError:
    return FamilyError(
        f"some changes are of a kind that a {options.family} cannot hold",
        where=listed(list(left_out), 3),
        found="; ".join(dict.fromkeys(left_out.values())),
        hint=f"to extract the rest without them, add {option('partial')}",
    )


def _no_para(name: ModuleName, layer: Extracted) -> FamilyError:
    near = layer.error < 0.9 and abs(layer.strength - 1) > 0.01
    return FamilyError(
        "this difference is no PaRa: no directions were taken away from the layer, or not only that",
        where=name,
        expected=f"an error of at most {layer.rounding:.1e}, which rounding explains",
        found=f"{layer.error:.1e} for the nearest, of rank {layer.rank}"
        + (f", at strength {layer.strength:.2f}" if near else ""),
        hint=f"extract a LoRA ({option('family', 'lora')} {option('rank', 'R')}), or the nearest PaRa of at "
        f"most a rank ({option('rank', 'R')})",
    )
