"""paramerge's own PaRa files: one tensor a layer, ``<component>.<layer>.para_B`` of shape (d, r).

The format is specified in ``docs/para-format.md``. Only the span of a tensor's columns counts, so a basis
that was trained and never orthonormalised is as good as an orthonormal one.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from paramerge.adapters import Leftover, ParaModule
from paramerge.errors import AdapterError, FileFormatError, NonFiniteError, ShapeError, UsageError
from paramerge.files.dtype_names import parse_dtype
from paramerge.files.dtypes import NUMPY, is_float
from paramerge.files.hashing import checked_sha256
from paramerge.files.header import Header
from paramerge.files.tensors import StoredTensor, stored
from paramerge.files.writer import write_safetensors
from paramerge.formats.dialect import Dialect, Place
from paramerge.formats.layers import stated_layer, strays
from paramerge.listing import listed
from paramerge.models.names import ModuleName
from paramerge.models.registry import record_of
from paramerge.strict_json import object_from

FORMAT_VERSION = "1.0"
"""Major and minor. A newer minor adds only what may be ignored; a newer major is refused."""
SUFFIX = ".para_B"
FORMAT_KEY = "paramerge.format"
VERSION_KEY = "paramerge.format_version"
ARCHITECTURE_KEY = "paramerge.architecture"
BASE_HASH_KEY = "paramerge.base_sha256"
GAMMA_KEY = "paramerge.gamma"
RANKS_KEY = "paramerge.ranks"
TARGETS_KEY = "paramerge.targets"

_MAJOR = int(FORMAT_VERSION.partition(".")[0])
_VERSION = re.compile(r"(?P<major>[0-9]{1,4})(?:\.[0-9]{1,4})?")


def read_modules(header: Header) -> tuple[dict[ModuleName, ParaModule], tuple[Leftover, ...]]:
    """The layers of a native file, and the keys that are none.

    Raises
    ------
    FileFormatError
        It says it is of another format, or of a version newer than this one reads.
    AdapterError
        A rank of 0, or metadata that contradict the tensors.
    ShapeError
        A basis that is not a tall matrix.
    """
    _check_version(header)
    modules: dict[ModuleName, ParaModule] = {}
    unknown = []
    named = {key: stated_layer(key.removesuffix(SUFFIX)) for key in header.tensors if key.endswith(SUFFIX)}
    lost = strays(name for name in named.values() if name is not None)
    for key in header.tensors:
        name = named.get(key)
        if name is None or name in lost:
            unknown.append(key)
        elif name in modules:
            raise AdapterError(
                "two keys of this file name the same layer",
                where=f"{header.path}: {name}",
                found=f"{modules[name].basis.key} and {key}",
            )
        else:
            modules[name] = ParaModule(name, _checked_basis(stored(header, key)))
    _check_ranks(header, modules)
    reason = "the name is not that of a layer that a PaRa can reduce"
    return modules, (Leftover(tuple(unknown), reason),) if unknown else ()


def write_para(
    path: str | os.PathLike[str],
    modules: Mapping[ModuleName, np.ndarray],
    *,
    architecture: str | None,
    base_sha256: str | Sequence[str] | None = None,
    gamma: float | None = None,
    targets: Sequence[str] | None = None,
    dtype: str = "F16",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
) -> None:
    """Write a native PaRa file, whole or not at all; the same content gives the same bytes.

    Parameters
    ----------
    modules:
        For each layer its directions, (d, r) with 1 <= r <= d, of any float dtype; orthonormal or not.
    architecture:
        ``sd15``, ``sdxl`` ...; None where it is not known.
    base_sha256:
        SHA-256 in hex of the checkpoint's file that the directions were made for, or of its several files.
    gamma:
        The rank boundary that was in force (the paper's equation 8), in (0, 1].
    targets:
        Names of the module kinds that were asked for, such as ``to_q``; by default those that are there.
    dtype:
        ``F16``, ``BF16`` or ``F32``: each element is rounded once to it.
    metadata:
        More metadata, kept as they are; keys that begin with ``paramerge.`` are refused.
    overwrite:
        Whether a file at ``path`` may be replaced.

    Raises
    ------
    UsageError
        No layers, or a value that the format does not allow.
    ShapeError, NonFiniteError
        A basis that cannot be stored so: not (d, r), not finite, beyond the range of ``dtype``, or with a
        column of zeros.
    OutputError
        The file cannot be written.
    """
    dtype = parse_dtype(dtype)
    if not modules:
        raise UsageError("there is no layer to write", where=path, expected="at least one layer")
    if reserved := [key for key in metadata or {} if key.startswith("paramerge.")]:
        raise UsageError(
            "metadata were given under names of the format itself", where=path, found=listed(reserved)
        )
    modules = dict(sorted(modules.items()))
    lost = strays(modules)
    tensors = {
        f"{name}{SUFFIX}": _stored_basis(name, basis, dtype, name in lost) for name, basis in modules.items()
    }
    ranks = {str(name): int(basis.shape[1]) for name, basis in modules.items()}
    entries = {
        FORMAT_KEY: "para",
        VERSION_KEY: FORMAT_VERSION,
        RANKS_KEY: json.dumps(ranks),
        TARGETS_KEY: json.dumps(sorted(targets) if targets is not None else _module_kinds(modules)),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "paramerge",
    }
    if architecture is not None:
        entries[ARCHITECTURE_KEY] = architecture
        entries["modelspec.architecture"] = f"{record_of(architecture).stated_name}/para"
    if base_sha256:
        many = [base_sha256] if isinstance(base_sha256, str) else base_sha256
        entries[BASE_HASH_KEY] = ",".join(map(checked_sha256, many))
    if gamma is not None:
        entries[GAMMA_KEY] = repr(_checked_gamma(gamma, "gamma"))
    write_safetensors(path, tensors, entries | dict(metadata or {}), overwrite=overwrite)


def _check_version(header: Header) -> None:
    kind = header.metadata.get(FORMAT_KEY, "para")
    version = header.metadata.get(VERSION_KEY, FORMAT_VERSION)
    if kind != "para":
        raise FileFormatError(
            "this file says it is of another format", where=header.path, expected="para", found=kind
        )
    if not (numbers := _VERSION.fullmatch(version)) or int(numbers["major"]) != _MAJOR:
        raise FileFormatError(
            "this PaRa file is of an unknown version",
            where=header.path,
            expected=f"format version {_MAJOR}, or {_MAJOR}.0 and on",
            found=f"format version {version}",
            hint="update paramerge",
        )
    if GAMMA_KEY in header.metadata:
        _checked_gamma(header.metadata[GAMMA_KEY], f"{header.path}: metadata {GAMMA_KEY}")


def _checked_basis(basis: StoredTensor) -> StoredTensor:
    where = f"{basis.path}: {basis.key}"
    if not is_float(basis.dtype):
        raise AdapterError(
            "a basis is not stored as floating-point numbers",
            where=where,
            expected="a float dtype",
            found=basis.dtype,
        )
    _check_shape(basis.shape, where)
    return basis


def _check_shape(shape: tuple[int, ...], where: str) -> None:
    if len(shape) == 2 and 0 in shape:
        raise AdapterError(
            "a layer has rank or size 0", where=where, expected="(d, r) with r at least 1", found=list(shape)
        )
    if len(shape) != 2 or shape[1] > shape[0]:
        raise ShapeError(
            "a basis is not a tall matrix",
            where=where,
            expected="(d, r): d output features, r directions, r at most d",
            found=list(shape),
        )


def _check_ranks(header: Header, modules: Mapping[ModuleName, ParaModule]) -> None:
    text = header.metadata.get(RANKS_KEY)
    if text is None:
        return
    where = f"{header.path}: metadata {RANKS_KEY}"
    stated = object_from(text, where, what="this text of the metadata", error=AdapterError)
    found = {str(name): module.rank for name, module in modules.items()}
    differing = sorted(name for name in stated.keys() | found.keys() if stated.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise AdapterError(
            f"the metadata and the tensors differ in {len(differing)} layers",
            where=f"{where}: {listed(differing)}",
            expected=f"{name} of rank {stated.get(name)}" if name in stated else f"no {name}",
            found=f"rank {found[name]}" if name in found else "no such layer",
            hint="the file was changed or cut after it was saved: get it from its source again",
        )


def _stored_basis(name: ModuleName, basis: np.ndarray, dtype: str, misplaced: bool) -> np.ndarray:
    if misplaced or stated_layer(str(name)) != name:
        raise UsageError(
            "this is not a layer that a PaRa can reduce",
            where=name,
            expected="a layer of a UNet or text encoder, such as unet.mid_block.attentions.0.proj_in",
        )
    basis = np.asarray(basis)
    _check_shape(basis.shape, str(name))
    with np.errstate(over="ignore", under="ignore"):  # numbers that overflow or vanish are refused just below
        rounded = basis.astype(NUMPY[dtype])
    if not np.isfinite(rounded.astype(np.float32)).all():
        raise NonFiniteError(
            "a basis holds NaN or Inf"
            if not np.isfinite(basis).all()
            else f"a basis is beyond the range of {dtype}",
            where=name,
            hint="only the span counts: divide its columns by their length",
        )
    if not (rounded != 0).any(axis=0).all():
        raise ShapeError(
            "a direction of this basis is all zeros",
            where=name,
            expected="columns that each name a direction",
            found=f"column {int(np.flatnonzero(~(rounded != 0).any(axis=0))[0])} is 0 as {dtype}",
            hint="leave the column out: it has no direction, and a QR would make one up",
        )
    return rounded


def _module_kinds(modules: Mapping[ModuleName, np.ndarray]) -> list[str]:
    """The ends of the layers' paths, as PEFT's ``target_modules`` would name them: ``to_q``, ``to_out.0``."""
    kinds = set()
    for name in modules:
        words = name.path.split(".")
        kinds.add(".".join(words[-2:]) if words[-1].isdecimal() else words[-1])
    return sorted(kinds)


def _checked_gamma(gamma: float | str, where: str) -> float:
    try:
        value = float(gamma)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise AdapterError("gamma is out of range", where=where, expected="a number in (0, 1]", found=gamma)
    return value


def _claims(key: str) -> bool:
    return key.endswith(SUFFIX)


def _place(stem: str) -> Place | None:
    layer = stated_layer(stem)
    return Place(layer, True, "para") if layer else None


def _stem(name: ModuleName, architecture: str | None) -> str:
    return str(name)


PARA = Dialect(
    key="para",
    names="a component of a model and the path of a module",
    claims=_claims,
    place=_place,
    endings={"basis": SUFFIX.removeprefix(".")},
    spell=_stem,
    parts="para",
)
