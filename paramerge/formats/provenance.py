"""The origin of an adapter: its architecture and its base, by shapes, names and metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from paramerge.adapters import LayerModule
from paramerge.expressions import occurring
from paramerge.formats.native import ARCHITECTURE_KEY, BASE_HASH_KEY
from paramerge.models.model_names import allows
from paramerge.models.names import ModuleName
from paramerge.models.registry import published, published_shapes, record_of, records
from paramerge.models.spelling import likeliest, possible_models

_SHA256 = re.compile(r"(?:0x)?([0-9a-f]{64})")
_SHORT_HASH = re.compile(r"[0-9a-f]{8,10}")


def guess_architecture(modules: Mapping[ModuleName, LayerModule], metadata: Mapping[str, str]) -> str | None:
    """``sd15``, ``sd2``, ``sdxl`` or ``sdxl-refiner``; ``flux`` or ``sd3`` if the trainer noted it.

    Shapes prove it; else names show it (unless a PaRa states another that has these layers, too), else a PaRa
    states it, else the trainer noted it: structure decides, and what is stated of layers that cannot be of
    that model is not believed. Where a model is stated that has no such layers, the one that has them is
    meant. None where they leave it open
    (the first text encoder is the same in SD1.5 and SDXL), or where shapes contradict each other.
    """
    proven = set(_from_shapes(modules.values()))
    if proven:
        return proven.pop() if len(proven) == 1 else None
    by_para = metadata.get(ARCHITECTURE_KEY)
    if named := _from_names(modules):
        return by_para if by_para and by_para != named and _has_layers(by_para, modules) else named
    stated = by_para or _from_metadata(metadata)
    possible = models_by_structure(modules)
    if possible:
        fitting = [name for name in possible if stated and record_of(name).plain == record_of(stated).plain]
        return (stated if stated in possible else fitting[0]) if fitting else likeliest(possible)
    return stated if stated and allows((name.path for name in modules), stated) else None


def models_by_structure(modules: Mapping[ModuleName, LayerModule]) -> tuple[str, ...]:
    """The architectures with key maps that have all these layers, by names and proportions."""
    return possible_models({name: (m.out_features, m.in_features) for name, m in modules.items()})


def possible_architectures(modules: Mapping[ModuleName, LayerModule]) -> tuple[str, ...]:
    """The published architectures that have all these layers, of these sizes; of any, if none is of them."""
    having = {
        name: published_shapes(name)
        for name in published()
        if modules.keys() <= published_shapes(name).keys()
    }
    sized = [
        name for name, shapes in having.items() if all(m.fits(shapes[layer]) for layer, m in modules.items())
    ]
    return tuple(sized or having)


def _has_layers(architecture: str, modules: Iterable[ModuleName]) -> bool:
    """Whether a published architecture has all these layers, as the refiner has SDXL's second encoder."""
    return set(modules) <= published_shapes(architecture).keys()


def base_hashes(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Hashes of the checkpoint that ``metadata`` name: SHA-256 first, then short hashes of older tools.

    ``modelspec.hash_sha256`` and ``sshs_model_hash`` are not among them: those are of the adapter itself.
    """
    named = [*metadata.get(BASE_HASH_KEY, "").split(","), metadata.get("ss_new_sd_model_hash", "")]
    long = [match[1] for text in named if (match := _SHA256.fullmatch(text.strip().lower()))]
    short = metadata.get("ss_sd_model_hash", "").lower()
    return (*dict.fromkeys(long), *([short] if _SHORT_HASH.fullmatch(short) else []))


def _from_shapes(modules: Iterable[LayerModule]) -> Iterable[str]:
    contexts = {r.context_width: r.name for r in records() if r.context_width is not None}
    encoders = {r.encoder_width: r.name for r in records() if r.encoder_width is not None}
    for module in modules:
        component, path = module.name
        if component == "unet" and path.endswith(("attn2.to_k", "attn2.to_v")):
            if module.in_features in contexts:
                yield contexts[module.in_features]
        elif (
            component == "text_encoder"
            and path.endswith("self_attn.q_proj")
            and module.in_features in encoders
        ):
            yield encoders[module.in_features]


def _from_names(modules: Iterable[ModuleName]) -> str | None:
    """The architecture that alone has layers of these names."""
    showing = {record.shown_by: record.name for record in reversed(records()) if record.shown_by is not None}
    found = occurring(showing, map(str, modules))
    return next((name for shown, name in reversed(showing.items()) if shown in found), None)


def _from_metadata(metadata: Mapping[str, str]) -> str | None:
    version = metadata.get("ss_base_model_version", "").lower()
    stated = metadata.get("modelspec.architecture", "").lower()
    kohya = {
        beginning: record.name
        for record in records()
        if record.family is None
        for beginning in (record.kohya.version, *record.kohya.also)
        if beginning is not None
    }
    modelspec = {beginning: record.name for record in records() for beginning in record.modelspec_read}
    found = _longest(version, kohya) or _longest(stated, modelspec) or _own_name(stated.partition("/")[0])
    if found is None and metadata.get("ss_v2") == "True":
        return next((record.name for record in records() if record.kohya.v2), None)
    return found


def _own_name(text: str) -> str | None:
    """The architecture whose own name this is, as it is written where ModelSpec has none."""
    known = record_of(text).family is not None or any(record.name == text for record in records())
    return text if known else None


def _longest(text: str, beginnings: Mapping[str, str]) -> str | None:
    """The value of the longest of the ``beginnings`` of ``text``."""
    found = [beginning for beginning in beginnings if text.startswith(beginning)]
    return beginnings[max(found, key=len)] if found else None
