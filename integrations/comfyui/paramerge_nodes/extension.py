"""The list of the nodes, as ComfyUI asks for it."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .adapters import AddAdapter, ApplyAdapters, LoadAdapter, LoadPara
from .checkpoints import Bake, Merge, Plan
from .comparing import Compare

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadPara,
    LoadAdapter,
    AddAdapter,
    ApplyAdapters,
    Plan,
    Bake,
    Merge,
    Compare,
)


class Extension(ComfyExtension):
    """paramerge's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All of them."""
        return list(NODES)


async def comfy_entrypoint() -> ComfyExtension:
    """The pack, for ComfyUI's loader."""
    return Extension()
