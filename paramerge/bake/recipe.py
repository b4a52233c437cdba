"""The metadata of the output: the recipe, and the fields that user interfaces read.

The recipe (JSON in the metadata key ``paramerge.recipe``) names every input by its SHA-256, never by a path,
with the steps in order, their strengths, all options and the versions: enough to do it again and to check it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import ml_dtypes
import numpy as np

from paramerge.apply.steps import BakeOptions
from paramerge.bake.history import earlier_recipe
from paramerge.bake.lift import recipe_entry
from paramerge.bake.merged_models import MergedModels
from paramerge.bake.packages import used_packages
from paramerge.bake.plan import Plan
from paramerge.bake.planned_step import PlannedStep
from paramerge.checkpoints.layout import DIFFUSERS_FOLDER, Base
from paramerge.files.content_hash import HEADER_KEY, ZEROS, folder_content_sha256
from paramerge.files.file_names import readable_name
from paramerge.files.private import public_metadata
from paramerge.files.recipe_text import RECIPE_KEY
from paramerge.files.source import Source
from paramerge.models.registry import record_of
from paramerge.resolve.blocks import BlockUse
from paramerge.version import __version__

RECIPE_VERSION = 1
"""Version of the recipe of a bake into one model."""

MERGE_RECIPE_VERSION = 2
"""Version of the recipe of a bake into several merged models: as version 1, with ``merge`` (docs/recipe.md).
"""

_STALE = (
    "modelspec.hash_sha256",
    "modelspec.date",
    "modelspec.merged_from",
    "sshs_model_hash",
    "sshs_legacy_hash",
    HEADER_KEY,
)
"""Fields of the base that would be untrue of the output."""


@dataclass(frozen=True, slots=True)
class InputFile:
    """An input as the recipe knows it: its name (no path), SHA-256 (hex) and size in bytes."""

    name: str
    sha256: str
    size: int

    @classmethod
    def of(cls, source: Source, sha256: str, name: str) -> InputFile:
        """Describe a file that was opened."""
        return cls(readable_name(name), sha256, source.size)


def build_recipe(
    plan: Plan,
    base_files: Sequence[InputFile],
    step_files: Sequence[Sequence[InputFile]],
    other_files: Sequence[Sequence[InputFile]] = (),
    content: Mapping[PurePosixPath, str] | None = None,
    companions: Sequence[InputFile] = (),
    survival: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The recipe as JSON-ready data.

    ``base_files`` are the base's weight files, ``step_files`` the files of each step, and ``other_files``
    those of each model that is merged with the base, in order. ``content`` is the content hash of each file
    of the output, where it has one, ``companions`` are the files of the base's folder that come along, and
    ``survival`` is what was measured.
    """
    options = plan.options
    base, *others = [name.name for name in plan.names]
    recipe: dict[str, object] = {
        "recipe": RECIPE_VERSION if plan.merged is None else MERGE_RECIPE_VERSION,
        "versions": versions(),
        "base": _model(plan.base, base, base_files, options.private),
        "steps": [
            _step(step, files, options.private) | _own_interpretation(plan, step)
            for step, files in zip(plan.steps, step_files, strict=True)
        ],
        "options": {
            "merge": options.merge,
            "gamma": options.gamma,
            "only": list(options.only),
            "dtype": options.dtype,
            "allow_unmatched": options.allow_unmatched,
            "private": options.private,
            **({"requantise": True} if options.requantise else {}),
            **({"card": True} if options.card and plan.base.is_folder else {}),
            **({"quantise": options.quantise} if options.quantise is not None else {}),
            **({"allow_other_model": True} if options.allow_other_model else {}),
            **_unusual(options),
            **(plan.interpretation.decided if plan.interpretation else {}),
        },
    }
    if packages := used_packages(plan):
        recipe["packages"] = packages
    if companions:
        recipe["companions"] = [_file(file, private=False) for file in companions]
    if content:
        recipe["content"] = _content(plan, content)
    if plan.lifted:
        recipe["lifted"] = recipe_entry(plan.lifted)
    if survival is not None and plan.steps:
        recipe["survival"] = dict(survival)
    earlier = earlier_recipe(plan.base, private=options.private).recipe
    if earlier is not None:
        recipe["base_recipe"] = earlier
    if plan.merged is not None:
        recipe["merge"] = _merge(plan.merged, others, other_files, options.private)
    return recipe


def _unusual(options: BakeOptions) -> dict[str, object]:
    """Options on rounding that are not the usual ones."""
    usual = BakeOptions()
    names = ("rounding", "lift", "accept_loss")
    return {name: getattr(options, name) for name in names if getattr(options, name) != getattr(usual, name)}


def versions() -> dict[str, str]:
    """Versions that an output's bytes depend on; ``kernel`` is the processor's instructions."""
    import torch

    return {
        "paramerge": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "ml_dtypes": ml_dtypes.__version__,
        "kernel": torch.backends.cpu.get_cpu_capability(),
    }


