"""The output of a conversion: keys, metadata and files of each format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paramerge.adapters import Adapter
from paramerge.adapters.parts import Part
from paramerge.convert.deft import deft_config
from paramerge.convert.peft_folder import peft_config
from paramerge.convert.request import ConvertOptions
from paramerge.errors import UsageError
from paramerge.files.hashing import source_sha256
from paramerge.files.private import public_metadata, without_names
from paramerge.files.source import check_unchanged
from paramerge.files.staging import new_folder, write_recipe
from paramerge.files.writer import write_bytes, write_safetensors
from paramerge.formats import peft, write_para
from paramerge.formats.lora_writer import stored_alpha
from paramerge.formats.native import BASE_HASH_KEY
from paramerge.formats.registry import named_dialect
from paramerge.models.names import ModuleName
from paramerge.resolve.checks import common_architecture
from paramerge.resolve.weights import BaseWeights
from paramerge.version import __version__

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


class Writing:
    """The output of one conversion."""

    def __init__(
        self,
        output: Path,
        options: ConvertOptions,
        adapters: Sequence[Adapter],
        weights: BaseWeights | None,
        to_lora: bool,
        overwrite: bool,
    ) -> None:
        self.overwrite = overwrite
        self.output = output
        self.to = options.to
        self.private = options.private
        self.rank = options.rank
        self.dialect = named_dialect(options.to)
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
        elif self.dialect.folder:
            self._write_folders(parts)
        else:
            metadata = (
                self.dialect.metadata(parts, self.architecture)
                | self._kept_metadata()
                | self._metadata(parts)
            )
            self._check_inputs()
            write_safetensors(self.output, self._tensors(parts), metadata, overwrite=self.overwrite)
            self.files.append(self.output)
        return parts

    def _write_para(self, parts: Sequence[Part]) -> None:
        hashes = [text for text in self.adapters[0].base_hashes if len(text) == 64]
        dtypes = {part.tensors["basis"].dtype for part in parts}
        narrow = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}
        name = narrow.get(next(iter(dtypes)), "BF16") if len(dtypes) == 1 else "F32"
        recipe = self._recipe(parts)
        self._check_inputs()
        write_para(
            self.output,
            {part.name: part.tensors["basis"] for part in parts},
            architecture=self.architecture,
            base_sha256=hashes or None,
            dtype=name,
            metadata={k: v for k, v in self._kept_metadata().items() if not k.startswith("modelspec.")}
            | {CONVERSION_KEY: recipe},
            overwrite=self.overwrite,
        )
        self.files.append(self.output)

    def _write_folders(self, parts: Sequence[Part]) -> None:
        """A folder, or one for each model where there are several: PEFT's adapters are of one model."""
        components = list(dict.fromkeys(part.name.component for part in parts))
        ready = []
        for component in components:  # nothing is written before all of it is known to be possible
            own = [part for part in parts if part.name.component == component]
            folder = Path() if len(components) == 1 else Path(component)
            config = deft_config(own, self._linear()) if self.to == "deft" else peft_config(own)
            text = json.dumps(config, indent=2, sort_keys=True, default=str) + "\n"
            metadata = {"format": "pt", **self._kept_metadata(), **self._metadata(own)}
            ready.append((folder, self._tensors(own), metadata, text))
        recipe = json.loads(self._recipe(parts))
        self._check_inputs()
        with new_folder(self.output, overwrite=self.overwrite) as stage:
            for folder, tensors, metadata, text in ready:
                (stage / folder).mkdir(exist_ok=True)
                write_safetensors(stage / folder / peft.WEIGHTS_NAME, tensors, metadata)
                write_bytes(stage / folder / peft.CONFIG_NAME, text.encode())
                self.files += [self.output / folder / name for name in (peft.WEIGHTS_NAME, peft.CONFIG_NAME)]
            write_recipe(stage, recipe)

    def _check_inputs(self) -> None:
        """Refuse inputs that changed since they were opened; all was read and hashed before."""
        check_unchanged(*self.adapters, self.weights)

    def _linear(self) -> dict[ModuleName, bool] | None:
        if self.weights is None:
            return None
        names = (name for adapter in self.adapters for name in adapter.modules)
        return {name: not self.weights.kernel(name) for name in names}

    def _tensors(self, parts: Sequence[Part]) -> dict[str, np.ndarray]:
        tensors: dict[str, np.ndarray] = {}
        for part in parts:
            stem = self.dialect.stem(part.name, self.architecture)
            found = {self.dialect.written(stem, role): value for role, value in part.tensors.items()}
            if part.alpha is not None and self.dialect.alpha == "tensor":
                value = next(iter(part.tensors.values()))
                narrow = "F32" if value.dtype.itemsize > 2 else "F16"
                found[self.dialect.written(stem, "alpha")] = stored_alpha(part.name, part.alpha, narrow)
            if again := sorted(found.keys() & tensors.keys()):
                raise UsageError("two layers would have one name", where=part.name, found=again[0])
            tensors |= found
        return dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))

    def _kept_metadata(self) -> dict[str, str]:
        """The input's metadata that are still true: of a single input all of them."""
        if self.to_lora:
            return {}
        dropped = (*_OF_THE_FILE, *(() if self.dialect.base == "kohya" else ("modelspec.architecture",)))
        kept = {
            key: value
            for key, value in self.adapters[0].metadata.items()
            if key not in dropped and (not key.startswith("paramerge."))
        }
        return public_metadata(kept) if self.private else kept

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
        return [source_sha256(file) for file in self.weights.files(part.name for part in parts)]

    def _recipe(self, parts: Sequence[Part]) -> str:
        recipe: dict[str, object] = {
            "paramerge": __version__,
            "to": self.to,
            "inputs": [
                [{"name": source.path.name, "sha256": source.sha256()} for source in adapter.opened]
                for adapter in self.adapters
            ],
            "families": [adapter.family for adapter in self.adapters],
            "notes": sorted(counted_notes(parts)),
        }
        if self.rank is not None:
            recipe["rank"] = self.rank
        if self.to_lora:
            recipe["base_sha256"] = self._base_hashes(parts)
        told = without_names(recipe) if self.private else recipe
        return json.dumps(told, separators=(",", ":"), sort_keys=True)


def counted_notes(parts: Sequence[Part]) -> dict[str, int]:
    """Notes on changed forms, each with the number of layers."""
    notes = [note for part in parts for note in part.notes]
    return {note: notes.count(note) for note in dict.fromkeys(notes)}
