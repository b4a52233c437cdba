"""The files of a model's folder: weights that can change, files that come along, files that stay behind.

``model_index.json`` names the components of a diffusers pipeline. Of the weights of the UNet or transformer
and of the text encoders one variant is taken; its twins (other variants, pickles, ONNX ...) would be
unchanged beside changed weights and stay behind. Every other file comes along as it is. A folder with one
model alone (``config.json`` and weights, of diffusers or transformers) works, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from paramerge.checkpoints.component_folder import (
    choose_weights,
    common_variant,
    find_weights,
    is_weight_file,
    read_weights,
    stem_of,
)
from paramerge.errors import CheckpointError
from paramerge.files.folder_links import check_regular, refuse_link_outside
from paramerge.files.header import Header
from paramerge.models.names import COMPONENTS, MODEL
from paramerge.regular_files import is_there
from paramerge.strict_json import read_object
from paramerge.wording import option

VAE = "vae"
BAKED_COMPONENTS = tuple(name for name in COMPONENTS if name not in (VAE, MODEL))
"""The components that adapters reach; of the others only the VAE is opened, whose dtype may change."""

_DENOISERS = ("unet", "transformer", "prior")
"""Components of which a pipeline must have one."""

MODEL_INDEX = "model_index.json"

QUANTISATION = ("quantization_config", "compression_config")
"""Entries of a configuration that state the quantisation of the weights beside it."""

_NOT_THE_MODEL = {
    ".git": "version control, not part of the model",
    ".cache": "a download cache, not part of the model",
    "__pycache__": "a cache of Python, not part of the model",
}


@dataclass
class FolderContents:
    """A folder's files, sorted by what happens to them; paths are relative to the folder."""

    weights: dict[str, list[tuple[PurePosixPath, Header]]] = field(default_factory=dict)
    """By component, the files that can change: those that adapters reach, and the VAE's (its dtype)."""
    companions: list[PurePosixPath] = field(default_factory=list)
    """Files that come along untouched."""
    left_out: list[tuple[PurePosixPath, str]] = field(default_factory=list)
    """Files and folders that must not come along, each with the reason."""
    alone: bool = False
    """Whether the folder is of one model on its own."""
    model_type: str | None = None
    """The ``model_type`` or ``_class_name`` in the configuration of the (first) model."""
    quantised: dict[str, dict[str, object]] = field(default_factory=dict)
    """By component, what its configuration states of its quantisation."""


def read_folder(folder: Path, variant: str | None) -> FolderContents:
    """Read the headers of the weights in a diffusers folder and sort its other files.

    Raises
    ------
    CheckpointError
        The folder is no model of diffusers or transformers, a component or its weights are missing,
        ``variant`` is not there, or an index does not agree with its shards.
    FileFormatError
        A weight file is damaged.
    """
    if is_there(folder / "adapter_config.json"):
        raise CheckpointError(
            "this is an adapter, not a base checkpoint",
            where=folder,
            found="adapter_config.json",
            hint=f"give it to {option('lora')}, and the checkpoint that it is for to {option('base')}",
        )
    named = _named_components(folder)
    contents = FolderContents()
    taken: set[Path] = set()
    subfolders = _baked_components(folder, named)
    contents.alone = folder in subfolders.values()
    contents.model_type = _stated_type(next(iter(subfolders.values())))
    if variant is None:
        variant = common_variant(
            {name: subfolder for name, subfolder in subfolders.items() if _must_be_there(name, named)}
        )
    for component, subfolder in subfolders.items():
        if _must_be_there(component, named):
            weights = choose_weights(subfolder, component, variant)
        elif (found := find_weights(subfolder, component, variant)) is not None:
            weights = found
        else:
            continue
        headers = read_weights(weights, folder)
        if settings := _stated_quantisation(subfolder):
            contents.quantised[component] = settings
        contents.weights[component] = [(_relative(header.path, folder), header) for header in headers]
        taken |= {weights.path, *(header.path for header in headers)}
        _sort_component(folder, subfolder, taken, contents)
    _take_vae(folder, variant, taken, contents)
    if folder not in {path.parent for path in taken}:
        _sort_rest(folder, named, contents)
    contents.companions.sort()
    contents.left_out.sort()
    return contents


