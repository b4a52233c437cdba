"""The place of the output: never an input, never half written; for a folder, all that comes along."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from paramerge.bake.card import CARD, card_of_file, model_card
from paramerge.bake.history import without_paths
from paramerge.bake.plan import Plan
from paramerge.errors import OutputError
from paramerge.files.dtype_names import library_name, parse_dtype
from paramerge.files.file_names import cut_name
from paramerge.files.outputs import check_output_file, check_output_folder, inputs_of
from paramerge.files.source import Source
from paramerge.files.staging import write_recipe
from paramerge.storage.marks import without_quantised
from paramerge.strict_json import MAX_BYTES, object_from

_VARIANT = re.compile(r"\.(\w+)(?:-\d+-of-\d+)?\.safetensors$")
_NO_NAME = re.compile(r"[^\w.@-]")
"""Characters with a meaning in a shell or a path."""


def default_output(plan: Plan) -> Path:
    """A name in the current folder: the inputs' names, and all that makes two bakes of them differ."""
    parts = [plan.base.path.resolve().name.removesuffix(".safetensors").removesuffix(".gguf")]
    for step in plan.steps:
        name = step.step.path.resolve().name.removesuffix(".safetensors")
        parts.append(name if step.step.strength == 1 else f"{name}@{_number(step.step.strength)}")
        if step.step.blocks is not None:
            parts[-1] += f"-blocks-{_short_hash(repr(step.step.blocks))}"
    whole = "+".join((*parts, *_tags(plan)))
    stem = cut_name(whole)
    if stem != whole:
        stem = f"{cut_name(whole, 190)}~{_short_hash(whole)}"
    return Path(stem if plan.base.is_folder else stem + ".safetensors")


def _tags(plan: Plan) -> list[str]:
    """The options that are not the usual ones, each as a part of a file's name."""
    options = plan.options
    tags = [f"only-{pattern}" for pattern in options.only]
    if plan.base.is_folder:
        named = (_VARIANT.search(file.relative.name) for file in plan.files)
        tags += sorted({found[1] for found in named if found})
    if options.dtype != "keep":
        tags.append(options.dtype)
    if options.requantise:
        tags.append("requantised")
    if options.quantise is not None:
        tags.append(options.quantise)
    if options.gamma is not None:
        tags.append(f"gamma{_number(options.gamma)}")
    if options.merge != "joint":
        tags.append(options.merge)
    if options.rounding != "nearest":
        tags.append(options.rounding)
    if options.lift is not None:
        tags.append(f"lift-{options.lift}")
    decided = [step.adapter.interpretation.decided.items() for step in plan.steps]
    tags += dict.fromkeys(f"{name}-{value}" for items in decided for name, value in items)
    plain = [_NO_NAME.sub("_", tag) for tag in tags]
    return [new if new == tag else f"{new}-{_short_hash(tag)}" for new, tag in zip(plain, tags, strict=True)]


def _number(value: float) -> str:
    """All digits of a number, and no more."""
    return repr(value).removesuffix(".0")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]


def check_output(plan: Plan, output: Path, *, overwrite: bool = False) -> Path:
    """Refuse an output that may not be written, or that does not suit the base's layout.

    Returns
    -------
    Path
        ``output``, with ``.safetensors`` added where the base is a file and the name has no ending.

    Raises
    ------
    OutputError
    FileFormatError
        With another dtype: a configuration of the base that would say the new one is no JSON object.
    """
    inputs = inputs_of(*plan.opened)
    if plan.base.is_folder:
        output = check_output_folder(output, inputs, overwrite=overwrite)
    else:
        output = check_output_file(output, inputs, overwrite=overwrite)
        if plan.options.card:
            check_output_file(card_of_file(output), inputs, overwrite=overwrite, suffix=".md")
    for relative, source in zip(plan.base.companions, plan.base.companion_files, strict=True):
        _adjusted(plan, relative, source)  # a configuration that cannot be adjusted shows before the work
    _check_space(plan, Path(os.path.realpath(output)))
    return output


def companions(
    plan: Plan, recipe: Mapping[str, object]
) -> Iterator[tuple[PurePosixPath, Iterable[bytes | memoryview]]]:
    """The files that come along, each by its place in the output's folder, with its content in blocks.

    A card takes the place of the base's own.
    """
    if plan.options.card:
        yield CARD, [model_card(plan, recipe)]
    for relative, source in zip(plan.base.companions, plan.base.companion_files, strict=True):
        if plan.options.card and relative == CARD:
            continue
        adjusted = _adjusted(plan, relative, source)
        if plan.options.private and relative.suffix == ".json" and source.size <= MAX_BYTES:
            adjusted = without_paths(source.read(0, source.size) if adjusted is None else adjusted)
        yield relative, source.blocks() if adjusted is None else [adjusted]


def write_companions(plan: Plan, folder: Path, recipe: Mapping[str, object]) -> None:
    """Copy the files that come along, and write card and recipe beside them."""
    for relative, blocks in companions(plan, recipe):
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as stream:
            for block in blocks:
                stream.write(block)
    write_recipe(folder, recipe)


def _adjusted(plan: Plan, relative: PurePosixPath, source: Source) -> bytes | None:
    """The new content of a file that states keys, sizes or dtypes, where the plan changes them; else None."""
    files = [file for file in plan.files if file.relative.parent == relative.parent]
    layers = list(dict.fromkeys(layer for file in files for layer in file.dequantised))
    kept = plan.options.dtype == "keep" and not plan.options.requantise
    lifted = plan.lifted and relative.name != "config.json"
    if not files or (kept and not layers and not lifted):
        return None
    if relative.name.endswith(".safetensors.index.json"):
        content = _object(source)
        metadata, weight_map = content.get("metadata"), content.get("weight_map")
        total = sum(tensor.nbytes for file in files for tensor in file.tensors)
        content["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
        if (layers or plan.options.requantise) and isinstance(weight_map, dict):
            content["weight_map"] = {
                tensor.info.key: file.relative.name for file in files for tensor in file.tensors
            }
    elif relative.name == "config.json":
        content = _object(source)
        if plan.options.dtype != "keep":
            for key in {"torch_dtype", "dtype"} & content.keys():
                content[key] = library_name(parse_dtype(plan.options.dtype))
        if layers:
            there = {layer for file in files for layer in file.source.quantised.values()}
            content = without_quantised(content, layers, all_of_them=there <= set(layers))
    else:
        return None
    return (json.dumps(content, indent=2) + "\n").encode()


def _object(source: Source) -> dict[str, object]:
    raw = source.read(0, min(source.size, MAX_BYTES + 1))
    return object_from(raw, where=source.path, what="this configuration")


def _check_space(plan: Plan, real: Path) -> None:
    companions = [plan.base.path / relative for relative in plan.base.companions]
    needed = plan.output_bytes + sum(path.stat().st_size for path in companions)
    room = shutil.disk_usage(real.parent)
    if room.total and needed > room.free:  # ramfs and the like do not say how large they are
        raise OutputError(
            "the disk has too little room for the output",
            where=real,
            expected=f"{needed / 1e9:.2f} GB free",
            found=f"{room.free / 1e9:.2f} GB",
            hint="free some space or write to another disk; the old output is untouched",
        )
