"""Adapters damaged at random, and the check that every verb takes them as what they are.

``mutant(seed)`` makes one of them in memory, the same for a seed; ``check(mutant, bench)`` writes it, runs
the verbs on it and gives what is wrong: an exception that is no error of ours, a warning, a result that is
not finite, a file that is there after an error, a JSON that no other reader takes.
"""

from __future__ import annotations

import io
import json
import math
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import click
import ml_dtypes
import numpy as np
import torch  # noqa: F401 - not to be stopped half imported
from blueprints import sd15
from family_cases import CASES, KRONA_CASES, Case, Shape
from random_checkpoint import write_random_checkpoint

from paramerge.cli.main import cli
from paramerge.errors import ParamergeError
from paramerge.files.dtypes import BITS, FLOATS, NUMPY
from paramerge.files.header import encode_header, read_header
from paramerge.files.tensors import stored
from paramerge.files.writer import write_safetensors

__all__ = ["Bench", "Finding", "Mutant", "check", "mutant"]

TO_K = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
UNET_LAYERS = {
    TO_K: (10, 24),
    "unet.down_blocks.0.attentions.0.proj_in": (10, 10, 1, 1),
    "unet.down_blocks.0.resnets.0.conv1": (10, 10, 3, 3),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (40, 40),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (24, 24),
}
"""Layers of a Stable Diffusion UNet a thirty-second as wide, and their shapes."""

OTHER_LAYERS = {
    "unet.transformer_blocks.0.attn1.to_k": (10, 24),
    "unet.transformer_blocks.0.proj_in": (10, 10, 1, 1),
    "unet.transformer_blocks.0.conv1": (10, 10, 3, 3),
    "unet.transformer_blocks.1.attn1.to_q": (40, 40),
}
"""Layers of a model without a name, all that it has: quicker by far, and found by name."""

ROLES = (
    "lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight",
    "lora.up.weight", "alpha", "lora_magnitude_vector", "lora_magnitude_vector.weight",
    "dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    "oft_blocks", "rescale", "on_input", "weight", "bias", "diff", "diff_b", "w_norm", "b_norm",
    "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight", "oft_R.weight", "boft_R",
    "boft_s", "ia3_l", "delta", "para_B", "scalar", "set_weight", "deft_P",
)  # fmt: skip
SHAPES = (
    (), (1,), (7,), (8,), (0,), (0, 3), (3, 0), (0, 10**12), (10**12, 0), (1, 1), (8, 3), (3, 8), (3, 24),
    (2, 2), (1, 8), (8, 1), (8, 8, 1), (3, 8, 3, 3), (3, 3, 3, 3), (8, 3, 1, 1), (1, 8, 1, 1), (2, 4, 4),
    (2, 2, 4, 4), (3, 8, 1, 1, 1), (1, 1, 1, 1, 1, 1), (1,) * 40,
)  # fmt: skip
_MOST = 1_000_000
"""Numbers of a tensor, at most."""
DTYPES = tuple(BITS)
VALUES = (
    math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0, 1e-300, 1e-45, 1e38, 3e38, 1e300, 65504.0, 6e-8, 0.5, 2.0,
)  # fmt: skip
NOISE = ("\n", "\x00", "\x1b[31m", "\u0663", "\u202e", "\ufeff", ".", "..", "/", "_", " ", "é", "😀")
METADATA = {
    "paramerge.format": ("para", "lora", "", "\x1b[2J"),
    "paramerge.format_version": ("1.0", "1", "2.0", "1.99", "", "x", "1" * 5000, "\u0663.0"),
    "paramerge.ranks": ("{}", "[]", "{", "null", '{"unet.x": 1}', '{"a": 1e400}', "[" * 5000, '{"a": NaN}'),
    "paramerge.gamma": ("0", "nan", "inf", "-1", "1e400", "0.5", "x", "\u0661"),
    "paramerge.targets": ("[]", "{", "null"),
    "paramerge.architecture": ("sd15", "sdxl", "", "\n", "x" * 9999),
    "paramerge.base_sha256": ("0" * 64, "x", ",,,", "0" * 63),
    "paramerge.recipe": ("{}", "[", "[" * 5000, '{"steps": [1], "base": []}', "null"),
    "krona.order": ("code", "paper", "", "x"),
    "lora_adapter_metadata": (
        "{}", "[]", "{", "null", '{"unet.r": 2, "unet.lora_alpha": 1}', '{"unet.r": []}', '{"r": 0}',
        '{"r": 1e400}', '{"r": 3, "lora_alpha": NaN}', '{"r": 3, "lora_alpha": 1e308, "use_rslora": true}',
        '{"unet.r": 3, "unet.lora_alpha": -1}', '{"r": true, "lora_alpha": "6"}',
    ),
    "ss_tag_frequency": ("{}", "[]", "{", '{"a": {"b": "c"}, "d": 1}', '{"a": {"b": 1e400}}'),
    "ss_training_finished_at": ("0", "1e400", "nan", "x", "-1e18"),
    "ss_dataset_dirs": ('{"a": 1}', '{"a": {"img_count": []}}', "[]"),
    "ss_base_model_version": ("sdxl_base_v1-0", "sd_v1", ""),
    "modelspec.architecture": ("stable-diffusion-v1-base/lora", "flux-1-dev", ""),
    "unet": ('["CrossAttention"]', "[]", "{", "[[1]]", "null", "[" * 5000),
    "<s1>": ("<embed>",),
}  # fmt: skip


