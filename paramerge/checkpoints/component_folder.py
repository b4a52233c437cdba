"""The weight files of one component's folder: which variant is taken, and whether shards match their index.

diffusers and transformers name weights ``STEM[.VARIANT].safetensors``, or in shards
``STEM[.VARIANT]-00001-of-00002.safetensors`` with ``STEM.safetensors.index[.VARIANT].json``, which maps each
key to its shard; older versions of diffusers put the variant behind the numbers and before ``index``. Beside
them are twins in other formats, which must not be mixed up with a changed copy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from paramerge.errors import CheckpointError
from paramerge.files.folder_links import check_regular, refuse_link_outside
from paramerge.files.header import Header, read_header
from paramerge.models.names import MODEL
from paramerge.strict_json import read_object
from paramerge.wording import option

WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".onnx",
    ".onnx_data",
    ".pb",
    ".msgpack",
    ".h5",
    ".gguf",
    ".xml",
)
"""Endings of files that hold (or, for OpenVINO's ``.xml``, describe) weights."""

MAX_INDEX_BYTES = 100_000_000
MAX_NAME_BYTES = 255


def stem_of(component: str) -> str:
    """The name that weights of ``component`` begin with."""
    return "model" if component.startswith(("text_encoder", MODEL)) else "diffusion_pytorch_model"


@dataclass(frozen=True, slots=True)
class Weights:
    """One variant of a component's weights: a file, or the index of several."""

    variant: str | None
    path: Path

    @property
    def sharded(self) -> bool:
        """Whether ``path`` is an index."""
        return self.path.suffix == ".json"


def is_weight_file(path: Path) -> bool:
    """Whether a file in a component's folder holds weights or is an index of them."""
    return path.name.endswith((*WEIGHT_SUFFIXES, ".index.json")) or ".safetensors.index." in path.name


_SHARD = re.compile(r".*-\d{5}-of-\d{5}(\..+)?\.safetensors")


def is_shard(path: Path) -> bool:
    """Whether a file is, by its name, one of several that hold a model together."""
    return _SHARD.fullmatch(path.name) is not None


def choose_weights(folder: Path, component: str, variant: str | None) -> Weights:
    """The weights to take: ``variant`` if given, else the plain ones, else the only variant there is.

    Raises
    ------
    CheckpointError
        There are none (or only formats that are not opened), ``variant`` is not among them, or there are
        several and none is plain.
    """
    found = _available(folder, stem_of(component))
    if not found:
        raise _no_weights(folder, stem_of(component))
    names = ", ".join(sorted(name or "(plain)" for name in found))
    if variant is not None:
        if variant not in found:
            raise CheckpointError(
                f"the folder has no {variant!r} variant of these weights",
                where=folder,
                expected=f"{stem_of(component)}.{variant}.safetensors",
                found=names,
            )
        return found[variant]
    if None in found:
        return found[None]
    if len(found) > 1:
        raise CheckpointError(
            "there are several variants of these weights and none without a variant's name",
            where=folder,
            found=names,
            hint=f"choose one with {option('variant')}: {names}",
        )
    return next(iter(found.values()))


def find_weights(folder: Path, component: str, variant: str | None) -> Weights | None:
    """The weights of a component that stays as it is: ``variant``, else the plain ones, else the only ones.

    None where there are none in safetensors, or nothing says which.
    """
    found = _available(folder, stem_of(component)) if folder.is_dir() else {}
    only = next(iter(found.values())) if len(found) == 1 else None
    return found.get(variant) or found.get(None) or only


def common_variant(folders: Mapping[str, Path]) -> str | None:
    """The variant to take where none is asked for: one that fits all components, given by their folders.

    Were each component to choose alone, a plain one and an fp16 one could meet, which no reader would load
    together. None leaves it to each: all have plain weights, or there is no single variant in common.
    """
    found = [set(_available(folder, stem_of(component))) for component, folder in folders.items()]
    if all(None in variants for variants in found):
        return None
    shared = set.intersection(*found)
    return shared.pop() if len(shared) == 1 else None


def _available(folder: Path, stem: str) -> dict[str | None, Weights]:
    """Every variant in the folder, by name; None is the one without."""
    names = [
        re.compile(rf"{stem}(?:\.(?P<variant>[\w-]+))?\.safetensors"),
        re.compile(rf"{stem}\.safetensors\.index(?:\.(?P<variant>[\w-]+))?\.json"),
        re.compile(rf"{stem}\.safetensors\.(?P<variant>[\w-]+)\.index\.json"),
    ]
    found: dict[str | None, Weights] = {}
    for path in sorted(folder.iterdir()):
        match = next((match for name in names if (match := name.fullmatch(path.name))), None)
        if match is None or is_shard(path):
            continue
        check_regular(path)
        variant = match["variant"]
        if variant in found:
            raise CheckpointError(
                "the same weights are there twice: as one file and in shards",
                where=folder,
                found=f"{found[variant].path.name} and {path.name}",
                hint="remove the one that is out of date",
            )
        found[variant] = Weights(variant, path)
    return found


def _no_weights(folder: Path, stem: str) -> CheckpointError:
    others = sorted(path.name for path in folder.iterdir() if is_weight_file(path))
    pickles = [name for name in others if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return CheckpointError(
            "the weights are pickles, which are never opened: they can run any code",
            where=folder,
            expected=f"{stem}.safetensors",
            found=", ".join(pickles),
            hint="save the model again with safe_serialization=True, in a sandbox if you do not trust it",
        )
    return CheckpointError(
        "there are no weights in this folder",
        where=folder,
        expected=f"{stem}.safetensors, a variant of it, or shards with an index",
        found=", ".join(others) or "none",
    )


def read_weights(weights: Weights, root: Path) -> list[Header]:
    """The headers of the weights' files, in the order of their names, checked against the index if sharded.

    Raises
    ------
    CheckpointError
        The weights are a link out of ``root``; the index is not one, names files outside its folder (also
        through such links) or files that are missing, or does not agree with what the shards hold.
    FileFormatError
        A file is damaged.
    """
    refuse_link_outside(weights.path, root)
    if not weights.sharded:
        return [read_header(weights.path)]
    weight_map = _read_index(weights.path)
    folder = weights.path.parent
    names = sorted(set(weight_map.values()))
    for name in names:
        _check_shard_name(weights.path, name)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(
            "shards that the index names are missing",
            where=weights.path,
            expected=f"{len(names)} shards",
            found="missing: " + ", ".join(missing),
            hint="download them, or the whole folder, again",
        )
    for name in names:
        refuse_link_outside(folder / name, root)
    headers = [read_header(folder / name) for name in names]
    _check_shards(weights.path, weight_map, headers)
    return headers


def _read_index(path: Path) -> Mapping[str, str]:
    def refuse(found: str) -> CheckpointError:
        return CheckpointError(
            "this is not an index of shards",
            where=path,
            expected='{"weight_map": {key: shard}}',
            found=found,
            hint="download it again",
        )

    index = read_object(path, what="this index", error=CheckpointError, limit=MAX_INDEX_BYTES)
    if not isinstance(index.get("metadata", {}), dict | None):
        raise refuse("metadata that are not an object")
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise refuse("no weight_map from keys to file names")
    if not weight_map:
        raise refuse("an empty weight_map")
    return weight_map


def _check_shard_name(index: Path, name: str) -> None:
    """Shards are beside their index: a name that could lead elsewhere is refused, on every system."""
    inside = PureWindowsPath(name).name == name and name not in ("", ".", "..")
    if not inside or not name.isprintable() or len(name.encode()) > MAX_NAME_BYTES:
        raise CheckpointError(
            "the index names a shard by something that is no file name"
            if inside
            else "the index points outside its folder",
            where=index,
            expected="plain file names",
            found=ascii(name[:MAX_NAME_BYTES]),
            hint="the index is damaged or made to deceive: get the model from its source again",
        )
    if not name.endswith(".safetensors"):
        raise CheckpointError(
            "the index names a shard that is not safetensors",
            where=index,
            expected="*.safetensors",
            found=name,
        )


def _check_shards(index: Path, weight_map: Mapping[str, str], headers: list[Header]) -> None:
    def refuse(what: str, keys: list[str], shard: str) -> CheckpointError:
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        return CheckpointError(
            what,
            where=f"{index} and {shard}",
            found=", ".join(keys[:3]) + more,
            hint="index and shards are not of one model: download the folder again",
        )

    owner: dict[str, str] = {}
    for header in headers:
        shard = header.path.name
        if twice := [key for key in header.tensors if key in owner]:
            raise refuse(f"two shards hold the same tensors (the other is {owner[twice[0]]})", twice, shard)
        owner |= dict.fromkeys(header.tensors, shard)
    for header in headers:
        shard = header.path.name
        if absent := [key for key, name in weight_map.items() if name == shard and owner.get(key) != shard]:
            raise refuse("the shard lacks tensors that the index places in it", absent, shard)
        if unlisted := [key for key in header.tensors if weight_map.get(key) != shard]:
            raise refuse("the shard holds tensors that the index does not list for it", unlisted, shard)