def is_model_folder(folder: Path) -> bool:
    """Whether ``folder`` is laid out as that of a model, whole or not."""
    marks = (MODEL_INDEX, "config.json")
    return any(is_there(folder / name) for name in marks) or any(
        (folder / name).is_dir() for name in (*_DENOISERS, "snapshots")
    )


def _named_components(folder: Path) -> dict[str, str]:
    """The components that ``model_index.json`` names, with their classes; those set to null are left away."""
    index = folder / MODEL_INDEX
    if not is_there(index):
        return {}
    entries = read_object(index, error=CheckpointError)
    named = {
        name: entry[1]
        for name, entry in entries.items()
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str)
    }
    if not named.keys() & set(_DENOISERS):
        raise CheckpointError(
            f"this is a {entries.get('_class_name', 'pipeline of unknown class')}, "
            "which has no UNet or transformer",
            where=index,
            expected=f"an entry for {' or '.join(_DENOISERS)}",
            found=", ".join(named) or "no components",
        )
    return named


def _must_be_there(component: str, named: dict[str, str]) -> bool:
    """Whether a pipeline is not opened without the component's weights in safetensors.

    Text encoders other than CLIP (T5, a language model) may be stored in any way, and come along then.
    """
    return not (component.startswith("text_encoder") and named) or named[component].startswith("CLIPText")


def _config(folder: Path) -> dict[str, object]:
    """The content of ``config.json`` in ``folder``; empty where there is none."""
    path = folder / "config.json"
    return read_object(path, what="this configuration", error=CheckpointError) if is_there(path) else {}


def _stated_type(folder: Path) -> str | None:
    """The model in ``folder``, as its ``config.json`` states it."""
    entries = _config(folder)
    stated = entries.get("model_type") or entries.get("_class_name")
    return stated if isinstance(stated, str) else None


def _stated_quantisation(folder: Path) -> dict[str, object] | None:
    """The settings by which the weights in ``folder`` are quantised, as ``config.json`` states them."""
    entries = _config(folder)
    settings = next((entries[name] for name in QUANTISATION if entries.get(name)), None)
    return settings if isinstance(settings, dict) else None


def _baked_components(folder: Path, named: dict[str, str]) -> dict[str, Path]:
    """The components that adapters reach, with their subfolders (the folder itself for a model alone)."""
    if named:
        subfolders = {name: folder / name for name in BAKED_COMPONENTS if name in named}
        for name, subfolder in list(subfolders.items()):
            if _must_be_there(name, named):
                _check_folder(name, subfolder)
            elif not subfolder.is_dir():
                del subfolders[name]
        return subfolders
    if any((folder / name).is_dir() for name in _DENOISERS):
        return {name: folder / name for name in BAKED_COMPONENTS if (folder / name).is_dir()}
    if is_there(folder / "config.json"):
        if any(folder.glob(f"{stem_of('unet')}*")):
            return {"transformer" if "Transformer" in (_stated_type(folder) or "") else "unet": folder}
        if _stated_type(folder):
            return {MODEL: folder}
    if (folder / "snapshots").is_dir():
        hint = "this is a repository of the Hugging Face cache: give one of the folders in snapshots/"
    else:
        files = sorted(path.name for path in folder.glob("*.safetensors"))
        hint = f"give one of its files: {', '.join(files[:5])}" if files else "give a .safetensors file"
    raise CheckpointError(
        "this folder is not a model of diffusers or transformers",
        where=folder,
        expected=f"{MODEL_INDEX}, or a folder unet/ or transformer/, or a model's config.json and weights",
        hint=hint,
    )


