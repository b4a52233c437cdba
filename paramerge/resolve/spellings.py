"""Adapters in one spelling, so that a layer has one name in all of them where there is no base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from paramerge.adapters import Adapter, LayerModule
from paramerge.formats.layers import folded
from paramerge.models.names import MODEL, ModuleName


def in_one_spelling(adapters: Sequence[Adapter]) -> list[Adapter]:
    """``adapters`` with one name for each layer, the most explicit of all files'.

    kohya's underscores and dotted names of one layer meet, and so do ComfyUI's, diffusers' and PEFT's words
    for the model that removes the noise. Names that are two layers in one file stay as they are.
    """
    names: dict[str, ModuleName] = {}
    for adapter in adapters:
        for name in adapter.modules:
            known = names.get(folded(name))
            if known is None or _knowledge(name) > _knowledge(known):
                names[folded(name)] = name
    return [_renamed(adapter, names) for adapter in adapters]


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
