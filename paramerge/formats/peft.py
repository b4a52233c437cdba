"""PEFT's dialect: a folder of ``adapter_model.safetensors`` and ``adapter_config.json``.

Keys are ``base_model.model.<layer>.lora_A.weight`` without a component: the UNet and the text encoders differ
by layers' names, the two text encoders by their widths. Alpha is in the configuration only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from paramerge.adapters import LayerModule
from paramerge.adapters.peft_config import TunerSettings, bad_option, read_lora
from paramerge.adapters.registry import families
from paramerge.errors import AdapterError
from paramerge.files.source import Source
from paramerge.formats.dialect import Dialect, Place
from paramerge.formats.layers import bare_layer, bare_norm
from paramerge.models.names import ModuleName
from paramerge.strict_json import MAX_BYTES, object_from
from paramerge.wording import option

PREFIX = "base_model.model."
WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

_WIDTH_OF_SECOND_ENCODER = 1280
"""The widths by which SDXL's two text encoders differ, where names do not."""

_EXTRAS = (
    (re.compile(r".*\.lora_B\.(?:\w+\.)?bias"), "a bias trained beside the factors (lora_bias)"),
    (re.compile(r".*\.lora_embedding_[AB](?:\.\w+)?"), "a LoRA on an embedding"),
    (re.compile(r".*\btrainable_tokens_\w+(?:\.\w+){0,2}"), "trained token embeddings"),
    (
        re.compile(r".*\.base_layer\.weight"),
        "a copy of the base's own weight (PEFT's save_embedding_layers), which changes nothing",
    ),
    (re.compile(r".*\.bias"), "a trained bias"),
    (re.compile(r".*\.weight"), "a whole weight saved with the adapter (modules_to_save)"),
)


def _claims(key: str) -> bool:
    return key.startswith(PREFIX)


def _place(stem: str) -> Place | None:
    path = stem.removeprefix(PREFIX)
    if norm := bare_norm(path):
        return Place(norm, False, "peft")
    layer = bare_layer(path)
    return Place(layer, True, "peft") if layer else None


def _stem(name: ModuleName, architecture: str | None) -> str:
    return PREFIX + name.path


def text_encoders_by_width(modules: Mapping[ModuleName, LayerModule]) -> dict[ModuleName, LayerModule]:
    """PEFT's names have no component: a text encoder as wide as SDXL's second is that one."""
    of_text = [module for name, module in modules.items() if name.component == "text_encoder"]
    if not any(_width(module) == _WIDTH_OF_SECOND_ENCODER for module in of_text):
        return dict(modules)
    moved: dict[ModuleName, LayerModule] = {}
    for name, module in modules.items():
        if name.component == "text_encoder":
            renamed = ModuleName("text_encoder_2", name.path)
            moved[renamed] = module.renamed(renamed)
        else:
            moved[name] = module
    return moved


def _width(module: LayerModule) -> int | None:
    """The text encoder's width, where the layer shows it: at its inputs, or behind the MLP."""
    if module.name.path.endswith("fc2"):
        return module.out_features
    if module.name.path.endswith("_proj"):
        return module.in_features or module.out_features
    return module.in_features


def is_copy_of_base(key: str) -> bool:
    """Whether the key is a copy of the base's own weight, which PEFT saves beside a trained embedding."""
    return key.endswith(".base_layer.weight")


def leftover_reason(key: str) -> str | None:
    """The content of a key that is no factor, where PEFT has a meaning for it."""
    return next((reason for pattern, reason in _EXTRAS if pattern.fullmatch(key)), None)


def read_config(source: Source) -> Mapping[str, object]:
    """Read ``adapter_config.json``, which was opened.

    Raises
    ------
    FileFormatError
        It cannot be read or is no JSON object.
    """
    data = source.read(0, min(source.size, MAX_BYTES + 1))
    return object_from(data, source.path, what="this configuration")


def read_tuner(config: Mapping[str, object], where: str) -> TunerSettings:
    """The settings of a configuration, as the family reads it whose tuner it says; LoRA where it says none.

    Raises
    ------
    FamilyError
        Another tuner, or one with an option that makes it another method.
    AdapterError
        An option has an impossible value.
    """
    tuners = {family.tuner.peft_type: family.tuner for family in families() if family.tuner is not None}
    tuner = tuners.get(str(config.get("peft_type", "LORA")))
    read = read_lora(config, where) if tuner is None else tuner.read(config, where)
    return replace(read, whole=_names(config.get("modules_to_save"), "modules_to_save", where))


def _names(value: object, option: str, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise bad_option(option, value, where, "a list of names")
    return tuple(value)


_SAVED = re.compile(r"(?P<path>.+?)(?:\.modules_to_save(?:\.\w+)?)?\.(?P<kind>weight|bias)")


def saved_whole(key: str, modules: Collection[str]) -> tuple[str, str] | None:
    """The layer and the kind of a tensor of a module that is saved whole, among ``modules``; else None."""
    match = _SAVED.fullmatch(key.removeprefix(PREFIX))
    if match is None or ".base_layer" in match["path"]:
        return None
    words = f".{match['path']}."
    found = any(f".{module}." in words for module in modules)
    return (match["path"], match["kind"]) if found else None


def missing_config(path: Path) -> AdapterError:
    """The error for PEFT's weights alone: without alpha they have no size."""
    return AdapterError(
        "the scale of this PEFT adapter is not known: its alpha is in adapter_config.json",
        where=path,
        expected=f"{CONFIG_NAME} beside it",
        found="the weights alone",
        hint=f"give the folder that holds {WEIGHTS_NAME} and {CONFIG_NAME}, or say the alpha: "
        f"{option('alpha', 'rank')}",
    )


def is_of_a_folder(path: Path) -> bool:
    """Whether a file is, by its name, one of a folder that has a configuration beside it."""
    return path.name == WEIGHTS_NAME


AI_TOOLKIT = {"magnitude": "magnitude"}
"""ai-toolkit's name for DoRA's magnitudes. Beside PEFT's names of factors its scale is 1; beside kohya's the
scale stands in no file, and such a DoRA is refused."""

_ENDINGS = {"up": "lora_B.weight", "down": "lora_A.weight", "magnitude": "lora_magnitude_vector"}

PEFT = Dialect(
    key="peft",
    names="the path of a module",
    claims=_claims,
    place=_place,
    endings=_ENDINGS,
    also_read=AI_TOOLKIT,
    spell=_stem,
    parts="peft",
    alpha="configuration",
    folder=True,
)
DEFT = Dialect(
    key="deft",
    names="the path of a module",
    claims=_claims,
    place=_place,
    endings={"basis": "deft_P"},
    spell=_stem,
    parts="deft",
    folder=True,
    variant_of="peft",
)
