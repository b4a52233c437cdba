"""Files that are no base for adapters: known by their keys, and refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from paramerge.errors import CheckpointError, shortened
from paramerge.expressions import first_occurring, occurring
from paramerge.files.header import LONGEST_KEY, Header
from paramerge.formats.families import adapter_keys
from paramerge.models.model_names import first_unet_key, looks_like, recognise
from paramerge.storage.quantised import Quantised
from paramerge.wording import option

_WRAPPED_KEYS = (".base_layer.weight", ".base_layer.bias")
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_forward_module", "module")
_TRAINING_WRAPPER = r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_forward_module)\.|^module\."

_NO_UNET = (
    ("EMA weights", r"^model_ema\."),
    ("a ControlNet", r"^control_model\.|controlnet_\w+\."),
    ("an AnimateDiff motion module", r"\.motion_modules\."),
    ("an IP-Adapter", r"^(ip_adapter|image_proj)\."),
    ("a T2I-Adapter", r"^(adapter\.)?body\.\d+\."),
    ("a textual inversion embedding", r"^(emb_params|clip_[lg]|string_to_param.*|<.+>)$"),
    ("a VAE", r"^(first_stage_model\.|vae\.)?(encoder|decoder)\.(conv_in|conv_out|mid|mid_block)\."),
    ("an upscaler", r"^(model\.\d+\.|conv_first\.|body\.\d+\.rdb)"),
)
"""Files without a UNet, by a key that they have; a key is of the first kind that matches it."""

SUPPORTED = "a checkpoint of Stable Diffusion, FLUX or another model that adapters name layers of"


def refuse_adapter(path: Path, keys: Iterable[str]) -> list[str]:
    """The keys of an adapter that stand in a checkpoint beside its own.

    Raises
    ------
    CheckpointError
        The file is an adapter, or a checkpoint with unmerged adapter layers.
    """
    keys = list(keys)
    found = adapter_keys(keys)
    wrapped = next((key for key in keys if key.endswith(_WRAPPED_KEYS)), None)
    if wrapped:
        raise CheckpointError(
            "the checkpoint was saved with adapter layers around its weights",
            where=path,
            expected=SUPPORTED,
            found=wrapped,
            hint="merge or unload the adapter before saving (fuse_lora and unload_lora_weights in diffusers)",
        )
    if found and not _outweighs(keys, found):
        raise CheckpointError(
            "this is an adapter, not a base checkpoint",
            where=path,
            expected=SUPPORTED,
            found=found[0],
            hint=f"give it to {option('lora')} or {option('para')}, and the checkpoint that it is for to "
            f"{option('base')}",
        )
    return found


def _kinds(keys: Iterable[str]) -> dict[str, str]:
    """The kinds of content of a file without a UNet, in the order of :data:`_NO_UNET`, each with a key that
    shows it."""
    keys = list(keys)
    kinds = {pattern: name for name, pattern in _NO_UNET}
    occur = occurring(kinds, keys)
    found: dict[str, str] = {}
    for key in keys if occur else ():
        if (pattern := first_occurring(kinds, key)) is not None:
            found.setdefault(kinds[pattern], key)
    return {name: found[name] for name in kinds.values() if name in found}


def is_beside_models(keys: Iterable[str]) -> bool:
    """Whether a file has tensors of a VAE, a ControlNet or another network that runs beside a model, or
    blocks of a UNet of which some are missing."""
    keys = list(keys)
    return bool(_kinds(keys)) or first_unet_key(keys) is not None


def is_checkpoint(keys: Iterable[str]) -> bool:
    """Whether a file of these keys is a checkpoint, not an adapter for one."""
    keys = list(keys)
    return _outweighs(keys, adapter_keys(keys))


def _outweighs(keys: list[str], adapters: list[str]) -> bool:
    return len(keys) > 3 * len(adapters) and _is_model(set(keys) - set(adapters))


def _is_model(keys: Iterable[str]) -> bool:
    """Whether these keys are of a whole model: one with a few keys of an adapter in it is no adapter."""
    keys = list(keys)
    return first_unet_key(keys) is not None or recognise(keys) is not None


def refuse_long_names(path: Path, keys: Iterable[str]) -> None:
    """Raise ``CheckpointError`` before any pattern is tried on a key of up to 100 MB."""
    long = next((key for key in keys if len(key) > LONGEST_KEY), None)
    if long is not None:
        raise CheckpointError(
            "a key is longer than any name of a layer",
            where=path,
            expected=f"at most {LONGEST_KEY} characters",
            found=f"{len(long)}: {shortened(long)}",
        )


def refuse_wrapped(path: Path, keys: Iterable[str]) -> None:
    """Raise ``CheckpointError`` if a model was saved from inside a wrapper: no reader knows such names."""
    keys = list(keys)
    for key in keys if occurring([_TRAINING_WRAPPER], keys) else ():
        if first_occurring([_TRAINING_WRAPPER], key):
            wrapper = min((word for word in _WRAPPERS if word in key), key=key.index)
            raise CheckpointError(
                f"the checkpoint was saved from a wrapped model: its keys have {wrapper!r} in them",
                where=path,
                expected=SUPPORTED,
                found=key,
                hint="save it again from the unwrapped model (accelerate's unwrap_model, or model._orig_mod)",
            )


def refuse_weightless(header: Header, quantised: Mapping[str, Quantised]) -> None:
    """Raise ``CheckpointError`` if layers have no weights of their own shape, by the layer of each key."""
    for key in header.tensors if quantised else ():
        layer = quantised.get(key)
        if layer is not None and layer.weightless:
            fault = layer.fault
            if fault is not None and layer.scheme is not None and layer.scheme.readable:
                raise CheckpointError(
                    f"the checkpoint is quantised ({layer.title}), and {fault.what}",
                    where=fault.where,
                    expected=fault.expected,
                    found=fault.found,
                    hint=fault.hint,
                )
            raise CheckpointError(
                f"the checkpoint is quantised ({layer.title}): its weights are not stored as numbers",
                where=header.path,
                expected=SUPPORTED,
                found=key,
                hint="take the fp16 or bf16 checkpoint, and quantise the result",
            )


def without_unet(path: Path, keys: Iterable[str]) -> CheckpointError:
    """The error for a file in which there is no UNet, with the name of its actual kind if that is known."""
    keys = list(keys)
    block = first_unet_key(keys)
    if block:
        return CheckpointError(
            "there is a UNet, but not a whole one under names that paramerge knows",
            where=path,
            expected="model.diffusion_model.* or the names of diffusers, first and last convolution included",
            found=block,
            hint="an incomplete file: download it again; other names: convert it to one of these",
        )
    if kinds := _kinds(keys):
        *others, last = [f"{name} alone" if len(kinds) == 1 and "EMA" in name else name for name in kinds]
        named = f"{', '.join(others)} and {last}" if others else last
        return CheckpointError(
            f"there is no UNet in this file: it is {named}",
            where=path,
            expected=SUPPORTED,
            found=", ".join(kinds.values()),
        )
    if (model := looks_like(keys)) is not None:
        return CheckpointError(
            f"this has layers of {model}, but not a whole model under names that paramerge knows",
            where=path,
            expected=SUPPORTED,
            found=f"{len(keys)} tensors: {', '.join(keys[:3])}" + (" ..." if len(keys) > 3 else ""),
            hint="an incomplete file: download it again",
        )
    sample = ", ".join(keys[:3]) + (" ..." if len(keys) > 3 else "")
    return CheckpointError(
        "this is not a checkpoint that paramerge knows",
        where=path,
        expected=SUPPORTED,
        found=f"{len(keys)} tensors: {sample}" if keys else "no tensors",
    )
