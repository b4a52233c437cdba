"""``convert``: an adapter in another format, or a PaRa (and LoRAs after it) as one LoRA for a named base.

Layers are read, written otherwise where they must be, and rounded one at a time; the same inputs and options
give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paramerge.adapters import Adapter, LoraModule, ParaModule
from paramerge.checkpoints.hashing import file_sha256
from paramerge.checkpoints.header import Header, read_header
from paramerge.checkpoints.layout import Base
from paramerge.checkpoints.modules import COMPONENTS, ModuleName
from paramerge.checkpoints.writer import write_bytes, write_safetensors
from paramerge.combining.base import BaseWeights, LayerShapes
from paramerge.combining.checks import check_architectures, check_destination, common_architecture
from paramerge.combining.mixed import as_one_lora
from paramerge.combining.request import CombineOptions, Input
from paramerge.conversion.deft import deft_config
from paramerge.conversion.parts import HOLDS, Part, part_of
from paramerge.conversion.peft_folder import peft_config
from paramerge.conversion.spelling import ENDINGS, spelling_of
from paramerge.errors import AdapterError, FamilyError, OutputError, UnmatchedError, UsageError
from paramerge.formats import peft, write_para
from paramerge.formats.layers import clip_path, unet_path
from paramerge.formats.listing import listed
from paramerge.formats.lora_writer import LORA_DTYPES, kohya_metadata, rounded, stored_alpha
from paramerge.formats.native import BASE_HASH_KEY
from paramerge.version import __version__

__all__ = ["CONVERSION_KEY", "FORMATS", "ConversionReport", "ConvertOptions", "ConvertedLayer", "convert"]

FORMATS = tuple(HOLDS)
CONVERSION_KEY = "convert.recipe"
"""Metadata key of the output: the inputs and the base by SHA-256, and the options, as JSON."""

_OF_THE_FILE = (
    "sshs_model_hash",
    "sshs_legacy_hash",
    "modelspec.hash_sha256",
    "lora_adapter_metadata",
    "format",
)
"""Metadata of the input that are not true of another file."""


@dataclass(frozen=True)
class ConvertOptions:
    """The options of ``paramerge convert``.

    Attributes
    ----------
    to:
        One of :data:`FORMATS`.
    dtype:
        ``F16``, ``BF16`` or ``F32``; None to keep each tensor's (of a PaRa that becomes a LoRA: F16).
    partial:
        Leave out what the format cannot hold, and keys that are no layer's, instead of refusing.
    """

    to: str
    dtype: str | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise UsageError("no such format", where="--to", expected=", ".join(FORMATS), found=self.to)
        if self.dtype is not None and self.dtype not in LORA_DTYPES:
            raise UsageError(
                "an adapter is not stored so",
                where="--dtype",
                expected=", ".join(LORA_DTYPES),
                found=self.dtype,
            )


@dataclass(frozen=True)
class ConvertedLayer:
    """A layer that was written, and what rounding lost of a change that had to be written otherwise."""

    name: ModuleName
    family: str
    rank: int
    rounding: float


@dataclass(frozen=True)
class ConversionReport:
    """What was converted."""

    to: str
    outputs: tuple[Path, ...]
    """The files written."""
    architecture: str | None
    layers: tuple[ConvertedLayer, ...] = field(repr=False)
    notes: Mapping[str, int]
    """What had to be written otherwise, and in how many layers."""
    left_out: tuple[str, ...]
    """Layers and keys that are not in the output."""

    @property
    def rounding(self) -> float:
        """The largest rounding error of a layer."""
        return max((layer.rounding for layer in self.layers), default=0.0)


def convert(
    inputs: Sequence[Input],
    adapters: Sequence[Adapter],
    output: Path,
    options: ConvertOptions,
    base: Base | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ConversionReport:
    """Write the opened ``adapters`` of ``inputs`` (one, or a PaRa and others for a LoRA) as ``options.to``.

    Raises
    ------
    UsageError
        Inputs that do not go together, a name that the format does not have.
    FamilyError
        A family, or a form of one, that the format cannot hold; a PaRa for a LoRA's format without a base.
    UnmatchedError
        Keys of the input that are no layer's, without ``partial``.
    ArchitectureError, ShapeError, NonFiniteError
        Adapters that do not belong together or to the base, or that are not finite.
    OutputError
        ``output`` is an input or cannot be written.
    """
    to_lora = _check_request(inputs, adapters, options, base)
    _check_output(output, options.to, adapters, base)
    check_architectures(adapters)
    left_out = [key for adapter in adapters for leftover in adapter.leftovers for key in leftover.keys]
    if left_out and not options.partial:
        raise UnmatchedError(
            f"{len(left_out)} keys of the input are no layer's, and would not be in the output",
            where=adapters[0].path,
            found=listed(left_out),
            hint="to convert the rest without them, add --partial",
        )
    weights = None if base is None else BaseWeights(base)
    if weights is not None:
        adapters = [weights.check(adapter) for adapter in adapters]
    elif not options.to.startswith("kohya"):
        _refuse_unread_names(adapters)
    if to_lora and weights is not None:
        parts: Iterator[Part] = _as_lora(inputs, adapters, weights, options, progress)
    else:
        parts = _parts(adapters[0], options, left_out, progress)
    job = _Writing(output, options, adapters, weights, to_lora)
    written = job.write(list(parts))
    return ConversionReport(
        options.to,
        tuple(job.files),
        job.architecture,
        tuple(ConvertedLayer(part.name, part.family, part.rank, part.rounding) for part in written),
        _counted(written),
        tuple(left_out),
    )


def _parts(
    adapter: Adapter, options: ConvertOptions, left_out: list[str], progress: Callable[[int, int], None]
) -> Iterator[Part]:
    header = read_header(adapter.path)
    written = 0
    for done, module in enumerate(adapter.modules.values()):
        progress(done, len(adapter.modules))
        try:
            part = part_of(module, adapter, header, options.to, options.dtype)
        except FamilyError:
            if not options.partial:
                raise
            left_out.append(str(module.name))
            continue
        written += len(part.tensors)
        yield part
    progress(len(adapter.modules), len(adapter.modules))
    if adapter.dialect.startswith("kohya") and options.to.startswith("kohya") and not left_out:
        _check_all_written(header, written)


def _check_all_written(header: Header, written: int) -> None:
    """Where only names change, as many tensors must come out as went in."""
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
    """The LoRA that does to this base what the PaRas (jointly) and then the LoRAs do (T5)."""
    dtype = options.dtype or "F16"
    combine, scales = CombineOptions(dtype=dtype), [given.scale for given in inputs]
    shapes = LayerShapes(weights, common_architecture(adapters))
    names = sorted(
        {name for adapter in adapters for name in adapter.modules},
        key=lambda name: (COMPONENTS.index(name.component), name.path),
    )
    for done, name in enumerate(names):
        progress(done, len(names))
        found = [(place, adapter.modules.get(name)) for place, adapter in enumerate(adapters)]
        paras = {place: module for place, module in found if isinstance(module, ParaModule)}
        loras = {place: module for place, module in found if isinstance(module, LoraModule)}
        layer, _ = as_one_lora(name, paras, loras, scales, combine, weights, shapes)
        if layer.factors is None:
            continue
        factors = layer.factors
        up, down = rounded(name, factors.up, dtype), rounded(name, factors.down, dtype)
        if factors.kernel:
            up, down = up.reshape(*up.shape, 1, 1), down.reshape(len(down), -1, *factors.kernel)
        alpha = factors.alpha
        if options.to == "diffusers" and alpha != factors.rank:
            up, alpha = (
                rounded(name, alpha / factors.rank * up.astype(np.float64), dtype),
                float(factors.rank),
            )
        yield Part(name, "lora", {"up": up, "down": down}, alpha, factors.rank, layer.rounding)
    progress(len(names), len(names))


class _Writing:
    """The output of one conversion."""

    def __init__(
        self,
        output: Path,
        options: ConvertOptions,
        adapters: Sequence[Adapter],
        weights: BaseWeights | None,
        to_lora: bool,
    ) -> None:
        self.output = output
        self.to = options.to
        self.adapters = adapters
        self.weights = weights
        self.to_lora = to_lora
        self.architecture = common_architecture(adapters)
        if self.architecture is None and weights is not None and weights.base.architecture != "unknown":
            self.architecture = weights.base.architecture
        self.files: list[Path] = []

    def write(self, parts: Sequence[Part]) -> Sequence[Part]:
        """Write the parts, and give them back."""
        if not parts:
            raise UsageError("nothing is left to write", where=self.output)
        if self.to == "para":
            self._write_para(parts)
        elif self.to in ("peft", "deft"):
            self._write_folders(parts)
        else:
            sizes = [(part.rank, float(part.rank) if part.alpha is None else part.alpha) for part in parts]
            metadata = kohya_metadata(sizes, self.architecture, ()) if self.to.startswith("kohya") else {}
            if {part.family for part in parts} - {"lora"}:
                metadata |= {"ss_network_module": "lycoris.kohya"} if metadata else {}
            kept = self._kept()
            write_safetensors(
                self.output, self._tensors(parts), {**metadata, **kept, **self._metadata(parts)}
            )
            self.files.append(self.output)
        return parts

    def _write_para(self, parts: Sequence[Part]) -> None:
        hashes = [text for text in self.adapters[0].base_hashes if len(text) == 64]
        dtypes = {part.tensors["basis"].dtype for part in parts}
        narrow = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}
        name = narrow.get(next(iter(dtypes)), "BF16") if len(dtypes) == 1 else "F32"
        write_para(
            self.output,
            {part.name: part.tensors["basis"] for part in parts},
            architecture=self.architecture,
            base_sha256=hashes or None,
            dtype=name,
            metadata={k: v for k, v in self._kept().items() if not k.startswith("modelspec.")}
            | {CONVERSION_KEY: self._recipe(parts)},
        )
        self.files.append(self.output)

    def _write_folders(self, parts: Sequence[Part]) -> None:
        """A folder, or one for each model where there are several: PEFT's adapters are of one model."""
        components = list(dict.fromkeys(part.name.component for part in parts))
        ready = []
        for component in components:  # nothing is written before all of it is known to be possible
            own = [part for part in parts if part.name.component == component]
            folder = self.output if len(components) == 1 else self.output / component
            config = deft_config(own, self._linear()) if self.to == "deft" else peft_config(own)
            text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
            metadata = {"format": "pt", **self._kept(), **self._metadata(own)}
            ready.append((folder, self._tensors(own), metadata, text))
        for folder, tensors, metadata, text in ready:
            folder.mkdir(parents=True, exist_ok=True)
            write_safetensors(folder / peft.WEIGHTS_NAME, tensors, metadata)
            write_bytes(folder / peft.CONFIG_NAME, text.encode())
            self.files += [folder / peft.WEIGHTS_NAME, folder / peft.CONFIG_NAME]

    def _linear(self) -> dict[ModuleName, bool] | None:
        if self.weights is None:
            return None
        names = (name for adapter in self.adapters for name in adapter.modules)
        return {name: not self.weights.kernel(name) for name in names}

    def _tensors(self, parts: Sequence[Part]) -> dict[str, np.ndarray]:
        spelled, endings = spelling_of(self.to, self.architecture), ENDINGS[self.to]
        tensors: dict[str, np.ndarray] = {}
        for part in parts:
            stem = spelled(part.name)
            found = {f"{stem}.{endings.get(role, role)}": value for role, value in part.tensors.items()}
            if part.alpha is not None and self.to.startswith("kohya"):
                value = next(iter(part.tensors.values()))
                narrow = "F32" if value.dtype.itemsize > 2 else "F16"
                found[f"{stem}.alpha"] = stored_alpha(part.name, part.alpha, narrow)
            if again := sorted(found.keys() & tensors.keys()):
                raise UsageError("two layers would have one name", where=part.name, found=again[0])
            tensors |= found
        return dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))

    def _kept(self) -> dict[str, str]:
        """The input's metadata that are still true: of a single input that is what it was."""
        if self.to_lora:
            return {}
        dropped = (*_OF_THE_FILE, *(() if self.to.startswith("kohya") else ("modelspec.architecture",)))
        return {
            key: value
            for key, value in self.adapters[0].metadata.items()
            if key not in dropped and (not key.startswith("paramerge."))
        }

    def _metadata(self, parts: Sequence[Part]) -> dict[str, str]:
        if self.to_lora and self.weights is not None:
            hashes = self._base_hashes(parts)
            entry = "ss_new_sd_model_hash" if len(hashes) == 1 else BASE_HASH_KEY
            bases = {entry: ",".join(hashes)}
        else:
            long = [text for text in self.adapters[0].base_hashes if len(text) == 64]
            bases = {BASE_HASH_KEY: ",".join(long)} if long else {}
        return {**bases, CONVERSION_KEY: self._recipe(parts)}

    def _base_hashes(self, parts: Sequence[Part]) -> list[str]:
        if self.weights is None:
            return []
        return [file_sha256(file) for file in self.weights.files(part.name for part in parts)]

    def _recipe(self, parts: Sequence[Part]) -> str:
        recipe: dict[str, object] = {
            "paramerge": __version__,
            "to": self.to,
            "inputs": [
                [{"name": source.name, "sha256": file_sha256(source)} for source in adapter.sources]
                for adapter in self.adapters
            ],
            "families": [adapter.family for adapter in self.adapters],
            "notes": sorted(_counted(parts)),
        }
        if self.to_lora:
            recipe["base_sha256"] = self._base_hashes(parts)
        return json.dumps(recipe, separators=(",", ":"), sort_keys=True)


