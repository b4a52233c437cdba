"""Files as ComfyUI names them: by folders of its own, relative to their roots."""

from __future__ import annotations

from pathlib import Path

import folder_paths

SAFE = ".safetensors"
NONE = "none"
"""The choice of no file."""


def adapter_names() -> list[str]:
    """The adapters in ComfyUI's folders of LoRAs; pickles are not offered, as none is ever opened."""
    return _safe("loras")


def checkpoint_names() -> list[str]:
    """Checkpoints, then models that are a diffusion model alone."""
    return [*_safe("checkpoints"), *(name for name in _safe("diffusion_models"))]


def _safe(kind: str) -> list[str]:
    return [name for name in folder_paths.get_filename_list(kind) if name.endswith(SAFE)]


def adapter_path(name: str) -> Path:
    """The file of an adapter's name."""
    return Path(folder_paths.get_full_path_or_raise("loras", name))


def checkpoint_path(name: str) -> Path:
    """The file of a checkpoint's name."""
    found = folder_paths.get_full_path("checkpoints", name)
    return Path(found or folder_paths.get_full_path_or_raise("diffusion_models", name))


def stamp(path: Path) -> tuple[str, int, int]:
    """A file's name, size and time: a node whose file was written anew runs anew."""
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def new_output(prefix: str) -> Path:
    """A new name below ComfyUI's output folder, counted up as ComfyUI's own savers do."""
    folder, name, counter, _, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory()
    )
    while (path := Path(folder) / f"{name}_{counter:05}_{SAFE}").exists():
        counter += 1
    return path
