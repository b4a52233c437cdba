"""kohya's dialect: ``lora_unet_..._to_q.lora_up.weight``, with an ``.alpha`` for each layer.

Text encoders are ``lora_te_`` (SD1, SD2) or ``lora_te1_`` and ``lora_te2_`` (SDXL). The UNet's names come in
two spellings: diffusers' (``down_blocks_0_attentions_0``) and, for SDXL, LDM's (``input_blocks_4_1``), which
tools call "sgm". LoCon adds convolutions and LyCORIS the Tucker core ``lora_mid`` and all of its families;
LyCORIS around a bare UNet writes ``lycoris_`` for ``lora_unet_``.

Files are written in diffusers' numbering, also for SDXL, unless LDM's is asked for: diffusers does not read
convolutions from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

from paramerge.errors import UsageError
from paramerge.files.hashing import checked_sha256
from paramerge.formats.dialect import Dialect, Place, WrittenLayer
from paramerge.formats.layers import underscored
from paramerge.kinds import followed
from paramerge.models.names import ModuleName
from paramerge.models.registry import record_of, records
from paramerge.models.unet_keys import UNetKeyMap

_BEGINNINGS = ("lora_", "lycoris_", "oft_unet_")
_NAMES = "kohya's names, which are those of a UNet and its CLIP text encoders"


def _claims(key: str) -> bool:
    return key.startswith(_BEGINNINGS)


def _place(stem: str) -> Place | None:
    spelled = underscored(stem)
    if spelled is None:
        return None
    return Place(spelled.name, spelled.layer, "kohya-sgm" if spelled.ldm else "kohya")


def _stem(name: ModuleName, architecture: str | None) -> str:
    prefixes = record_of(architecture).kohya.prefixes
    return prefixes.get(name.component, "") + name.path.replace(".", "_")


def _stem_in_ldm_blocks(name: ModuleName, architecture: str | None) -> str:
    if name.component == "unet":
        name = name._replace(path=_ldm_blocks(architecture).to_ldm(name.path) or "")
    return _stem(name, architecture)


@followed
@cache
def _ldm_blocks(architecture: str | None) -> UNetKeyMap:
    structure = record_of(architecture).ldm
    if structure is None:
        raise UsageError(
            "the architecture of this adapter is not known, and LDM's numbering depends on it",
            where="kohya-sgm",
            expected=", ".join(r.name for r in records() if r.ldm is not None and r.family is None),
            found=architecture or "unknown",
            hint="read it with the base that it is for, or keep kohya's usual names",
        )
    return UNetKeyMap(structure)


def _metadata(layers: Sequence[WrittenLayer], architecture: str | None) -> dict[str, str]:
    sizes = [(layer.rank, float(layer.rank) if layer.alpha is None else layer.alpha) for layer in layers]
    entries = kohya_metadata(sizes, architecture, ())
    if {layer.family for layer in layers} - {"lora"}:
        entries["ss_network_module"] = "lycoris.kohya"
    return entries


def kohya_metadata(
    sizes: Iterable[tuple[int, float]], architecture: str | None, base_sha256: Sequence[str]
) -> dict[str, str]:
    """The metadata that kohya's scripts and user interfaces read, from the rank and alpha of every layer.

    There is no date, so that the same input gives the same bytes. Raises UsageError for a text that is no
    SHA-256.
    """
    sizes = list(sizes)
    ranks, alphas = {rank for rank, _ in sizes}, {alpha for _, alpha in sizes}
    entries = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.implementation": "kohya-ss/sd-scripts",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
    }
    if architecture is not None:
        entries["modelspec.architecture"] = f"{record_of(architecture).stated_name}/lora"
    kohya = record_of(architecture).kohya
    if kohya.version is not None:
        entries["ss_base_model_version"] = kohya.version
        entries["ss_v2"] = str(kohya.v2)
    if len(base_sha256) == 1:
        entries["ss_new_sd_model_hash"] = checked_sha256(base_sha256[0])
    elif base_sha256:
        entries["paramerge.base_sha256"] = ",".join(map(checked_sha256, base_sha256))
    return entries


KOHYA = Dialect(
    key="kohya",
    names=_NAMES,
    claims=_claims,
    place=_place,
    spell=_stem,
    parts="kohya",
    underscored=True,
    original=True,
    aliases=("lycoris",),
    metadata=_metadata,
)
KOHYA_SGM = Dialect(
    key="kohya-sgm",
    names=_NAMES,
    claims=_claims,
    place=_place,
    spell=_stem_in_ldm_blocks,
    parts="kohya",
    underscored=True,
    metadata=_metadata,
    variant_of="kohya",
)