def _counted(parts: Sequence[Part]) -> dict[str, int]:
    notes = [note for part in parts for note in part.notes]
    return {note: notes.count(note) for note in dict.fromkeys(notes)}


def _check_request(
    inputs: Sequence[Input], adapters: Sequence[Adapter], options: ConvertOptions, base: Base | None
) -> bool:
    """Whether PaRas become a LoRA; refuses inputs that do not go together."""
    families = {adapter.family for adapter in adapters}
    to_lora = "para" in families and options.to not in ("para", "deft")
    for given, adapter in zip(inputs, adapters, strict=True):
        if given.scale != 1 and (adapter.family == "para" or not to_lora):
            raise UsageError(
                "a conversion keeps the strength of its input",
                where=given.path,
                expected="the file alone",
                found=f"@{given.scale:g}",
                hint="give the strength where the adapter is used",
            )
    if len(adapters) > 1 and not to_lora:
        raise UsageError(
            "several adapters are converted one by one",
            where=", ".join(str(given.path) for given in inputs),
            expected="one adapter, or PaRas and LoRAs for a LoRA's format",
            hint="make them one first: paramerge merge A B -o BOTH",
        )
    if not to_lora:
        return False
    if others := sorted(families - {"para", "lora"}):
        raise FamilyError(
            "only PaRas and LoRAs become one LoRA", where=options.to, found=", ".join(others),
            hint="bake them all, and extract a LoRA: paramerge extract --from BAKED --base BASE",
        )  # fmt: skip
    if base is None:
        raise FamilyError(
            "a PaRa is a LoRA for one base only: it takes away what that base would do",
            where=f"--to {options.to}",
            expected="--base",
            found="no base",
            hint="give the checkpoint that the LoRA will be used with, or convert --to para or deft",
        )
    return True