def _merge(
    merged: MergedModels, names: Sequence[str], files: Sequence[Sequence[InputFile]], private: bool
) -> dict[str, object]:
    """Every model but the first, which is the base, what was made of them, and how many tensors that were."""
    others = []
    for model, name, own in zip(merged.others, names, files, strict=False):
        earlier = earlier_recipe(model, private=private).recipe
        others.append(_model(model, name, own, private) | ({} if earlier is None else {"recipe": earlier}))
    return {
        "models": others,
        "steps": [dict(step) for step in merged.steps],
        "components": dict(merged.components),
        "prune": merged.prune,
        "tensors": dict(merged.counts),
    }


def _content(plan: Plan, hashes: Mapping[PurePosixPath, str]) -> dict[str, object]:
    """The content hash of the output; of a folder that of each file, too."""
    if not plan.base.is_folder:
        return {"sha256": hashes[plan.files[0].relative]}
    files = {readable_name(str(path)): digest for path, digest in hashes.items()}
    if ZEROS in files.values():  # not known yet
        return {"sha256": ZEROS, "files": _named(files)}
    return {"sha256": folder_content_sha256(files), "files": _named(files)}


def _named(files: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "sha256": digest} for name, digest in sorted(files.items())]


def _model(model: Base, name: str, files: Sequence[InputFile], private: bool) -> dict[str, object]:
    return {
        **({"name": readable_name(name)} if model.is_folder and not private else {}),
        "layout": model.layout,
        "architecture": model.architecture,
        "files": [_file(file, private and not model.is_folder) for file in files],
    }


def output_metadata(base: Mapping[str, str], plan: Plan, recipe: Mapping[str, object]) -> dict[str, str]:
    """The metadata of an output file: the base's own that are still true, and the recipe.

    A private bake keeps of the base's own only those on the kind of the model.
    """
    base = public_metadata(base) if plan.options.private else base
    metadata = {key: value for key, value in base.items() if key not in _STALE and key != RECIPE_KEY}
    metadata.update(_modelspec(metadata, plan))
    metadata.setdefault("format", "pt")
    metadata[RECIPE_KEY] = json.dumps(recipe, separators=(",", ":"), sort_keys=True)
    return metadata


def _modelspec(base: Mapping[str, str], plan: Plan) -> dict[str, str]:
    fields = {"modelspec.sai_model_spec": base.get("modelspec.sai_model_spec", "1.0.0")}
    record = record_of(plan.base.architecture)
    architecture = base.get("modelspec.architecture") or record.modelspec
    if architecture:
        fields["modelspec.architecture"] = architecture
    implementation = base.get("modelspec.implementation") or _implementation(plan)
    if implementation:
        fields["modelspec.implementation"] = implementation
    resolution = base.get("modelspec.resolution") or record.resolution
    if resolution:
        fields["modelspec.resolution"] = resolution
    names = [readable_name(name) for name in _names(plan)]
    fields["modelspec.title"] = "merged model" if plan.options.private else title_of(plan)
    fields["modelspec.description"] = f"Baked with paramerge {__version__}; see {RECIPE_KEY}."
    if not plan.options.private:
        fields["modelspec.merged_from"] = ", ".join(names)
    return fields


def _implementation(plan: Plan) -> str | None:
    """The implementation whose names the keys have; None for a file of a model that has no name for them."""
    if plan.base.layout == DIFFUSERS_FOLDER:
        return "diffusers"
    unet = any(name.component == "unet" for file in plan.base.files for name in file.targets)
    return "sgm" if unet else None


def title_of(plan: Plan) -> str:
    """The names of all inputs, with what is done to them, in a line."""
    base, *names = (readable_name(name).removesuffix(".safetensors") for name in _names(plan))
    if plan.merged is not None:
        count = len(plan.merged.others)
        base, names = f"{' + '.join([base, *names[:count]])} ({plan.merged.title})", names[count:]
    strengths = [step.step.strength for step in plan.steps]
    steps = [
        name if strength == 1 else f"{name} @ {strength:g}"
        for name, strength in zip(names, strengths, strict=True)
    ]
    return " + ".join([base, *steps])


def _names(plan: Plan) -> list[str]:
    return [names.name for names in plan.names]


def _file(file: InputFile, private: bool) -> dict[str, object]:
    entry: dict[str, object] = {"sha256": file.sha256, "bytes": file.size}
    return entry if private else {"name": file.name, **entry}


def _step(step: PlannedStep, files: Sequence[InputFile], private: bool) -> dict[str, object]:
    return {
        "kind": step.step.kind,
        "strength": step.step.strength,
        "family": step.adapter.family,
        **({} if step.step.kind != "adapter" else {"families": dict(step.adapter.families)}),
        "dialect": step.adapter.dialect,
        **({"blocks": {use.block: _block(use) for use in step.blocks}} if step.blocks else {}),
        "files": [_file(file, private) for file in files],
        "layers": len(step.matched),
        "layers_excluded": len(step.excluded),
        "layers_unmatched": len(step.unmatched),
        "keys_left_over": sum(len(leftover.keys) for leftover in step.leftovers),
    }


def _own_interpretation(plan: Plan, step: PlannedStep) -> dict[str, object]:
    """The decisions for this adapter alone; those for all are among the options."""
    own = step.adapter.interpretation.decided
    return {"interpretation": own} if plan.interpretation is None and own else {}


def _block(use: BlockUse) -> dict[str, object]:
    return {"weight": use.weight, "layers": use.layers}
