"""PEFT configurations damaged at random, beside adapters that are whole: see :mod:`adapter_mutants`."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np
from adapter_mutants import OTHER_LAYERS, Mutant, Tensor

__all__ = ["config_mutant"]

_CONFIG = {
    "peft_type": "LORA",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["to_k", "to_q"],
    "alpha_pattern": {},
    "rank_pattern": {},
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "modules_to_save": None,
    "layers_to_transform": None,
    "base_model_name_or_path": "somebody/model",
}
_TYPES = ("LOHA", "LOKR", "OFT", "BOFT", "IA3", "VERA", "HRA", "FOURIERFT", "DEFT", "PROMPT_TUNING", "?")
_PATTERNS = ("(a+)+$", "(.*)*x", "[", "(?P<a>", "a{1000}{1000}", "\\", "^(to|k|q)_k$", ".*" * 40, "(" * 200)
_MORE = (
    "num_oft_terms",
    "oft_block_size",
    "block_share",
    "coft",
    "module_dropout",
    "decompose_both",
    "exclude_modules",
)


def config_mutant(seed: int) -> Mutant:
    """The adapter of ``seed``: two layers of a LoRA, and a configuration with a few random changes."""
    rng = np.random.default_rng([seed, 7])
    tensors = {}
    for name, shape in OTHER_LAYERS.items():
        if len(shape) != 2:
            continue
        for role, (rows, columns) in {"lora_A": (2, shape[1]), "lora_B": (shape[0], 2)}.items():
            data = rng.standard_normal((rows, columns)).astype(np.float32)
            key = f"base_model.model.{name.removeprefix('unet.')}.{role}.weight"
            tensors[key] = Tensor("F32", (rows, columns), data.tobytes())
    config: dict[str, Any] = dict(_CONFIG)
    made = Mutant(seed, "a PEFT folder", True, tensors, {}, config)
    for _ in range(rng.geometric(0.4)):
        keys = (*config, *_MORE, "peft_type", "alpha_pattern", "rank_pattern")
        key = keys[rng.integers(len(keys))]
        if rng.random() < 0.1:
            config.pop(key, None)
            made.changes.append(f"without {key}")
            continue
        config[key] = _value(rng, key)
        made.changes.append(f"{key} = {reprlib.repr(config[key])}")
    return made


def _value(rng: np.random.Generator, key: str) -> object:
    if key == "peft_type" and rng.random() < 0.7:
        return _TYPES[rng.integers(len(_TYPES))]
    if key.endswith("_pattern") and rng.random() < 0.7:
        return {_PATTERNS[rng.integers(len(_PATTERNS))]: _plain(rng), "to_k": _plain(rng)}
    if key.endswith("_modules") and rng.random() < 0.5:
        return _PATTERNS[rng.integers(len(_PATTERNS))]
    return _plain(rng)


def _plain(rng: np.random.Generator) -> object:
    deep: object = 1
    for _ in range(int(rng.integers(400))):
        deep = [deep]
    values = (
        *(None, True, False, 0, -1, 1, 2, 3, 10**9, 10**30, -(2**63), 0.5, 1e308, 1e-320, "", "4", "none"),
        *(float("nan"), float("inf"), [], {}, [None], {"a": 1}, ["to_k"] * 50, "\ud800", "x" * 100_000, deep),
    )
    return values[rng.integers(len(values))]
