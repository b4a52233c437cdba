"""The place of the output: never an input, never half written; for a folder, all that comes along."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from paramerge.checkpoints.file_names import cut_name
from paramerge.checkpoints.writer import exchange_names, output_error, sync_folder
from paramerge.errors import OutputError
from paramerge.merge.plan import Plan

__all__ = ["RECIPE_FILE", "check_output", "default_output", "new_folder", "write_companions"]

RECIPE_FILE = "paramerge_recipe.json"
_CONFIG_DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def default_output(plan: Plan) -> Path:
    """A name made of the inputs' names, in the current folder."""
    parts = [plan.base.path.resolve().name.removesuffix(".safetensors")]
    for step in plan.steps:
        name = step.step.path.resolve().name.removesuffix(".safetensors")
        parts.append(name if step.step.strength == 1 else f"{name}@{step.step.strength:g}")
    stem = cut_name("+".join(parts))
    return Path(stem if plan.base.is_folder else stem + ".safetensors")


def check_output(plan: Plan, output: Path) -> None:
    """Refuse an output that is an input, lies in one, or cannot be what the base's layout needs.

    Raises
    ------
    OutputError
    """
    real = Path(os.path.realpath(output))
    sources = [Path(os.path.realpath(source)) for step in plan.steps for source in step.adapter.sources]
    base = Path(os.path.realpath(plan.base.path))
    base_files = [Path(os.path.realpath(file.source.header.path)) for file in plan.files]
    for source in (base, *base_files, *sources):
        if real == source or _same_file(real, source) or (real.is_dir() and source.is_relative_to(real)):
            raise OutputError(
                "the output is one of the inputs",
                where=output,
                found=f"the same as {source.name}" if real == source else f"{source} by another name",
                hint="give another -o: inputs are never overwritten",
            )
    if base.is_dir() and real.is_relative_to(base):
        raise OutputError("the output lies inside the base's folder", where=output, hint="give another -o")
    if plan.base.is_folder:
        _check_folder(output, real)
    elif real.is_dir():
        raise OutputError(
            "the output is a folder, the base is a single file",
            where=output,
            hint=f"give a file name, such as {output / default_output(plan).name}",
        )
    if not real.parent.is_dir():
        raise OutputError(
            "the folder of the output does not exist",
            where=output,
            hint=f"create it: mkdir -p {output.parent}",
        )
    _check_space(plan, real)


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a new empty folder beside ``output``; at the end of the block it stands at ``output``.

    An earlier model folder there is moved aside first and removed after; if anything fails it is as it was.
    """
    target = Path(os.path.realpath(output))
    partial = target.with_name(f".{cut_name(target.name)}.{secrets.token_hex(6)}.partial")
    try:
        partial.mkdir()
        yield partial
        for path in sorted(partial.rglob("*"), reverse=True):
            if path.is_dir():
                sync_folder(path)
        sync_folder(partial)
        _exchange(partial, target)
        sync_folder(target.parent)
    except OSError as error:
        raise output_error(error, target) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_companions(plan: Plan, folder: Path, recipe: Mapping[str, object]) -> None:
    """Copy the files that come along untouched, and write the recipe beside them."""
    for relative in plan.base.companions:
        source, target = plan.base.path / relative, folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        adjusted = _adjusted(plan, relative)
        if adjusted is None:
            shutil.copyfile(source, target)
        else:
            target.write_bytes(adjusted)
        _sync(target)
    text = json.dumps(recipe, indent=2, sort_keys=True) + "\n"
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")
    _sync(folder / RECIPE_FILE)


def _adjusted(plan: Plan, relative: PurePosixPath) -> bytes | None:
    """The new content of a file that speaks of sizes or dtypes, when ``--dtype`` changed them; else None."""
    files = [file for file in plan.files if file.relative.parent == relative.parent]
    if plan.options.dtype == "keep" or not files:
        return None
    path = plan.base.path / relative
    if relative.name.endswith(".safetensors.index.json"):
        content = json.loads(path.read_bytes())
        total = sum(tensor.nbytes for file in files for tensor in file.tensors)
        content.setdefault("metadata", {})["total_size"] = total
    elif relative.name == "config.json":
        content = json.loads(path.read_bytes())
        for key in {"torch_dtype", "dtype"} & content.keys():
            content[key] = _CONFIG_DTYPES[plan.options.dtype]
    else:
        return None
    return (json.dumps(content, indent=2) + "\n").encode()


def _check_folder(output: Path, real: Path) -> None:
    if output.suffix == ".safetensors":
        raise OutputError(
            "the base is a folder, so the output is one too",
            where=output,
            hint=f"give a folder name, such as {output.with_suffix('')}",
        )
    model = any((real / name).is_file() for name in ("model_index.json", RECIPE_FILE))
    if real.is_dir() and any(real.iterdir()) and not model:
        raise OutputError(
            "a folder that is not a model stands at the output",
            where=output,
            hint="give another -o, or move it away",
        )
    if real.exists() and not real.is_dir():
        raise OutputError(
            "a file stands where the folder should be written", where=output, hint="give another -o"
        )


def _check_space(plan: Plan, real: Path) -> None:
    companions = [plan.base.path / relative for relative in plan.base.companions]
    needed = plan.output_bytes + sum(path.stat().st_size for path in companions)
    disk = shutil.disk_usage(real.parent)
    free = disk.free
    if disk.total and needed > free:  # file systems without a size (ramfs, /proc) do not say what is free
        raise OutputError(
            "the disk has too little room for the output",
            where=real,
            expected=f"{needed / 1e9:.2f} GB free",
            found=f"{free / 1e9:.2f} GB",
            hint="free some space or write to another disk; what stood there before is untouched",
        )


def _same_file(a: Path, b: Path) -> bool:
    """Whether two names (hard links, too) are of one file."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def _exchange(partial: Path, target: Path) -> None:
    """Put ``partial`` at ``target``; what stood there goes to ``partial``'s name, to be removed."""
    if not target.exists():
        partial.rename(target)
        return
    if exchange_names(partial, target):
        return
    aside = partial.with_name(partial.name + ".old")
    target.rename(aside)
    try:
        partial.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
