"""Loading a checkpoint as a diffusers pipeline, from a folder or a single file; never from a pickle."""

from __future__ import annotations

import importlib
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from paramerge.checkpoints.layout import (
    DIFFUSERS_FOLDER,
    MODEL_FILE,
    MODEL_FOLDER,
    UNET_FILE,
    Base,
    WeightFile,
)
from paramerge.errors import CheckpointError, MissingFileError, UsageError
from paramerge.files.dtype_names import library_name, parse_dtype
from paramerge.files.source import check_unchanged
from paramerge.generation.loaded import check_text_encoders
from paramerge.generation.plain import plain_checkpoint
from paramerge.generation.prediction import set_prediction, stated_prediction
from paramerge.generation.small_files import tokenizers_of
from paramerge.models.record import ArchitectureRecord
from paramerge.models.registry import record_of, records
from paramerge.regular_files import is_there
from paramerge.strict_json import MAX_BYTES, read_object
from paramerge.wording import option

_INDEX = "model_index.json"
_PACKAGES = {"diffusers": "diffusers", "transformers": "transformers", "PIL": "pillow"}
_VARIANT = re.compile(r"diffusion_pytorch_model\.(?P<variant>[\w-]+?)(-\d+-of-\d+)?\.safetensors")


def require_libraries() -> None:
    """Refuse to go on without the packages that generating needs.

    Raises
    ------
    UsageError
        One is not installed.
    """
    missing = [package for module, package in _PACKAGES.items() if not _is_there(module)]
    if missing:
        raise UsageError(
            "generating pictures needs packages that are not installed",
            expected=", ".join(_PACKAGES.values()),
            found=f"without {', '.join(missing)}",
            hint=f"pip install {' '.join(missing)}",
        )


def _is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def pick_device(name: str | None) -> str:
    """The device ``name``, or the GPU if there is one.

    Raises
    ------
    UsageError
        There is no such device here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"this device cannot be used ({reason})", where=option("device"), found=name
        ) from error
    return name


def pick_dtype(name: str | None, device: str) -> Any:
    """The torch dtype for ``name``, in any spelling: by default fp32 on a CPU and fp16 elsewhere."""
    import torch

    return getattr(torch, library_name(parse_dtype(name or ("F32" if device == "cpu" else "F16"))))


def load_pipeline(base: Base, dtype: Any, config: Path | None = None, *, vae_dtype: Any = None) -> Any:
    """The text-to-image pipeline of ``base`` on the CPU, its weights as ``dtype``.

    Parameters
    ----------
    config:
        For a single file, the diffusers folder that has its configuration and tokenizers; by default the
        folder beside it with :func:`config_folder`, else the one that diffusers downloads for the
        architecture.

    vae_dtype:
        The dtype of the autoencoder where it is another; read from the file as such, not widened.

    Raises
    ------
    CheckpointError
        It is no text-to-image checkpoint, or diffusers cannot load it.
    """
    _quieten()
    if base.layout in (UNET_FILE, MODEL_FILE, MODEL_FOLDER):
        raise CheckpointError(
            f"this is a {'UNet' if base.layout == UNET_FILE else 'model'} alone: "
            "pictures need its text encoder and VAE too",
            where=base.path,
            hint="give the whole checkpoint, a single file or a diffusers folder",
        )
    try:
        with plain_checkpoint(base, dtype) as plain, warnings.catch_warnings():
            if base.layout == DIFFUSERS_FOLDER:
                pipeline = _from_folder(plain)
            else:
                pipeline = _from_file(plain, config or config_folder(base.path))
            # newer diffusers call the argument dtype; older ones know torch_dtype alone
            warnings.simplefilter("ignore", FutureWarning)
            loaded = pipeline(dtype, vae_dtype or dtype)
    except MissingFileError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        check_unchanged(base)  # a file that the system does not give them is missing to libraries
        raise CheckpointError(
            f"diffusers cannot load this checkpoint ({_first_line(error)})",
            where=base.path,
            hint="see that all its files are there and can be read"
            if base.is_folder
            else "a single file needs its configuration: give the diffusers folder of its model to "
            f"{option('config')}",
        ) from error
    check_text_encoders(loaded, base)
    set_prediction(loaded, **stated_prediction(base))
    check_unchanged(base)
    _bound_prompts(loaded)
    return loaded


def _bound_prompts(pipeline: Any) -> None:
    """Cut prompts to what the text encoders take, also where a tokenizer comes without its configuration."""
    for end in ("", "_2"):
        tokenizer = getattr(pipeline, f"tokenizer{end}", None)
        encoder = getattr(pipeline, f"text_encoder{end}", None)
        if tokenizer is not None and encoder is not None:
            longest = encoder.config.max_position_embeddings
            tokenizer.model_max_length = min(tokenizer.model_max_length, longest)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _quieten() -> None:
    """Keep the libraries' own bars and notes off the terminal; faults come as errors."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def _from_folder(base: Base) -> Any:
    import diffusers

    if not is_there(base.path / _INDEX):
        raise CheckpointError(
            "this folder has no pipeline",
            where=base.path,
            expected=_INDEX,
            hint="give the whole model folder",
        )
    index = read_object(base.path / _INDEX, error=CheckpointError)
    _check_pipeline(index.get("_class_name"), base.path)
    # a checker's weights would be loaded for nothing, and its black pictures would hide adapters
    without = {"safety_checker": None} if "safety_checker" in index else {}
    for source in base.companion_files:
        if source.path.suffix == ".json" and source.size > MAX_BYTES:
            raise CheckpointError(
                "this configuration is too long",
                where=source.path,
                expected=f"at most {MAX_BYTES} bytes",
                found=f"{source.size} bytes",
            )
    tokenizers = tokenizers_of(base.path, index)
    return lambda dtype, vae_dtype: diffusers.DiffusionPipeline.from_pretrained(  # type: ignore[no-untyped-call]
        str(base.path),  # what a Path is, diffusers asks only where it sees a folder
        torch_dtype=dtype if dtype == vae_dtype else {"default": dtype, "vae": vae_dtype},
        variant=_variant(base.files),
        use_safetensors=True,
        local_files_only=True,
        **without,
        **tokenizers,
    )


