"""The layers of an adapter under the names of one of a model's namings: the single file's, or diffusers'.

Stacked layers of the single file are divided for diffusers; what is the reverse is done to the tensors that a
format will hold (:mod:`paramerge.convert.naming`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from paramerge.adapters import Adapter, LayerModule
from paramerge.checkpoints.layout import Base
from paramerge.errors import FamilyError, UsageError
from paramerge.formats.provenance import models_by_structure
from paramerge.listing import listed
from paramerge.models.key_map import Layer, runs_of
from paramerge.models.names import ModuleName, split_kind
from paramerge.models.record import ArchitectureRecord
from paramerge.models.registry import record_of
from paramerge.models.spelling import NOISE, likeliest, spelled


def record_for(adapter: Adapter, base: Base | None) -> ArchitectureRecord | None:
    """The record of the model that an adapter is for, where both of its namings are known."""
    stated = adapter.architecture or (base.architecture if base is not None else None)
    found = record_of(stated or likeliest(models_by_structure(adapter.modules)))
    return found if found.key_maps else None


def renamed(adapter: Adapter, record: ArchitectureRecord, *, single: bool, checked: bool = False) -> Adapter:
    """``adapter`` with the model's own layers under the names of one naming, as far as layers go singly.

    Stacked layers are divided for diffusers; those of diffusers are joined later
    (:func:`paramerge.convert.naming.joined`). ``checked`` says that a base has all of the layers: those that
    have one name alone then keep it among the single file's.

    Raises
    ------
    UsageError
        The model has no such layer.
    FamilyError
        A stacked layer of a family that cannot be divided.
    """
    modules: dict[ModuleName, LayerModule] = {}
    unknown = []
    for name, module in adapter.modules.items():
        if name.component not in (*NOISE, record.component):
            modules[name] = module
            continue
        found = spelled(record.name, name.path)
        if found is None and single and checked:
            modules[name] = module
            continue
        if found is None:
            unknown.append(str(name))
            continue
        named = module.renamed(ModuleName(_component(name, record), found.path))
        if single or found.naming != "single file":
            modules[named.name] = named
        else:
            modules |= {part.name: part for part in by_diffusers(named, record, adapter)}
    if unknown:
        raise UsageError(
            f"{record.title} has no layers of these names",
            where=adapter.path,
            expected=f"layers of {record.title}, in the names of single files or of diffusers",
            found=listed(unknown, 3),
        )
    return replace(adapter, modules=modules)


def _component(name: ModuleName, record: ArchitectureRecord) -> str:
    return name.component if name.component == "transformer_2" else record.component


def by_diffusers(module: LayerModule, record: ArchitectureRecord, adapter: Adapter) -> Iterator[LayerModule]:
    """The module on a layer of the single file as those on diffusers' layers.

    Raises
    ------
    FamilyError
        Its family cannot be divided.
    """
    stem, kind = split_kind(module.name.path)
    rows, columns = module.out_features or 0, module.in_features or 0
    layer = next(each for key_map in record.key_maps if (each := key_map.layer(stem)))
    layer = layer.of_shape((rows, columns))
    names = [module.name._replace(path=part + kind) for part in layer.parts]
    if not layer.divided or (len(names) == 1 and not layer.swapped):
        yield module.renamed(names[0])
        return
    runs = [((rows // 2, rows), (0, rows // 2))] if layer.swapped else _runs(layer, rows, columns)
    parts = [module.part(name, run) for name, run in zip(names, runs, strict=True)]
    if None in parts or not parts:
        raise FamilyError(
            "a layer that diffusers has in parts cannot be divided in this family",
            where=f"{adapter.path}: {module.name}",
            expected=", ".join(name.path for name in names),
            found=module.family,
            hint="keep the file for programs that read the single file's names",
        )
    yield from (part for part in parts if part is not None)


def _runs(layer: Layer, rows: int, columns: int) -> list[tuple[tuple[int, int], ...]]:
    found = runs_of(layer.rows, len(layer.parts), rows, columns)
    return [] if found is None else [(run,) for run in found]