@dataclass
class Tensor:
    """A tensor as a file holds it: the header's dtype and shape, and bytes that are as many."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@dataclass
class Mutant:
    """A damaged adapter.

    Attributes
    ----------
    origin:
        The case or file that it was made of.
    other:
        Whether it is for the model without a name.
    config:
        PEFT's configuration, for which it is a folder; None for a file.
    model:
        The files of a model's folder that is its base, by name; none for one of the bench's.
    changes:
        What was done to it, in order.
    """

    seed: int
    origin: str
    other: bool
    tensors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    config: Mapping[str, object] | None = None
    changes: list[str] = field(default_factory=list)
    model: Mapping[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Its file or folder in ``folder``."""
        if self.config is not None:
            folder = folder / "adapter"
            folder.mkdir(exist_ok=True)
            (folder / "adapter_config.json").write_text(json.dumps(self.config))
        path = folder / ("adapter.safetensors" if self.config is None else "adapter_model.safetensors")
        entries = [(key, each.dtype, each.shape, len(each.data)) for key, each in self.tensors.items()]
        with open(path, "wb") as stream:
            stream.write(encode_header(entries, self.metadata))
            stream.writelines(each.data for each in self.tensors.values())
        return path if self.config is None else folder


@dataclass(frozen=True)
class Finding:
    """What is wrong: the verb's arguments, in one line what happened, and the traceback if there is one."""

    mutant: Mutant
    verb: str
    what: str
    trace: str = ""

    def __str__(self) -> str:
        made = f"seed {self.mutant.seed}, {self.mutant.origin}: {'; '.join(self.mutant.changes)}"
        return f"{self.verb}: {self.what} ({made[:500]})\n{self.trace}"


def mutant(seed: int, real: Mapping[str, Mutant] | None = None) -> Mutant:
    """The adapter of ``seed``: of a random family, or one of ``real``, with a few random changes.

    Half of them are damaged in their numbers alone, so that they are read and computed with.
    """
    rng = np.random.default_rng(seed)
    if real and rng.random() < 0.03:
        name = sorted(real)[rng.integers(len(real))]
        of = real[name]
        made = Mutant(seed, name, False, dict(of.tensors), dict(of.metadata), of.config)
    else:
        made = _healthy(seed, rng, other=bool(rng.random() < 0.8))
    changes = _CHANGES if rng.random() < 0.5 else _CHANGES_OF_NUMBERS
    for _ in range(rng.geometric(0.5)):
        change = changes[rng.integers(len(changes))]
        told = change(made, rng)
        made.changes.append(f"{change.__name__.strip('_')} {told[:80]}")
    return made


