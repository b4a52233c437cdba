"""Adapters in one spelling, so that a layer has one name in all of them where there is no base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from paramerge.adapters import Adapter, LayerModule
from paramerge.errors import FamilyError
from paramerge.formats.layers import folded
from paramerge.formats.provenance import models_by_structure
from paramerge.models.names import MODEL, ModuleName
from paramerge.models.record import ArchitectureRecord
from paramerge.models.registry import record_of
from paramerge.models.spelling import NOISE, likeliest, spelled
from paramerge.resolve.namings import by_diffusers


def in_one_spelling(adapters: Sequence[Adapter]) -> list[Adapter]:
    """``adapters`` with one name for each layer, the most explicit of all files'.

    kohya's underscores and dotted names of one layer meet, and so do ComfyUI's, diffusers' and PEFT's words
    for the model that removes the noise. Names that are two layers in one file stay as they are. Where some
    have a model's names in its single files and others diffusers', all get diffusers'.
    """
    adapters = _in_one_naming(adapters)
    names: dict[str, ModuleName] = {}
    for adapter in adapters:
        for name in adapter.modules:
            known = names.get(folded(name))
            if known is None or _knowledge(name) > _knowledge(known):
                names[folded(name)] = name
    return [_renamed(adapter, names) for adapter in adapters]


def _in_one_naming(adapters: Sequence[Adapter]) -> list[Adapter]:
    record = _common_record(adapters)
    if record is None:
        return list(adapters)
    namings = {
        found.naming
        for adapter in adapters
        for name in adapter.modules
        if name.component in NOISE and (found := spelled(record.name, name.path)) is not None
    }
    if not namings >= {"single file", "diffusers"}:
        return list(adapters)
    return [_in_diffusers_names(adapter, record) for adapter in adapters]


def _common_record(adapters: Sequence[Adapter]) -> ArchitectureRecord | None:
    """The first model that all adapters can be of, by the names of their layers; None where there is none."""
    possible = [models_by_structure(adapter.modules) for adapter in adapters]
    common = [name for name in possible[0] if all(name in others for others in possible)] if possible else []
    return record_of(likeliest(common) or common[0]) if common else None


def _in_diffusers_names(adapter: Adapter, record: ArchitectureRecord) -> Adapter:
    """``adapter`` in diffusers' names; a stack that cannot be divided keeps its own."""
    modules: dict[ModuleName, LayerModule] = {}
    for name, module in adapter.modules.items():
        found = spelled(record.name, name.path) if name.component in NOISE else None
        if found is None:
            modules[name] = module
            continue
        component = name.component if name.component == "transformer_2" else record.component
        named = module.renamed(ModuleName(component, found.path))
        try:
            parts = [named] if found.naming != "single file" else [*by_diffusers(named, record, adapter)]
        except FamilyError:
            parts = [named]
        modules |= {part.name: part for part in parts}
    return replace(adapter, modules=modules)


def _knowledge(name: ModuleName) -> tuple[int, bool]:
    """The knowledge in a name: which underscores are dots, and which model it is of."""
    return name.path.count("."), name.component != MODEL


def _renamed(adapter: Adapter, names: dict[str, ModuleName]) -> Adapter:
    counts = Counter(map(folded, adapter.modules))
    modules: dict[ModuleName, LayerModule] = {}
    for name, module in adapter.modules.items():
        wanted = names[folded(name)] if counts[folded(name)] == 1 else name
        # every family's module is a dataclass
        modules[wanted] = module if wanted == name else module.renamed(wanted)
    if modules.keys() == adapter.modules.keys():
        return adapter
    return replace(adapter, modules=modules)