def _variant(files: tuple[WeightFile, ...]) -> str | None:
    """The variant of the UNet's files, as their names have it."""
    names = [file.relative.name for file in files if file.component == "unet"]
    match = _VARIANT.fullmatch(names[0]) if names else None
    return None if match is None else match["variant"]


def _from_file(base: Base, config: Path | None) -> Any:
    import diffusers

    folder = config_folder(base.path) if config is None else config
    if folder is None:
        name = record_of(base.architecture).pipeline
        if name is None or not base.true_dimensions:
            raise CheckpointError(
                "the configuration of this checkpoint is not known",
                where=base.path,
                expected=f"{_known_titles()} with its published widths, or {option('config')}",
                found=base.architecture,
                hint=f"give the diffusers folder of the same model to {option('config')}",
            )
        return partial(_single_file, getattr(diffusers, name), str(base.path), {})
    if not is_there(folder / _INDEX):
        raise CheckpointError("this folder has no configuration of a pipeline", where=folder, expected=_INDEX)
    index = read_object(folder / _INDEX, error=CheckpointError)
    pipeline = getattr(diffusers, _check_pipeline(index.get("_class_name"), folder))
    tokenizers = tokenizers_of(folder, index)
    return partial(_single_file, pipeline, str(base.path), tokenizers, config=str(folder))


def _single_file(
    pipeline: Any, path: str, parts: dict[str, Any], dtype: Any, vae_dtype: Any, **config: Any
) -> Any:
    """A pipeline of a single file and ``parts``; the autoencoder by itself where it has another dtype."""
    if config:
        config["local_files_only"] = True
    if dtype == vae_dtype:
        return pipeline.from_single_file(path, torch_dtype=dtype, **config, **parts)
    from diffusers import AutoencoderKL

    part = {"subfolder": "vae"} if config else {}
    vae = AutoencoderKL.from_single_file(path, torch_dtype=vae_dtype, **config, **part)
    return pipeline.from_single_file(path, torch_dtype=dtype, vae=vae, **config, **parts)


def config_folder(file: Path) -> Path | None:
    """The diffusers folder of the file's own name beside it (``a/`` for ``a.safetensors``), or None."""
    beside = file.with_suffix("")
    return beside if is_there(beside / _INDEX) else None


def _with_pipeline() -> list[ArchitectureRecord]:
    return [record for record in records() if record.pipeline is not None]


def _known_titles() -> str:
    *first, last = (record.title for record in _with_pipeline())
    return f"{', '.join(first)} or {last}"


def _check_pipeline(name: Any, where: Path) -> str:
    pipelines = list(dict.fromkeys(record.pipeline for record in _with_pipeline()))
    if not isinstance(name, str) or name not in pipelines:
        raise CheckpointError(
            "this is no plain text-to-image pipeline of a model that pictures can be made with",
            where=where,
            expected=" or ".join(map(str, pipelines)),
            found=name,
        )
    return name
