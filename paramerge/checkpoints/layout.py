"""Opening a base checkpoint: what it is, which files it has, and what adapters can reach in it.

Three layouts: a single file (LDM), a diffusers folder, and a file with the UNet alone. Only headers are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from paramerge.checkpoints.architecture import Architecture, detect_architecture
from paramerge.checkpoints.components import Located, locate
from paramerge.checkpoints.diffusers_folder import FolderContents, read_folder
from paramerge.checkpoints.foreign import refuse_adapter, refuse_foreign, without_unet
from paramerge.checkpoints.header import Header, read_header
from paramerge.checkpoints.modules import ModuleName
from paramerge.checkpoints.targets import Target, targets_of
from paramerge.errors import CheckpointError

__all__ = ["DIFFUSERS_FOLDER", "SINGLE_FILE", "UNET_FILE", "Base", "WeightFile", "open_base"]

SINGLE_FILE = "single-file"
DIFFUSERS_FOLDER = "diffusers-folder"
UNET_FILE = "unet-file"


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that adapters can reach."""

    header: Header
    relative: PurePosixPath
    """Where it lies in the base's folder; the name alone for a base that is a file."""
    component: str | None
    """The component whose folder it lies in; None for a file whose components are told by the keys."""
    targets: Mapping[ModuleName, Target] = field(repr=False)
    components: Mapping[str, str] = field(repr=False)
    """Every key's component: ``unet``, ``text_encoder``, ``text_encoder_2``, ``vae`` or ``other``."""


@dataclass(frozen=True)
class Base:
    """A base checkpoint, known from its headers."""

    path: Path
    layout: str
    """``single-file``, ``diffusers-folder`` (also a folder with a UNet alone) or ``unet-file``."""
    architecture: str
    """``sd15``, ``sdxl``, or what it was told apart as: ``sd2``, ``sd15-inpainting`` ..., ``unknown``."""
    true_dimensions: bool
    """Whether the UNet's widths are those of the published architecture, not of a scaled-down one."""
    files: tuple[WeightFile, ...] = field(repr=False)
    companions: tuple[PurePosixPath, ...] = field(repr=False)
    """The other files of a folder, that come along untouched."""
    left_out: tuple[tuple[PurePosixPath, str], ...] = field(repr=False)
    """Files and folders that must not come along, each with the reason."""


def open_base(path: str | os.PathLike[str], variant: str | None = None) -> Base:
    """Open the checkpoint at ``path``, a ``.safetensors`` file or a folder, by its headers.

    Parameters
    ----------
    variant:
        For a folder, the variant of the weights (``fp16``); by default the plain ones, or the only variant.

    Raises
    ------
    CheckpointError
        There is nothing at ``path``; it is an adapter, another architecture, incomplete, or of no known
        layout; its index and shards do not agree; ``variant`` is not there.
    FileFormatError
        A file is damaged, or a pickle.
    """
    path = Path(path)
    if path.is_dir():
        folder = read_folder(path, variant)
        files = [
            _located(header, relative, component)
            for component, weights in folder.weights.items()
            for relative, header in weights
        ]
        return _base(path, DIFFUSERS_FOLDER, files, folder)
    if not path.exists():
        raise CheckpointError(
            "no such file or folder", where=path, expected="a .safetensors file or a diffusers folder"
        )
    if variant is not None:
        raise CheckpointError("only folders have variants", where=path, found=f"variant {variant!r}")
    file = _located(read_header(path), PurePosixPath(path.name), None)
    alone = not {"text_encoder", "text_encoder_2", "vae"} & set(file.components.values())
    return _base(path, UNET_FILE if alone else SINGLE_FILE, [file], FolderContents())


@dataclass(frozen=True)
class _LocatedFile:
    """A weight file with the canonical names of its tensors."""

    header: Header
    relative: PurePosixPath
    component: str | None
    located: Mapping[str, Located]

    @property
    def components(self) -> dict[str, str]:
        return {key: located.component for key, located in self.located.items()}

    def weight_file(self) -> WeightFile:
        shapes = {key: info.shape for key, info in self.header.tensors.items()}
        targets = targets_of(shapes, self.located)
        return WeightFile(self.header, self.relative, self.component, targets, self.components)


def _located(header: Header, relative: PurePosixPath, component: str | None) -> _LocatedFile:
    refuse_adapter(header.path, header.tensors)
    if component in (None, "unet"):
        refuse_foreign(header.path, header.tensors)
    return _LocatedFile(header, relative, component, locate(header.tensors, component))


def _base(path: Path, layout: str, files: Iterable[_LocatedFile], others: FolderContents) -> Base:
    files = tuple(files)
    architecture = _architecture(path, files)
    return Base(
        path,
        layout,
        architecture.name,
        architecture.true_dimensions,
        tuple(file.weight_file() for file in files),
        tuple(others.companions),
        tuple(others.left_out),
    )


def _architecture(path: Path, files: Iterable[_LocatedFile]) -> Architecture:
    """The architecture of the UNet in the files; raises where there is none."""
    unet = {
        part: file.header.tensors[key].shape
        for file in files
        for key, located in file.located.items()
        if located.component == "unet"
        for part in located.parts
    }
    if not any(name.startswith("up_blocks.") for name in unet):
        raise without_unet(path, [key for file in files for key in file.header.tensors])
    return detect_architecture(unet)
