"""Configurations damaged at random, beside weights that are whole: PEFT's and models'."""

from __future__ import annotations

import json
import reprlib
from typing import Any

import numpy as np
from adapter_mutants import OTHER_LAYERS, Mutant, Tensor

from paramerge.files.header import encode_header

__all__ = ["config_mutant", "model_mutant"]

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


_WEIGHTS = "diffusion_pytorch_model.safetensors"
_MODEL_KEYS = (
    *("_class_name", "model_type", "_name_or_path", "torch_dtype", "dtype", "quantization_config"),
    *("compression_config", "in_channels", "cross_attention_dim", "block_out_channels", "weight_map"),
    *("metadata", "total_size", "_diffusers_version"),
)
_TEXTS = (
    *(b"", b"{", b"[]", b"null", b"3", b'"x"', b"\xff\xfe{}", b"{}{}", b'{"a": NaN}', b'{"a": 1, "a": 2}'),
    *(b"[" * 100_000, b'{"a":' * 1000 + b"1" + b"}" * 1000, b'{"a": 1e999}', b"\xef\xbb\xbf{}", b"\x00" * 99),
)


def model_mutant(seed: int) -> Mutant:
    """The model of ``seed``, with a LoRA for it: a folder with damage in its JSON."""
    rng = np.random.default_rng([seed, 8])
    made = config_mutant(seed)
    made.config = dict(_CONFIG)
    weights = {
        f"{name.removeprefix('unet.')}.weight": rng.standard_normal(shape).astype(np.float32)
        for name, shape in OTHER_LAYERS.items()
    }
    entries = [(key, "F32", value.shape, value.nbytes) for key, value in weights.items()]
    data = encode_header(entries, {}) + b"".join(value.tobytes() for value in weights.values())
    files = {"config.json": _config(rng, {"_class_name": "SomeTransformerModel"})}
    if rng.random() < 0.5:
        files[_WEIGHTS] = data
    else:
        shard = "diffusion_pytorch_model-00001-of-00001.safetensors"
        index: dict[str, Any] = {
            "metadata": {"total_size": len(data)},
            "weight_map": dict.fromkeys(weights, shard),
        }
        if rng.random() < 0.3:
            places = ("../x", "/etc/passwd", "", "a.bin", None)
            index["weight_map"][next(iter(weights))] = places[rng.integers(len(places))]
        files |= {shard: data, f"{_WEIGHTS}.index.json": _config(rng, index)}
    if rng.random() < 0.3:
        files["model_index.json"] = _config(rng, {"_class_name": "StableDiffusionPipeline"})
    made.model = files
    made.changes = [f"{name}: {reprlib.repr(text)}" for name, text in files.items() if name.endswith("json")]
    return made


def _config(rng: np.random.Generator, content: dict[str, Any]) -> bytes:
    """``content`` as JSON, with a few entries that are none, or no JSON at all."""
    if rng.random() < 0.3:
        return _TEXTS[rng.integers(len(_TEXTS))]
    for _ in range(rng.geometric(0.5) - 1):
        content[_MODEL_KEYS[rng.integers(len(_MODEL_KEYS))]] = _plain(rng)
    return json.dumps(content).encode()