def _refuse_unread_names(adapters: Sequence[Adapter]) -> None:
    """kohya's names of other models: which underscores are dots, only the checkpoint tells."""
    for adapter in adapters:
        if not adapter.dialect.startswith("kohya"):
            continue
        unread = [
            str(name)
            for name in adapter.modules
            if "." not in name.path and not (unet_path(name.path) or clip_path(name.path))
        ]
        if unread:
            raise UsageError(
                "these names have underscores that may be dots",
                where=adapter.path,
                expected="--base, whose keys tell",
                found=listed(unread, 3),
            )


def _check_output(output: Path, to: str, adapters: Sequence[Adapter], base: Base | None) -> None:
    sources = [source for adapter in adapters for source in adapter.sources]
    sources += [] if base is None else [file.header.path for file in base.files]
    if to not in ("peft", "deft"):
        check_destination(output, sources)
        return
    if output.exists() and not output.is_dir():
        raise OutputError("PEFT's adapters are folders, and a file stands there", where=output)
    if output.suffix == ".safetensors":
        raise OutputError("PEFT's adapters are folders", where=output, expected="the name of a folder")
    inside = [
        source for source in sources if output.exists() and output.resolve() in source.resolve().parents
    ]
    if inside:
        raise OutputError(
            "the output is one of the inputs",
            where=output,
            found=str(inside[0]),
            hint="give another -o: inputs are never overwritten",
        )
