"""PEFT's DEFT folders, read as a PaRa and written from one: ``DeftConfig(para=True, ... "qr")``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paramerge import algebra
from paramerge.adapters import Adapter, LayerModule, ParaModule
from paramerge.adapters.parts import Part
from paramerge.errors import AdapterError, FamilyError, UsageError
from paramerge.files.header import read_header
from paramerge.files.source import Source
from paramerge.files.tensors import stored
from paramerge.formats import peft
from paramerge.formats.layers import bare_layer
from paramerge.formats.provenance import base_hashes, guess_architecture
from paramerge.listing import listed
from paramerge.models.names import ModuleName
from paramerge.regular_files import is_there
from paramerge.wording import call

_SUFFIX = ".deft_P"
_CONVOLUTIONS = ("conv", "conv1", "conv2", "conv_in", "conv_out", "conv_shortcut")


def is_deft(path: Path) -> bool:
    """Whether the folder ``path`` is PEFT's and says DEFT."""
    config = path / peft.CONFIG_NAME
    return (
        path.is_dir()
        and is_there(config)
        and peft.read_config(Source.open(config)).get("peft_type") == "DEFT"
    )


def open_deft(folder: Path) -> Adapter:
    """The PaRa in a DEFT folder, unread.

    Raises
    ------
    FamilyError
        A DEFT that is no PaRa, or keys that are no PaRa's.
    AdapterError
        The name of no layer.
    """
    config = Source.open(folder / peft.CONFIG_NAME)
    stated = peft.read_config(config)
    method = stated.get("decomposition_method")
    if stated.get("para") is not True or method != "qr":
        raise FamilyError(
            "this DEFT adapter is no PaRa: it injects as well, or projects otherwise than by QR",
            where=config.path,
            expected="para true and decomposition_method qr",
            found=f"para {stated.get('para')!r} and decomposition_method {method!r}",
        )
    header = read_header(folder / peft.WEIGHTS_NAME)
    if other := [key for key in header.tensors if not key.endswith(_SUFFIX)]:
        raise FamilyError(
            "this DEFT adapter holds more than a PaRa",
            where=header.path,
            expected=f"keys that end in {_SUFFIX}",
            found=listed(other),
        )
    modules: dict[ModuleName, LayerModule] = {}
    for key in header.tensors:
        name = bare_layer(key.removeprefix(peft.PREFIX).removesuffix(_SUFFIX))
        if name is None:
            raise AdapterError("a key names no layer", where=f"{header.path}: {key}")
        modules[name] = ParaModule(name, stored(header, key))
    return Adapter(
        header.path,
        (header.source, config),
        "para",
        "peft-deft",
        modules,
        (),
        header.metadata,
        guess_architecture(modules, header.metadata),
        base_hashes(header.metadata),
    )


def deft_config(parts: Sequence[Part], linear: dict[ModuleName, bool] | None) -> dict[str, object]:
    """``adapter_config.json`` of one model's PaRa.

    Parameters
    ----------
    linear:
        Whether each layer is linear, where there was a base.

    Raises
    ------
    UsageError
        Several ranks.
    FamilyError
        A convolution: DEFT holds linear layers alone.
    AdapterError
        Dependent columns, out of which DEFT's QR would make directions.
    """
    from paramerge.peft.config import PaRaConfig
    from paramerge.peft.deft import deft_config as renamed

    for part in parts:
        is_linear = None if linear is None else linear.get(part.name)
        if is_linear is False or (is_linear is None and part.name.path.split(".")[-1] in _CONVOLUTIONS):
            raise FamilyError(
                "a layer is not linear, and DEFT holds linear layers alone",
                where=part.name,
                found="a convolution",
                hint="keep the PaRa's own format, which paramerge.peft loads with its convolutions",
            )
        _refuse_dependent(part)
    targets = sorted(part.name.path for part in parts)
    config = renamed(PaRaConfig(r=_one_rank(parts), target_modules=targets)).to_dict()
    return {**config, "target_modules": targets, "inference_mode": True}


def _refuse_dependent(part: Part) -> None:
    basis = part.tensors["basis"]
    cut = algebra.storage_tolerance(basis.dtype.name, basis.shape[1])
    if algebra.orthonormalise(basis.astype(np.float64), rtol=cut).deficiency:
        raise AdapterError(
            "columns of this basis depend on each other, and DEFT would make directions of their rounding",
            where=part.name,
            hint="write it again first: paramerge merge FILE -o CLEAN",
        )


def _one_rank(parts: Sequence[Part]) -> int:
    """The rank that all layers have; UsageError where they have several."""
    ranks = Counter(part.rank for part in parts)
    if len(ranks) > 1:
        raise UsageError(
            "the layers have different ranks, and DEFT has one for all",
            where=parts[0].name.component,
            expected="one rank",
            found=", ".join(f"rank {rank} in {count} layers" for rank, count in sorted(ranks.items())),
            hint=f"make them equal first: {call('resize', rank='')}, with the smallest",
        )
    return next(iter(ranks))
