"""Opening a base checkpoint: its kind, its files, and the layers that adapters can reach in it.

Layouts: a single file (LDM), a diffusers folder, a file with the UNet alone; and of models other than Stable
Diffusion a file or a folder with the model alone. Only headers are read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from paramerge.arguments import as_path
from paramerge.checkpoints.component_folder import is_shard
from paramerge.checkpoints.diffusers_folder import FolderContents, read_folder
from paramerge.checkpoints.foreign import (
    is_beside_models,
    refuse_adapter,
    refuse_long_names,
    refuse_weightless,
    refuse_wrapped,
    without_unet,
)
from paramerge.checkpoints.parameters import parameters_of
from paramerge.checkpoints.targets import Target, targets_of
from paramerge.errors import CheckpointError, MissingCheckpointError
from paramerge.files.gguf import is_gguf, read_gguf
from paramerge.files.header import Header, read_header
from paramerge.files.source import Source
from paramerge.files.tensors import StoredTensor, stored
from paramerge.missing_files import missing_file
from paramerge.models.architecture import UNKNOWN, Architecture, detect_architecture
from paramerge.models.components import Located, locate
from paramerge.models.model_names import recognise
from paramerge.models.names import MODEL, ModuleName
from paramerge.models.record import ArchitectureRecord
from paramerge.storage.quantised import Quantised
from paramerge.storage.survey import survey
from paramerge.storage.tensor import TrueTensor
from paramerge.system_faults import reading
from paramerge.wording import option

SINGLE_FILE = "single-file"
DIFFUSERS_FOLDER = "diffusers-folder"
UNET_FILE = "unet-file"
MODEL_FILE = "model-file"
MODEL_FOLDER = "model-folder"
COMPONENT_FILE = "component-file"
FOLDERS = (DIFFUSERS_FOLDER, MODEL_FOLDER)
"""The layouts that are folders."""


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that adapters can reach."""

    header: Header
    relative: PurePosixPath
    """Its place in the base's folder; the name alone for a base that is a file."""
    component: str | None
    """The component of its folder; None for a file whose components are known from the keys."""
    targets: Mapping[ModuleName, Target] = field(repr=False)
    components: Mapping[str, str] = field(repr=False)
    """Every key's component: one that adapters reach, ``vae``, ``ema`` or ``other``."""
    parameters: Mapping[ModuleName, Target] = field(default_factory=dict, repr=False)
    """Parameters beside the layers that adapters reach, by names that end in ``.weight`` or ``.bias``."""
    quantised: Mapping[str, Quantised] = field(default_factory=dict, repr=False)
    """The layer of every tensor that belongs to a quantised one, by key."""
    markers: tuple[str, ...] = ()
    """Keys that mark all 8-bit weights under their prefix as scaled."""

    @property
    def reachable(self) -> Mapping[ModuleName, Target]:
        """Everything that adapters reach: the layers, then the norms, biases and embeddings."""
        return {**self.targets, **self.parameters}

    def tensor(self, key: str) -> StoredTensor:
        """The tensor of ``key``, unread; of a quantised weight its true values.

        Raises
        ------
        CheckpointError
            It belongs to a quantised layer that cannot be read.
        """
        layer = self.quantised.get(key)
        if layer is None:
            return stored(self.header, key)
        layer.check()
        if key != layer.layer.key:  # a scale or a mark is what it is
            return stored(self.header, key)
        return TrueTensor(self.header.source, self.header.tensors[key], layer)

    def is_part(self, key: str) -> bool:
        """Whether the tensor of ``key`` is a scale, a mark or the like: no weight of its own."""
        layer = self.quantised.get(key)
        return key in self.markers or (layer is not None and key != layer.layer.key)