def _check_folder(component: str, subfolder: Path) -> None:
    if not subfolder.is_dir():
        raise CheckpointError(
            f"the folder of the {component} is missing",
            where=subfolder,
            expected=f"a folder, as {MODEL_INDEX} names it",
            hint="download the whole model again",
        )


def _relative(path: Path, folder: Path) -> PurePosixPath:
    return PurePosixPath(path.relative_to(folder).as_posix())


def _sort_component(folder: Path, subfolder: Path, taken: set[Path], contents: FolderContents) -> None:
    """Sort the files beside a component's weights: its config and index come along, twins stay behind."""
    for path in _walk(subfolder, contents, folder):
        if path.suffix == ".json" and path in taken:
            contents.companions.append(_companion(path, folder))
        elif path not in taken and is_weight_file(path):
            contents.left_out.append((_relative(path, folder), _twin(path)))
        elif path not in taken:
            contents.companions.append(_companion(path, folder))


def _take_vae(folder: Path, variant: str | None, taken: set[Path], contents: FolderContents) -> None:
    """The VAE's weights may change their dtype; the other files beside them come along."""
    subfolder = folder / VAE
    weights = find_weights(subfolder, VAE, variant)
    if weights is None:
        return
    headers = read_weights(weights, folder)
    contents.weights[VAE] = [(_relative(header.path, folder), header) for header in headers]
    taken |= {header.path for header in headers}
    others = (path for path in _walk(subfolder, contents, folder) if path not in taken)
    contents.companions += [_companion(path, folder) for path in others]


def _companion(path: Path, folder: Path) -> PurePosixPath:
    refuse_link_outside(path, folder)
    return _relative(path, folder)


def _twin(path: Path) -> str:
    if ".safetensors" in path.name:
        return "another variant of weights that are changed"
    if path.name.removesuffix(".index.json").endswith((".bin", ".pt", ".pth", ".ckpt")):
        return "a pickled copy of weights that are changed"
    return "a copy, in another format, of weights that are changed"


def _sort_rest(folder: Path, named: dict[str, str], contents: FolderContents) -> None:
    """Sort the files outside the components that adapters reach."""
    for path in sorted(folder.iterdir()):
        relative = _relative(path, folder)
        if path.is_dir():
            if path.name in contents.weights:
                continue
            if path.name in _NOT_THE_MODEL:
                contents.left_out.append((relative, _NOT_THE_MODEL[path.name]))
            elif path.name.startswith(BAKED_COMPONENTS) and path.name not in named:
                contents.left_out.append((relative, f"unchanged weights that {MODEL_INDEX} does not name"))
            else:
                contents.companions += [_companion(file, folder) for file in _walk(path, contents, folder)]
        elif is_weight_file(path):
            contents.left_out.append((relative, "weights of the whole model, which are not changed"))
        else:
            contents.companions += [
                _companion(file, folder) for file in _only_files([path], contents, folder)
            ]


def _walk(start: Path, contents: FolderContents, folder: Path) -> Iterator[Path]:
    """Every file under ``start``, links followed, sorted; folders that are not the model's are left out."""
    paths: list[Path] = []
    pending, seen = [start], {start.resolve()}
    while pending:
        for path in sorted(pending.pop().iterdir()):
            if not path.is_dir():
                paths.append(path)
            elif path.name in _NOT_THE_MODEL:
                contents.left_out.append((_relative(path, folder), _NOT_THE_MODEL[path.name]))
            elif path.resolve() in seen:
                raise CheckpointError(
                    "the folder holds the same folder twice, through a link", where=path, found=path.resolve()
                )
            else:
                seen.add(path.resolve())
                pending.append(path)
    yield from _only_files(sorted(paths), contents, folder)


def _only_files(paths: list[Path], contents: FolderContents, folder: Path) -> Iterator[Path]:
    for path in paths:
        if path.exists() and not path.is_file():
            contents.left_out.append((_relative(path, folder), "not a regular file"))
            continue
        check_regular(path)
        yield path
