"""A real ComfyUI on the CPU, as ``tools/comfyui.py`` gets it, in this process."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDER = os.environ.get("COMFYUI")
ABSENT = ("torchvision", "torchaudio", "kornia", "spandrel")
"""Packages that ComfyUI imports and nothing here needs."""


class _Absent(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        wanted = name.split(".", maxsplit=1)[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def start(models: Path) -> Any:
    """ComfyUI's own modules, its folders of files below ``models``; then the pack, as ComfyUI loads one."""
    assert FOLDER is not None
    if "folder_paths" not in sys.modules:
        sys.meta_path.insert(0, _Finder())
        sys.path[:0] = [str(Path(FOLDER) / "ComfyUI")]
        sys.path.append(str(Path(FOLDER) / "site"))
        arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(models)]
        try:
            import comfy.options

            comfy.options.enable_args_parsing(True)
            import comfy.sd
            import nodes  # noqa: F401
        finally:
            sys.argv = arguments
    import folder_paths

    for kind in ("loras", "checkpoints", "diffusion_models"):
        (models / kind).mkdir(exist_ok=True)
        folder_paths.folder_names_and_paths[kind] = ([str(models / kind)], {".safetensors"})
    folder_paths.filename_list_cache.clear()
    folder_paths.set_output_directory(str(models / "output"))
    (models / "output").mkdir(exist_ok=True)
    return _pack()


def _pack() -> Any:
    if "paramerge_pack" not in sys.modules:
        path = ROOT / "integrations" / "comfyui"
        spec = importlib.util.spec_from_file_location(
            "paramerge_pack", path / "__init__.py", submodule_search_locations=[str(path)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["paramerge_pack"] = module
        spec.loader.exec_module(module)
    return sys.modules["paramerge_pack"]


class Weights(torch.nn.Module):
    """A model with parameters of any dotted names: all that patches ask of one."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for key, value in tensors.items():
            *path, last = key.split(".")
            at: torch.nn.Module = self
            for name in path:
                if name not in at._modules:
                    at.add_module(name, torch.nn.Module())
                at = at._modules[name]  # type: ignore[assignment]
            at.register_parameter(last, torch.nn.Parameter(value, requires_grad=False))


def model_of(tensors: dict[str, torch.Tensor]) -> Any:
    """A MODEL of ComfyUI (its ModelPatcher) around tensors with its keys."""
    import comfy.model_patcher

    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(Weights(tensors), load_device=cpu, offload_device=cpu)


class Clip:
    """A CLIP of ComfyUI, as far as patches know it."""

    def __init__(self, patcher: Any) -> None:
        self.patcher = patcher

    def clone(self) -> Clip:
        return Clip(self.patcher.clone())


def patched_weights(patcher: Any) -> dict[str, torch.Tensor]:
    """Every weight as ComfyUI loads it, its patches carried out."""
    patcher.patch_model(device_to=torch.device("cpu"))
    weights = {key: value.detach().clone() for key, value in patcher.model.state_dict().items()}
    patcher.unpatch_model(device_to=torch.device("cpu"))
    return weights