def real_adapters(folder: Path) -> dict[str, Mutant]:
    """Whole adapters of ``folder`` to be damaged: safetensors files, and PEFT's folders."""
    found = {}
    for path in sorted(folder.iterdir()):
        config = path / "adapter_config.json"
        weights = path / "adapter_model.safetensors" if path.is_dir() else path
        header = read_header(weights)
        tensors = {
            key: Tensor(info.dtype, info.shape, stored(header, key).read_bytes())
            for key, info in header.tensors.items()
        }
        read = json.loads(config.read_text()) if config.is_file() else None
        found[path.name] = Mutant(0, path.name, False, tensors, dict(header.metadata), read)
    return found


def _healthy(seed: int, rng: np.random.Generator, other: bool) -> Mutant:
    """An adapter of one or two layers as its trainer writes it."""
    every: Mapping[str, Shape] = OTHER_LAYERS if other else UNET_LAYERS
    names = list(every)
    chosen = [names[i] for i in rng.choice(len(names), size=rng.integers(1, 3), replace=False)]
    dtype = ("F32", "F16", "BF16", "F64", "F8_E4M3")[rng.integers(5)]
    cases = [*CASES, *KRONA_CASES]
    pick = int(rng.integers(len(cases) + 4))
    if pick >= len(cases):
        tensors = {
            f"{layer.replace('unet.transformer', 'transformer.transformer')}.para_B": rng.standard_normal(
                (every[layer][0], int(rng.integers(1, 5)))
            )
            for layer in chosen
        }
        metadata = {"paramerge.format": "para", "paramerge.format_version": "1.0"}
        return Mutant(seed, "para", other, _stored(tensors, dtype), metadata)
    case = cases[pick]
    dotted = case.config is None and bool(rng.random() < 0.1)
    if case in KRONA_CASES:
        chosen, every, dotted = [TO_K], {TO_K: (320, 768)}, False
    chosen = [layer for layer in chosen if case.suits(every[layer])] or [names[2]]
    tensors = {
        _key(case, layer, ending, dotted): value
        for layer in chosen
        if case.suits(every[layer])
        for ending, value in case.make(rng, every[layer]).items()
    }
    return Mutant(seed, str(case), other, _stored(tensors, dtype), config=case.config)


def _key(case: Case, layer: str, ending: str, dotted: bool) -> str:
    """In the case's dialect, or dotted with the component in front."""
    return f"{layer}.{ending}" if dotted else case.key(layer, ending)


def _stored(tensors: Mapping[str, np.ndarray], dtype: str) -> dict[str, Tensor]:
    return {
        key: Tensor(dtype, value.shape, value.astype(NUMPY[dtype]).tobytes())
        for key, value in tensors.items()
    }


# The changes: each damages the mutant in place and says what it did


def _some(made: Mutant, rng: np.random.Generator) -> str | None:
    keys = list(made.tensors)
    return keys[rng.integers(len(keys))] if keys else None


