"""``paramerge inspect``: the kind and the content of a file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import click

from paramerge.cli.call import print_json
from paramerge.cli.options import interpretation_options, json_option
from paramerge.cli.paths import InputPath
from paramerge.cli.verbs import Verb
from paramerge.files.recipe_text import RECIPE_KEY
from paramerge.inspect.folder import SORTS, inspect_folder, is_collection
from paramerge.inspect.inspection import (
    AdapterFacts,
    CheckpointFacts,
    ForeignFacts,
    LayerFacts,
    UnknownFacts,
    inspect_path,
    read_recipe,
)
from paramerge.inspect.training_notes import training_notes
from paramerge.interpretation import Interpretation, KronaOrder

Facts = AdapterFacts | ForeignFacts | CheckpointFacts | UnknownFacts


@click.command(cls=Verb)
@click.argument("path", metavar="FILE|FOLDER", type=InputPath())
@click.option("--layers", "all_layers", is_flag=True, help="List every layer of an adapter.")
@click.option("--metadata", "all_metadata", is_flag=True, help="Print all metadata, not the useful part.")
@click.option(
    "--sort",
    type=click.Choice(list(SORTS)),
    default="name",
    show_default=True,
    help="Order of the table of a folder of models.",
)
@interpretation_options
@json_option
def inspect(
    path: Path,
    all_layers: bool,
    all_metadata: bool,
    sort: str,
    lokr_scale: float | None,
    krona: KronaOrder | None,
    released: str | None,
    alpha: str | None,
    as_json: bool,
) -> None:
    """Say what a file or folder is: an adapter, a checkpoint, a bake.

    Adapters (files and PEFT folders) are opened as bake opens them; one of a family that cannot be baked is
    named all the same. Of a folder of many models, a table with a line for each.

    \b
    paramerge inspect style.safetensors --layers
    paramerge inspect loras/ --sort size
    """
    interpretation = Interpretation(lokr_scale, krona, alpha=alpha, released=released)
    if is_collection(path) and (entries := inspect_folder(path, sort, interpretation)):
        from paramerge.cli.inspect_folder import folder_data, show_folder

        if as_json:
            print_json(folder_data(path, entries))
        else:
            show_folder(path, entries)
        return
    facts = inspect_path(path, interpretation)
    if as_json:
        print_json(as_data(facts))
        return
    from paramerge.cli.inspect_text import show

    show(facts, all_layers=all_layers, all_metadata=all_metadata)


def as_data(facts: Facts) -> dict[str, object]:
    """All facts, ready for JSON: numbers that are not finite become null."""
    if isinstance(facts, AdapterFacts):
        content = _adapter(facts)
    elif isinstance(facts, ForeignFacts):
        content = _foreign(facts)
    elif isinstance(facts, CheckpointFacts):
        content = _checkpoint(facts)
    else:
        content = _unknown(facts)
    metadata = facts.metadata
    content["training"] = dict(training_notes(metadata))
    content["recipe"] = read_recipe(metadata)
    content["metadata"] = {key: value for key, value in metadata.items() if key != RECIPE_KEY}
    return content


def _adapter(facts: AdapterFacts) -> dict[str, object]:
    adapter = facts.adapter
    return {
        "what": "adapter",
        "supported": True,
        "path": str(adapter.path),
        "files": [str(source) for source in adapter.sources],
        "bytes": facts.size,
        "family": adapter.family,
        "families": dict(adapter.families),
        "dialect": adapter.dialect,
        "architecture": adapter.architecture,
        "looks_like": facts.looks_like,
        "possible_architectures": list(facts.possible),
        "base_hashes": list(adapter.base_hashes),
        "components": _nested(Counter((layer.name.component, layer.kind) for layer in facts.layers)),
        "ranks": _counted(Counter(layer.rank for layer in facts.layers)),
        "layers": [_layer(layer) for layer in facts.layers],
        "leftovers": {key: left.reason for left in adapter.leftovers for key in left.keys},
    }


def _layer(layer: LayerFacts) -> dict[str, object]:
    content: dict[str, object] = {
        "layer": str(layer.name),
        "kind": layer.kind,
        "rank": layer.rank,
        "shape": list(layer.shape),
        "dtype": layer.dtype,
    }
    if layer.directions is not None:
        return {**content, "directions": layer.directions}
    if layer.family != "lora":
        content |= {"family": layer.family, "form": layer.form, "rank_bound": layer.rank_bound}
    return {**content, "alpha": layer.alpha, "scale": layer.scale, "norm": _finite(layer.norm)}


def _foreign(facts: ForeignFacts) -> dict[str, object]:
    return {
        "what": "adapter",
        "supported": False,
        "path": str(facts.path),
        "bytes": facts.size,
        "reason": facts.reason,
        "hint": facts.hint,
        "families": dict(facts.families),
        "components": _nested(facts.components),
        "modules_of_unknown_name": facts.unnamed,
        "alphas": _counted(facts.alphas),
        "tensors": facts.tensors,
        "dtypes": dict(facts.dtypes),
    }


def _checkpoint(facts: CheckpointFacts) -> dict[str, object]:
    base = facts.base
    return {
        "what": "checkpoint",
        "supported": True,
        "path": str(base.path),
        "layout": base.layout,
        "architecture": base.architecture,
        "true_dimensions": base.true_dimensions,
        "bytes": facts.size,
        "components": {
            part.component: {
                "tensors": part.tensors,
                "layers": part.layers,
                "bytes": part.size,
                "dtypes": dict(part.dtypes),
            }
            for part in facts.components
        },
        **({"quantised": dict(facts.quantised)} if facts.quantised else {}),
        "files": [str(file.relative) for file in base.files],
        "companions": [str(path) for path in base.companions],
        "left_out": {str(path): reason for path, reason in base.left_out},
    }


def _unknown(facts: UnknownFacts) -> dict[str, object]:
    return {
        "what": "unknown",
        "supported": False,
        "path": str(facts.path),
        "bytes": facts.size,
        "reason": facts.reason,
        "tensors": len(facts.keys),
        "dtypes": dict(facts.dtypes),
        "keys": list(facts.keys),
    }


def _nested(counts: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    content: dict[str, dict[str, int]] = {}
    for (component, kind), count in counts.items():
        content.setdefault(component, {})[kind] = count
    return content


def _counted(counts: Mapping[int, int] | Mapping[float, int]) -> dict[str, int]:
    return {f"{value:g}": count for value, count in sorted(counts.items())}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