@dataclass(frozen=True)
class Base:
    """A base checkpoint, known from its headers."""

    path: Path
    layout: str
    """``single-file``, ``diffusers-folder`` (also a folder with a UNet alone) or ``unet-file``; another model
    on its own is a ``model-file`` or ``model-folder``, and a component that was opened by itself a
    ``component-file``."""
    architecture: str
    """``sd15``, ``sdxl``, or a variant: ``sd2``, ``sd15-inpainting`` ...; ``flux``, ``sd3``, ``llama`` and
    other models by their names; ``unknown``."""
    true_dimensions: bool
    """Whether a UNet's widths are those of the published architecture, not of a scaled-down one."""
    files: tuple[WeightFile, ...] = field(repr=False)
    companions: tuple[PurePosixPath, ...] = field(repr=False)
    """The other files of a folder, that come along untouched."""
    left_out: tuple[tuple[PurePosixPath, str], ...] = field(repr=False)
    """Files and folders that must not come along, each with the reason."""
    warnings: tuple[str, ...] = ()
    """Warnings of tensors that stay as they are."""

    companion_files: tuple[Source, ...] = field(default=(), repr=False)
    """The companions, open, in their order."""

    @property
    def weight_sources(self) -> tuple[Source, ...]:
        """The open files of weights."""
        return tuple(file.header.source for file in self.files)

    @property
    def opened(self) -> tuple[Source, ...]:
        """All files that were opened."""
        return (*self.weight_sources, *self.companion_files)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder and not a file."""
        return self.layout in FOLDERS

    def quantised_layer(self, target: Target) -> Quantised | None:
        """The quantised layer that the tensor of ``target`` belongs to; None where it is stored plainly."""
        for file in self.files:
            if target.module in file.targets or target.module in file.parameters:
                return file.quantised.get(target.key)
        return None


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
    path = as_path(path)
    with reading(path):
        return _open(path, variant)


def open_component(path: str | os.PathLike[str], component: str) -> Base:
    """Open a file with one component alone, such as a VAE or a text encoder, by its header.

    Raises
    ------
    CheckpointError
        It is no file, or an adapter.
    FileFormatError
        It is damaged, or a pickle.
    """
    path = as_path(path)
    with reading(path):
        _check_file(path, None)
        files = _opened(component, [(PurePosixPath(path.name), read_header(path))])
    return Base(
        path,
        COMPONENT_FILE,
        UNKNOWN,
        False,
        tuple(file.weights for file in files),
        companions=(),
        left_out=(),
    )


def _open(path: Path, variant: str | None) -> Base:
    if path.is_dir():
        folder = read_folder(path, variant)
        parts = [
            _opened(component, weights, folder.quantised.get(component))
            for component, weights in folder.weights.items()
        ]
        layout = MODEL_FOLDER if folder.alone and "unet" not in folder.weights else DIFFUSERS_FOLDER
        return _base(path, layout, [file for files in parts for file in files], folder)
    _check_file(path, variant)
    return base_of(read_gguf(path) if is_gguf(path) else read_header(path))


def base_of(header: Header) -> Base:
    """The checkpoint that is one file, open already; raises as :func:`open_base` does."""
    path = header.path
    _refuse_shard(path)
    files = _opened(None, [(PurePosixPath(path.name), header)])
    components = set(files[0].components.values())
    encoders = {name for name in components if name.startswith("text_encoder")}
    if "vae" in components or (encoders and components - encoders):
        layout = SINGLE_FILE
    else:
        layout = UNET_FILE if "unet" in components else MODEL_FILE
    return _base(path, layout, files, FolderContents())


def _check_file(path: Path, variant: str | None) -> None:
    if not path.is_file():
        expected = "a .safetensors file or a diffusers folder"
        if path.exists():
            raise CheckpointError("this is not a regular file", where=path, expected=expected)
        what, kind = "no such file or folder", MissingCheckpointError
        raise missing_file(path, what, kind=kind, expected=expected)
    if variant is not None:
        raise CheckpointError(
            "a variant was given for a single file", where=path, found=f"variant {variant!r}"
        )


def _refuse_shard(path: Path) -> None:
    if is_shard(path) and "-of-00001" not in path.name:
        raise CheckpointError(
            "this file is one shard of a model, not all of it",
            where=path,
            expected="the folder with all shards and their index",
            hint=f"give the folder to {option('base')}: {path.parent}",
        )


@dataclass(frozen=True)
class _OpenedFile:
    """A weight file with the canonical names of its tensors."""

    weights: WeightFile
    located: Mapping[str, Located]
    known: ArchitectureRecord | None
    stray: Sequence[str]
    """Keys of an adapter."""

    @property
    def components(self) -> Mapping[str, str]:
        return self.weights.components


def _opened(
    component: str | None,
    files: Iterable[tuple[PurePosixPath, Header]],
    quantisation: Mapping[str, object] | None = None,
) -> list[_OpenedFile]:
    """Name the tensors of one component's files (of several shards, all together) or of a single file.

    ``quantisation`` is what a configuration beside them states of it.
    """
    files = list(files)
    for _, header in files:
        refuse_long_names(header.path, header.tensors)
    found = survey([header for _, header in files], quantisation)
    strays = []
    for _, header in files:
        if component is None or not component.startswith("text_encoder"):
            refuse_weightless(header, found.by_key)
        strays.append(refuse_adapter(header.path, header.tensors))
        refuse_wrapped(header.path, header.tensors)
    shapes = {key: info.shape for _, header in files for key, info in header.tensors.items()}
    shapes |= {
        layer.layer.key: layer.shape for layer in found.layers if layer.shape and layer.layer.key in shapes
    }
    known = recognise(shapes) if component != "vae" else None
    located = locate(shapes, component, known)
    targets, parameters = targets_of(shapes, located), parameters_of(shapes, located)
    opened = []
    for (relative, header), stray in zip(files, strays, strict=True):
        here = {name: target for name, target in targets.items() if target.key in header.tensors}
        beside = {name: target for name, target in parameters.items() if target.key in header.tensors}
        names = {key: located[key] for key in header.tensors}
        components = {key: name.component for key, name in names.items()}
        quantised = {key: found.by_key[key] for key in header.tensors if key in found.by_key}
        markers = tuple(key for key in found.markers if key in header.tensors)
        file = WeightFile(header, relative, component, here, components, beside, quantised, markers)
        opened.append(_OpenedFile(file, names, known, stray))
    return opened


def _base(path: Path, layout: str, files: Iterable[_OpenedFile], others: FolderContents) -> Base:
    files = tuple(files)
    architecture = _architecture(path, files, others)
    return Base(
        path,
        layout,
        architecture.name,
        architecture.true_dimensions,
        tuple(file.weights for file in files),
        tuple(others.companions),
        tuple(others.left_out),
        tuple(_warnings(files)),
        tuple(Source.open(path / relative) for relative in others.companions),
    )


def _architecture(path: Path, files: Sequence[_OpenedFile], folder: FolderContents) -> Architecture:
    """The architecture of the UNet, or of the first of the other models; raises where there is none."""
    main = next((file for file in files if file.weights.component in _MAIN), None)
    if main is None and len(files) == 1 and files[0].known is not None:
        main = files[0]
    if main is not None and (main.known is not None or main.weights.component != "unet"):
        stated = folder.model_type if main.known is None or main.known.vague else None
        return Architecture(stated or (main.known.name if main.known else UNKNOWN), True)
    unet = {
        part: file.weights.header.tensors[key].shape
        for file in files
        for key, located in file.located.items()
        if located.component == "unet"
        for part in located.parts
    }
    if not any(name.startswith("up_blocks.") for name in unet):
        keys = [key for file in files for key in file.located]
        if any(file.weights.targets for file in files) and not is_beside_models(keys):
            return Architecture(UNKNOWN, True)
        raise without_unet(path, keys)
    return detect_architecture(unet)


_MAIN = ("unet", "transformer", "prior", MODEL)
"""Components that give a pipeline its architecture."""

_ENCODER_LIKE = re.compile(r"^(?!.*vis(ion|ual)).*(encoder\.layers|resblocks)\.\d+\.(self_attn|attn|mlp)\.")


def _warnings(files: Iterable[_OpenedFile]) -> Iterator[str]:
    """Warnings of tensors that stay as they are although a user may expect adapters to reach them."""
    nameless = [(key, name) for file in files for key, name in file.located.items() if not name.parts]
    ema = sum(name.component == "ema" for _, name in nameless)
    if ema:
        yield (
            f"{ema} EMA tensors (model_ema.*) stay as they are: readers that prefer them over the weights "
            "will not see the adapters"
        )
    if stray := [key for file in files for key in file.stray]:
        yield (
            f"{len(stray)} keys of an adapter are in this checkpoint ({stray[0]} ...): they stay as they "
            "are, and readers of checkpoints pass over them"
        )
    encoder = [key for key, name in nameless if name.component != "vae" and _ENCODER_LIKE.match(key)]
    if encoder:
        yield (
            f"{len(encoder)} tensors look like a text encoder's, under names of no known layout: adapters "
            f"do not reach them ({encoder[0]} ...)"
        )