def _filled(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Random or constant numbers, or random bytes where NumPy has no such dtype."""
    count = math.prod(shape)
    if dtype not in NUMPY:
        return Tensor(dtype, shape, rng.bytes(count * BITS[dtype] // 8))
    value = rng.standard_normal(count) if rng.random() < 0.7 else np.full(count, _value(rng))
    with np.errstate(all="ignore"):
        return Tensor(dtype, shape, np.nan_to_num(value).astype(NUMPY[dtype]).tobytes())


def _value(rng: np.random.Generator) -> float:
    return float(VALUES[rng.integers(len(VALUES))])


def _shape(rng: np.random.Generator) -> tuple[int, ...]:
    return SHAPES[rng.integers(len(SHAPES))]


def _drops(made: Mutant, rng: np.random.Generator) -> str:
    key = _some(made, rng)
    return "nothing" if key is None or not made.tensors.pop(key) else key


def _renames(made: Mutant, rng: np.random.Generator) -> str:
    """A role in place of another, or noise somewhere in a key."""
    key = _some(made, rng)
    if key is None:
        return "nothing"
    if rng.random() < 0.5:
        role = next((role for role in ROLES if key.endswith(f".{role}")), key.rpartition(".")[2])
        new = key.removesuffix(role) + ROLES[rng.integers(len(ROLES))]
    else:
        at, noise = int(rng.integers(len(key) + 1)), NOISE[rng.integers(len(NOISE))]
        new = key[:at] + noise + key[at + int(rng.integers(2)) :]
    if new != "__metadata__":
        made.tensors[new] = made.tensors.pop(key)
    return f"{key} {new!r}"


def _lengthens(made: Mutant, rng: np.random.Generator) -> str:
    """A key of 100 kB, the layer's name or its role repeated."""
    key = _some(made, rng)
    if key is None:
        return "nothing"
    stem, _, end = key.partition(".")
    part = ("a", "_", f"{stem}_", f"{end}.", ".0", ".lora_A", "_0", ".oft_R", "down_blocks_0_")[
        rng.integers(9)
    ]
    long = part * (100_000 // len(part))
    new = (f"{stem}{long}.{end}", f"{stem}.{long}{end}", f"{key}{long}")[rng.integers(3)]
    made.tensors[new] = made.tensors[key] if rng.random() < 0.5 else made.tensors.pop(key)
    return key


def _doubles(made: Mutant, rng: np.random.Generator) -> str:
    """The same layer under another spelling, or another role with the same tensor."""
    key = _some(made, rng)
    if key is None:
        return "nothing"
    spelled = (
        key.replace("lora_unet_", "lycoris_"),
        key.replace("lora_unet_down_blocks_0_attentions_0", "lora_unet_input_blocks_1_1"),
        key.replace("base_model.model.", "unet."),
        key.replace(".weight", ".default.weight"),
        f"{key}.alpha",
        f"base_model.model.{key}",
    )
    new = spelled[rng.integers(len(spelled))]
    made.tensors.setdefault(new, made.tensors[key])
    return new


def _adds(made: Mutant, rng: np.random.Generator) -> str:
    """Another role to a layer that is there."""
    key = _some(made, rng)
    if key is None:
        return "nothing"
    role = next((role for role in ROLES if key.endswith(f".{role}")), "")
    new = f"{key.removesuffix(role).rstrip('.')}.{ROLES[rng.integers(len(ROLES))]}"
    made.tensors[new] = _filled(rng, ("F32", "F16", "I64", "C64")[rng.integers(4)], _shape(rng))
    return f"{new} {list(made.tensors[new].shape)}"


def _joins(made: Mutant, rng: np.random.Generator) -> str:
    """Another family's tensors of the same layers."""
    other = _healthy(made.seed, rng, made.other)
    made.tensors |= other.tensors
    made.config = made.config or other.config
    return other.origin


def _reshapes(made: Mutant, rng: np.random.Generator) -> str:
    """Another shape: of as many elements, or any."""
    key = _some(made, rng)
    if key is None:
        return "nothing"
    old = made.tensors[key]
    shape = list(old.shape)
    kind = rng.integers(6)
    if kind == 0:
        new: tuple[int, ...] = tuple(reversed(shape))
    elif kind == 1:
        new = (math.prod(shape),)
    elif kind == 2:
        shape.insert(int(rng.integers(len(shape) + 1)), 1)
        new = tuple(shape)
    elif kind == 3 and shape:
        shape[rng.integers(len(shape))] += int(rng.integers(-1, 2))
        new = tuple(max(0, size) for size in shape)
    else:
        new = _shape(rng)
    new = old.shape if math.prod(new) > _MOST else new  # a row more of a shape such as (0, 10^12)
    same = math.prod(new) == math.prod(old.shape)
    made.tensors[key] = Tensor(old.dtype, new, old.data) if same else _filled(rng, old.dtype, new)
    return f"{key} {list(new)}"


def _retypes(made: Mutant, rng: np.random.Generator) -> str:
    key = _some(made, rng)
    if key is None:
        return "nothing"
    dtype = DTYPES[rng.integers(len(DTYPES))]
    old = made.tensors[key]
    if math.prod(old.shape) * BITS[dtype] % 8:
        return "nothing"
    made.tensors[key] = _filled(rng, dtype, old.shape)
    return f"{key} {dtype}"


def _spoils(made: Mutant, rng: np.random.Generator) -> str:
    """Numbers that are not finite, huge, tiny or zero: one of them, a column or all."""
    key = _some(made, rng)
    if key is None or made.tensors[key].dtype not in NUMPY or not made.tensors[key].data:
        return "nothing"
    old, value = made.tensors[key], _value(rng)
    array = np.frombuffer(old.data, NUMPY[old.dtype]).copy()
    where = (slice(None), slice(0, 1), slice(None, None, 3))[rng.integers(3)]
    with np.errstate(all="ignore"):
        if old.dtype[0] in "IUB":
            value = float(np.nan_to_num(value, posinf=1, neginf=0)) % 100
        array[where] = np.array(value).astype(array.dtype)
    made.tensors[key] = Tensor(old.dtype, old.shape, array.tobytes())
    return f"{key} {value}"


def _converts(made: Mutant, rng: np.random.Generator) -> str:
    """One tensor, or all, in another floating dtype; what is beyond its range becomes infinite."""
    keys = [key for key, each in made.tensors.items() if each.dtype in FLOATS]
    if not keys:
        return "nothing"
    dtype = FLOATS[rng.integers(len(FLOATS))]
    chosen = keys if rng.random() < 0.5 else [keys[rng.integers(len(keys))]]
    for key in chosen:
        old = made.tensors[key]
        with np.errstate(all="ignore"):
            values = np.frombuffer(old.data, NUMPY[old.dtype]).astype(NUMPY[dtype])
        made.tensors[key] = Tensor(dtype, old.shape, values.tobytes())
    return f"{len(chosen)} {dtype}"


def _multiplies(made: Mutant, rng: np.random.Generator) -> str:
    """All numbers by a huge or a tiny one, so far as their dtypes go."""
    factor = (1e-300, 1e-40, 1e-8, 1e4, 1e30, 1e150, 1e300, 0.0, -1.0)[rng.integers(9)]
    for key, old in made.tensors.items():
        if old.dtype in FLOATS:
            with np.errstate(all="ignore"):
                values = np.frombuffer(old.data, NUMPY[old.dtype]).astype(np.float64) * factor
                largest = float(ml_dtypes.finfo(NUMPY[old.dtype]).max)
                values = np.clip(values, -largest, largest).astype(NUMPY[old.dtype])
            made.tensors[key] = Tensor(old.dtype, old.shape, values.tobytes())
    return str(factor)


def _scales(made: Mutant, rng: np.random.Generator) -> str:
    """An alpha of another dtype, value or shape."""
    key = _some(made, rng)
    if key is None:
        return "nothing"
    role = next((role for role in ROLES if key.endswith(f".{role}")), "")
    new = f"{key.removesuffix(role).rstrip('.')}.alpha"
    dtypes = ("F32", "F64", "F16", "I64", "C64", "BOOL", "U8", "F8_E5M2", "F8_E8M0", "U64")
    dtype = dtypes[rng.integers(len(dtypes))]
    shape = ((), (1,), (1, 1), (3,), (0,), (1,) * 8)[rng.integers(6)]
    made.tensors[new] = _filled(rng, dtype, shape)
    if dtype in NUMPY and dtype[0] in "FC":
        with np.errstate(all="ignore"):
            value = np.full(math.prod(shape), _value(rng)).astype(NUMPY[dtype])
        made.tensors[new] = Tensor(dtype, shape, value.tobytes())
    return f"{new} {dtype} {list(shape)}"


def _swaps(made: Mutant, rng: np.random.Generator) -> str:
    """The tensors of two keys, such as up and down."""
    one, other = _some(made, rng), _some(made, rng)
    if one is None or other is None:
        return "nothing"
    made.tensors[one], made.tensors[other] = made.tensors[other], made.tensors[one]
    return f"{one} {other}"


def _lies(made: Mutant, rng: np.random.Generator) -> str:
    """Metadata that are not true."""
    key = sorted(METADATA)[rng.integers(len(METADATA))]
    made.metadata[key] = METADATA[key][rng.integers(len(METADATA[key]))]
    return f"{key} {made.metadata[key][:30]!r}"


_CHANGES: tuple[Callable[[Mutant, np.random.Generator], str], ...] = (
    _drops, _renames, _renames, _lengthens, _doubles, _adds, _adds, _joins, _reshapes, _reshapes, _reshapes,
    _retypes, _retypes, _spoils, _spoils, _scales, _scales, _swaps, _lies,
)  # fmt: skip
_CHANGES_OF_NUMBERS = (_spoils, _spoils, _converts, _multiplies, _scales, _lies)


# The check


class Bench:
    """A folder with a small base, in which the verbs run one mutant after the other.

    Parameters
    ----------
    limit:
        Seconds of computing that a verb may take; None where time is not looked at.
    """

    def __init__(self, folder: Path, limit: float | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.bases = {False: folder / "sd15.safetensors", True: folder / "other.safetensors"}
        if not self.bases[False].exists():
            write_random_checkpoint(sd15(32, vocabulary=8), self.bases[False], seed=1)
        rng = np.random.default_rng(1)
        weights = {
            f"{name.removeprefix('unet.')}.weight": rng.standard_normal(shape).astype(np.float32)
            for name, shape in OTHER_LAYERS.items()
        }
        biases = {
            f"{name.removeprefix('unet.')}.bias": rng.standard_normal(shape[0]).astype(np.float32)
            for name, shape in OTHER_LAYERS.items()
        }
        write_safetensors(self.bases[True], weights | biases, {})

    def contents(self) -> dict[str, object]:
        """What is in the folder: the bytes of each file, of the bases size and times."""
        found: dict[str, object] = {}
        for path in self.folder.rglob("*"):
            status = path.stat()
            base = path in self.bases.values()
            found[str(path.relative_to(self.folder))] = (
                (status.st_size, status.st_mtime_ns) if base else path.is_file() and path.read_bytes()
            )
        return found

    def clear(self) -> None:
        """Remove what the last mutant left."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path not in self.bases.values():
                path.rmdir() if path.is_dir() else path.unlink()


class _TooLong(BaseException):
    """A verb went on beyond the limit."""


def check(made: Mutant, bench: Bench, verbs: int = 1) -> Iterator[Finding]:
    """Run ``inspect`` on it, and as many of the ways to use it; its seed says which.

    Afterwards the inputs are what they were, and nothing stands beside them.
    """
    bench.clear()
    path = made.write(bench.folder)
    before = bench.contents()
    output = bench.folder / "out.safetensors"
    rng = np.random.default_rng(made.seed)
    yield from _run(made, bench, ["inspect", str(path), "--json" if rng.random() < 0.5 else "--layers"])
    every = list(_verbs(path, bench.bases[made.other], output))
    if made.model:
        (base := bench.folder / "model").mkdir()
        for name, data in made.model.items():
            (base / name).write_bytes(data)
        before, every = bench.contents(), list(_verbs_on(path, base, output.with_suffix("")))
    for place in rng.choice(len(every), size=verbs, replace=False):
        yield from _run(made, bench, every[place])
    after = bench.contents()
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield Finding(made, "the verbs above", "an input changed" if name in before else f"left {name}")


def _verbs(path: Path, base: Path, output: Path) -> Iterator[list[str]]:
    """Every way to use the adapter at ``path`` that reads its tensors."""
    given, to = str(path), ["-o", str(output)]
    bake = ["bake", "--base", str(base), "--adapter", given]
    yield [*bake, "--dry-run", *to]
    for loose in ([], ["--allow-unmatched"]):
        yield [*bake, *loose, *to]
        yield [*bake, *loose, *to]
    yield ["bake", "--base", str(base), "--adapter", given, "--adapter", f"{given}@0.5", *to]
    for target in ("kohya", "diffusers", "kohya-sgm"):
        yield ["convert", given, "--to", target, *to]
    yield ["convert", given, "--to", "peft", "-o", str(output.with_suffix(""))]
    yield ["merge", given, f"{given}@0.3", *to]
    yield ["merge", given, "--base", str(base), *to]
    yield ["resize", given, "--rank", "1", *to]
    yield ["resize", given, "--energy", "0.5", "--base", str(base), *to]
    yield ["extract", "--from-lora", given, "--rank", "2", *to]
    yield ["compare", given, given]
    yield ["compare", given, given, "--base", str(base), "--json"]


def _verbs_on(path: Path, base: Path, output: Path) -> Iterator[list[str]]:
    """The ways to use the model in the folder ``base``."""
    yield ["inspect", str(base)]
    yield ["inspect", str(base), "--json"]
    bake = ["bake", "--base", str(base), "--adapter", str(path), "-o", str(output)]
    yield bake
    yield [*bake, "--private"]
    for dtype in ("fp16", "bf16"):
        yield [*bake, "--dtype", dtype]
    yield ["merge", str(path), str(path), "--base", str(base), "-o", f"{output}.safetensors"]
    from_base = ["extract", "--from", str(base), "--base", str(base), "--family", "lora", "--rank", "1"]
    yield [*from_base, "-o", f"{output}.safetensors"]


def _run(made: Mutant, bench: Bench, arguments: list[str]) -> Iterator[Finding]:
    """One verb, in this process, as the command would do it."""
    verb = " ".join(arguments).replace(f"{bench.folder}/", "")
    said, complained = io.StringIO(), io.StringIO()
    refused = False
    begun = time.process_time()
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        try:
            with redirect_stdout(said), redirect_stderr(complained), _limited(bench.limit):
                cli.main(args=arguments, prog_name="paramerge", standalone_mode=False)
        except (ParamergeError, click.ClickException):
            refused = True
        except _TooLong:
            yield Finding(made, verb, f"took over {bench.limit} s")
        except Exception as error:  # whatever is no error of ours is what is looked for
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {error}"
            yield Finding(made, verb, what, traceback.format_exc())
            refused = True
    if bench.limit is not None and time.process_time() - begun > bench.limit:
        yield Finding(made, verb, f"took {time.process_time() - begun:.1f} s")
    for warning in noticed:
        place = f"{Path(warning.filename).name}:{warning.lineno}"
        yield Finding(made, verb, f"{warning.category.__name__} at {place}: {warning.message}")
    if "Traceback" in complained.getvalue():
        yield Finding(made, verb, "a traceback on the terminal", complained.getvalue())
    if "--json" in arguments and not refused:
        yield from _not_json(made, verb, said.getvalue())
    if "-o" in arguments:
        output = Path(arguments[arguments.index("-o") + 1])
        yield from _output(made, verb, output, refused)


def _not_json(made: Mutant, verb: str, text: str) -> Iterator[Finding]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError as error:
        yield Finding(made, verb, str(error))


def _output(made: Mutant, verb: str, output: Path, refused: bool) -> Iterator[Finding]:
    """An output is whole and finite, and there is none after an error."""
    if refused and output.exists():
        yield Finding(made, verb, "refused, and an output is there")
    if not output.exists():
        return
    weights = [output] if output.is_file() else sorted(output.rglob("*.safetensors"))
    for path in weights:
        header = read_header(path)
        for key, info in header.tensors.items():
            values = stored(header, key).read() if info.dtype in NUMPY else np.zeros(1)
            if not np.isfinite(values.astype(np.complex128)).all():
                yield Finding(made, verb, f"the output holds NaN or Inf: {key[:80]}")
    for path in sorted(output.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    output.rmdir() if output.is_dir() else output.unlink()


@contextmanager
def _limited(seconds: float | None) -> Iterator[None]:
    """Stop what runs on the main thread after ``seconds`` of computing, whatever else the machine does."""
    if seconds is None:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
