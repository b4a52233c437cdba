"""Every family and every form of it: random files in the dialect of their trainer, and what they mean.

A case writes one layer's tensors and knows the formula in NumPy float64, written down densely and on its own:
nothing here uses paramerge but the writer of files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from baking import DTYPES
from numpy.typing import NDArray
from safetensors.numpy import load_file
from scipy.linalg import block_diag

from paramerge.files.writer import write_safetensors

Matrix = NDArray[np.float64]
Tensors = dict[str, Matrix]
Shape = tuple[int, ...]

EPS32 = 2.0**-23
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}


@dataclass(frozen=True)
class Case:
    """One form of a family.

    Attributes
    ----------
    make:
        Random tensors of a layer of the given shape, by what stands behind the layer's name in a key.
    change:
        ``W'`` of those tensors (as they were stored) and the flattened weight.
    config:
        PEFT's configuration; None for kohya's dialect.
    whole_shape:
        Whether the formula applies to layers of this shape.
    """

    name: str
    family: str
    make: Callable[[np.random.Generator, Shape], Tensors]
    change: Callable[[Tensors, Matrix, Shape], Matrix]
    dependent: bool = False
    linear_strength: bool = True
    config: Mapping[str, object] | None = None
    suits: Callable[[Shape], bool] = field(default=lambda shape: True)

    def __str__(self) -> str:
        return self.name

    def key(self, layer: str, ending: str) -> str:
        """The key of a tensor of ``layer`` (``unet.down_blocks...``)."""
        component, _, path = layer.partition(".")
        if self.config is not None:
            return f"base_model.model.{path}.{ending}"
        return f"{_KOHYA[component]}_{path.replace('.', '_')}.{ending}"

    def write(
        self, folder: Path, shapes: Mapping[str, Shape], dtype: str = "F32", seed: int = 0
    ) -> tuple[Path, dict[str, Tensors]]:
        """A file (or PEFT's folder) with these layers, and its tensors as they come back from storage."""
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        tensors, stored = {}, {}
        for layer, shape in shapes.items():
            made = {name: value.astype(DTYPES[dtype]) for name, value in self.make(rng, shape).items()}
            tensors |= {self.key(layer, name): value for name, value in made.items()}
            stored[layer] = {name: value.astype(np.float64) for name, value in made.items()}
        path = folder / ("adapter_model.safetensors" if self.config is not None else "adapter.safetensors")
        write_safetensors(path, tensors, {})
        if self.config is not None:
            (folder / "adapter_config.json").write_text(json.dumps(self.config))
            return folder, stored
        return path, stored

    def expected(self, tensors: Tensors, W: Matrix, shape: Shape, strength: float = 1.0) -> Matrix:
        """The weight at a strength: ``W + s (W' - W)``."""
        return W + strength * (self.change(tensors, W, shape) - W)


def _flat(shape: Shape) -> tuple[int, int]:
    return shape[0], int(np.prod(shape[1:]))


def _kernel(shape: Shape) -> Shape:
    return shape[2:]


def _split(size: int, wanted: int) -> tuple[int, int]:
    """``size`` as a product whose first factor is at most ``wanted``."""
    first = max(n for n in range(1, wanted + 1) if size % n == 0)
    return first, size // first


def _normal(rng: np.random.Generator, *shape: int, size: float = 0.3) -> Matrix:
    return rng.normal(0, size, shape)


def _matrix(value: Matrix) -> Matrix:
    return value.reshape(value.shape[0], -1)


# LoRA, LoCon


def _lora(rng: np.random.Generator, shape: Shape, rank: int = 3) -> Tensors:
    ones = (1,) * len(_kernel(shape))
    up, down = _normal(rng, shape[0], rank, *ones), _normal(rng, rank, *shape[1:], size=0.05)
    return {"lora_up.weight": up, "lora_down.weight": down, "alpha": np.array(2.0)}


def _lora_delta(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    return 2.0 / 3 * _matrix(t["lora_up.weight"]) @ _matrix(t["lora_down.weight"])


def _lora_tucker(rng: np.random.Generator, shape: Shape) -> Tensors:
    return {
        "lora_up.weight": _normal(rng, shape[0], 3, 1, 1),
        "lora_mid.weight": _normal(rng, 3, 3, *_kernel(shape)),
        "lora_down.weight": _normal(rng, 3, shape[1], 1, 1),
        "alpha": np.array(1.5),
    }


def _lora_tucker_delta(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    up, mid, down = t["lora_up.weight"], t["lora_mid.weight"], t["lora_down.weight"]
    core = np.einsum("or,rshw,si->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    return 0.5 * core.reshape(W.shape)


# LoHa


def _loha(rng: np.random.Generator, shape: Shape) -> Tensors:
    d, k = _flat(shape)
    pairs = {f"hada_w{i}_a": _normal(rng, d, 4) for i in (1, 2)}
    pairs |= {f"hada_w{i}_b": _normal(rng, 4, k) for i in (1, 2)}
    return pairs | {"alpha": np.array(2.0)}


def _loha_delta(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    return 0.5 * (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])


def _loha_tucker(rng: np.random.Generator, shape: Shape) -> Tensors:
    tensors: Tensors = {}
    for i in (1, 2):
        tensors[f"hada_t{i}"] = _normal(rng, 4, 4, *_kernel(shape))
        tensors[f"hada_w{i}_a"] = _normal(rng, 4, shape[0])
        tensors[f"hada_w{i}_b"] = _normal(rng, 4, shape[1])
    return tensors


def _loha_tucker_delta(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    one, two = (
        np.einsum("rshw,ro,si->oihw", t[f"hada_t{i}"], t[f"hada_w{i}_a"], t[f"hada_w{i}_b"]) for i in (1, 2)
    )
    return (one * two).reshape(W.shape)


# LoKr: which factor is whole, and which of them is the larger


def _lokr(
    whole1: bool, whole2: bool, small_first: bool = True, tucker: bool = False
) -> Callable[[np.random.Generator, Shape], Tensors]:
    def make(rng: np.random.Generator, shape: Shape) -> Tensors:
        (a, c), (b, e) = _split(shape[0], 4), _split(shape[1], 4)
        if not small_first:
            (a, c), (b, e) = (c, a), (e, b)
        kernel = _kernel(shape)
        flat = int(np.prod(kernel)) if kernel else 1
        tensors: Tensors = {"alpha": np.array(3.0)}
        if whole1:
            tensors["lokr_w1"] = _normal(rng, a, b)
        else:
            tensors |= {"lokr_w1_a": _normal(rng, a, 2), "lokr_w1_b": _normal(rng, 2, b)}
        if whole2:
            tensors["lokr_w2"] = _normal(rng, c, e, *kernel)
        elif tucker:
            tensors |= {
                "lokr_t2": _normal(rng, 2, 2, *kernel),
                "lokr_w2_a": _normal(rng, 2, c),
                "lokr_w2_b": _normal(rng, 2, e),
            }
        else:
            tensors |= {"lokr_w2_a": _normal(rng, c, 2), "lokr_w2_b": _normal(rng, 2, e * flat)}
        return tensors

    return make


def _lokr_delta(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        w2 = t["lokr_w2"]
    elif "lokr_t2" in t:
        w2 = np.einsum("rshw,ro,si->oihw", t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    else:
        w2 = t["lokr_w2_a"] @ t["lokr_w2_b"]
    ranked = any(key.endswith(("_a", "_b")) for key in t)
    kernel = (1,) * (w2.ndim - 2)
    return (1.5 if ranked else 1.0) * np.kron(w1.reshape(*w1.shape, *kernel), w2).reshape(W.shape)


def _peft_lokr(rng: np.random.Generator, shape: Shape) -> Tensors:
    tensors = _lokr(True, True)(rng, shape)
    del tensors["alpha"]
    return tensors


def _peft_lokr_delta(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    return 3.0 / 8 * _lokr_delta(t, W, shape)


# whole differences


def _full(rng: np.random.Generator, shape: Shape) -> Tensors:
    return {"diff": _normal(rng, *shape, size=0.02)}


def _full_delta(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    return _matrix(t["diff"])


# DoRA


def _dora(
    inner: Callable[[np.random.Generator, Shape], Tensors], axis: str, key: str = "dora_scale"
) -> Callable[[np.random.Generator, Shape], Tensors]:
    def make(rng: np.random.Generator, shape: Shape) -> Tensors:
        size = (
            (shape[0], *(1,) * (len(shape) - 1)) if axis == "out" else (1, shape[1], *(1,) * (len(shape) - 2))
        )
        return {**inner(rng, shape), key: np.abs(rng.normal(1.0, 0.2, size))}

    return make


def _dora_change(
    delta: Callable[[Tensors, Matrix, Shape], Matrix], axis: str, eps: float, key: str = "dora_scale"
) -> Callable[[Tensors, Matrix, Shape], Matrix]:
    def change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
        V = (W + delta(t, W, shape)).reshape(shape)
        others = tuple(i for i in range(V.ndim) if i != (0 if axis == "out" else 1))
        norms = np.sqrt(np.sum(V**2, axis=others, keepdims=True)) + eps
        return (V * (t[key].reshape(norms.shape) / norms)).reshape(W.shape)

    return change


def _peft_dora(rng: np.random.Generator, shape: Shape) -> Tensors:
    made = _lora(rng, shape)
    return {
        "lora_A.weight": made["lora_down.weight"],
        "lora_B.weight": made["lora_up.weight"],
        "lora_magnitude_vector": np.abs(rng.normal(1.0, 0.2, shape[0])),
    }


def _peft_lora_delta(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    return 6.0 / np.sqrt(3) * _matrix(t["lora_B.weight"]) @ _matrix(t["lora_A.weight"])


# IA3


def _ia3(on_input: bool) -> Callable[[np.random.Generator, Shape], Tensors]:
    def make(rng: np.random.Generator, shape: Shape) -> Tensors:
        count = shape[1] if on_input else shape[0]
        vector = _normal(rng, count, size=0.1)
        if len(shape) == 4:
            vector = vector.reshape(1, count, 1, 1)
        return {"weight": vector, "on_input": np.array(float(on_input))}

    return make


def _ia3_change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    factors = 1 + t["weight"].reshape(-1)
    V = W.reshape(shape[0], shape[1], -1)
    scaled = V * factors[None, :, None] if t["on_input"] else V * factors[:, None, None]
    return scaled.reshape(W.shape)


def _peft_ia3(axis: str) -> Callable[[np.random.Generator, Shape], Tensors]:
    def make(rng: np.random.Generator, shape: Shape) -> Tensors:
        count = shape[1] if axis == "in" else shape[0]
        vector = rng.normal(1, 0.1, count)
        if len(shape) == 4:
            return {"ia3_l": vector.reshape(1, count, 1, 1)}
        return {"ia3_l": vector.reshape((1, count) if axis == "in" else (count, 1))}

    return make


def _peft_ia3_change(axis: str) -> Callable[[Tensors, Matrix, Shape], Matrix]:
    def change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
        l = t["ia3_l"].reshape(-1)  # noqa: E741 - the paper's letter
        V = W.reshape(shape[0], shape[1], -1)
        return (V * (l[None, :, None] if axis == "in" else l[:, None, None])).reshape(W.shape)

    return change


# OFT, BOFT


def _rotation(Q: Matrix) -> Matrix:
    eye = np.eye(len(Q))
    return (eye + Q) @ np.linalg.inv(eye - Q)


def _oft(
    alpha: float | None = None, rescale: bool = False
) -> Callable[[np.random.Generator, Shape], Tensors]:
    def make(rng: np.random.Generator, shape: Shape) -> Tensors:
        size, count = _split(shape[0], 4)
        tensors: Tensors = {"oft_blocks": _normal(rng, count, size, size)}
        if alpha is not None:
            tensors["alpha"] = np.array(alpha)
        if rescale:
            tensors["rescale"] = rng.normal(1, 0.1, (shape[0], *(1,) * (len(shape) - 1)))
        return tensors

    return make


def _skew(blocks: Matrix, t: Tensors, out: int) -> Matrix:
    Q = blocks - np.swapaxes(blocks, -1, -2)
    limit = float(t.get("alpha", np.array(0.0))) * out
    norm = np.sqrt(np.sum(Q**2))
    return Q * min(1.0, limit / norm) if limit else Q


def _oft_change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    Q = _skew(t["oft_blocks"], t, shape[0])
    turned = block_diag(*[_rotation(block) for block in Q]).T @ W
    return t["rescale"].reshape(-1, 1) * turned if "rescale" in t else turned


def _peft_oft(rng: np.random.Generator, shape: Shape) -> Tensors:
    _, k = _flat(shape)
    size, count = _split(k, 4)
    return {"oft_R.weight": _normal(rng, count, size * (size - 1) // 2, size=0.1)}


def _peft_oft_change(terms: int | None) -> Callable[[Tensors, Matrix, Shape], Matrix]:
    def change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
        vectors = t["oft_R.weight"]
        size = W.shape[1] // len(vectors)
        blocks = []
        for vector in vectors:
            Q = np.zeros((size, size))
            Q[np.triu_indices(size, 1)] = vector
            Q = Q - Q.T
            if terms is None:
                blocks.append(np.linalg.inv(np.eye(size) + Q) @ (np.eye(size) - Q))
            else:
                powers = [np.linalg.matrix_power(Q, n) for n in range(1, terms)]
                blocks.append(np.eye(size) + 2 * sum(powers[:-1]) + powers[-1])
        return W @ block_diag(*blocks).T

    return change


def _boft_sizes(size: int) -> tuple[int, int, int]:
    """Stages, blocks and the size of blocks for a dimension."""
    block = 4 if size % 16 == 0 else size
    return (2 if block != size else 1), size // block, block


def _boft(rescale: bool = False) -> Callable[[np.random.Generator, Shape], Tensors]:
    def make(rng: np.random.Generator, shape: Shape) -> Tensors:
        tensors: Tensors = {
            "oft_blocks": _normal(rng, *_boft_sizes(shape[0]), _boft_sizes(shape[0])[2]),
            "alpha": np.array(0.0),
        }
        if rescale:
            tensors["rescale"] = rng.normal(1, 0.1, (shape[0], *(1,) * (len(shape) - 1)))
        return tensors

    return make


def butterfly(size: int, block: int, stage: int) -> Matrix:
    """The permutation that brings half blocks 2^stage apart together: within groups, evens before odds."""
    half = block // 2
    group = 2 ** (stage + 1) * half
    order = []
    for start in range(0, size, group):
        # LyCORIS reads a group as (2, k): element (g, j) goes to (j, g)
        order += [start + g * (group // 2) + j for j in range(group // 2) for g in (0, 1)]
    P = np.zeros((size, size))
    P[np.arange(size), order] = 1
    return P


def _boft_change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    Q = _skew(t["oft_blocks"], t, shape[0])
    stages, _, block, _ = Q.shape
    V = W
    for stage in range(stages):
        P = butterfly(shape[0], block, stage)
        V = P.T @ block_diag(*[_rotation(b) for b in Q[stage]]) @ P @ V
    return t["rescale"].reshape(-1, 1) * V if "rescale" in t else V


def _peft_boft(rng: np.random.Generator, shape: Shape) -> Tensors:
    d, k = _flat(shape)
    stages, count, block = _boft_sizes(k)
    s = rng.normal(1, 0.1, (d, 1) if len(shape) == 2 else (1, d))
    return {"boft_R": _normal(rng, stages, count, block, block), "boft_s": s}


def half_blocks(size: int, block: int, stage: int) -> Matrix:
    """PEFT's permutation: within groups of 2^stage blocks, the even half blocks before the odd ones."""
    half, group = block // 2, block * 2**stage
    order: list[int] = []
    for start in range(0, size, group):
        halves = [list(range(start + i, start + i + half)) for i in range(0, group, half)]
        order += [index for part in (*halves[0::2], *halves[1::2]) for index in part]
    P = np.zeros((size, size))
    P[np.arange(size), order] = 1
    return P


def _peft_boft_change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    Q = (t["boft_R"] - np.swapaxes(t["boft_R"], -1, -2)) / 2
    stages, _, block, _ = Q.shape
    B = np.eye(W.shape[1])
    for stage in range(stages):
        P = half_blocks(W.shape[1], block, stage) if stages > 1 else np.eye(W.shape[1])
        B = P @ block_diag(*[_rotation(-b) for b in Q[stage]]) @ P.T @ B
    return t["boft_s"].reshape(-1, 1) * (W @ B.T)


# GLoRA, SVDiff


def _glora(rng: np.random.Generator, shape: Shape) -> Tensors:
    ones = (1,) * len(_kernel(shape))
    return {
        "a1.weight": _normal(rng, shape[1], 3, *ones),
        "a2.weight": _normal(rng, 3, shape[1], *ones, size=0.05),
        "b1.weight": _normal(rng, shape[0], 3, *ones),
        "b2.weight": _normal(rng, 3, *shape[1:], size=0.05),
        "alpha": np.array(1.5),
    }


def _glora_change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    A = _matrix(t["a1.weight"]) @ _matrix(t["a2.weight"])
    through = np.tensordot(W.reshape(shape[0], shape[1], -1), A, axes=(1, 0)).swapaxes(1, 2)
    return W + 0.5 * (through.reshape(W.shape) + _matrix(t["b1.weight"]) @ _matrix(t["b2.weight"]))


def _glora_early(rng: np.random.Generator, shape: Shape) -> Tensors:
    t = _glora(rng, shape)
    swapped = {
        "a1.weight": "a2.weight",
        "a2.weight": "a1.weight",
        "b1.weight": "b2.weight",
        "b2.weight": "b1.weight",
    }
    return {swapped.get(key, key): value for key, value in t.items()}


def _glora_early_change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    swapped = {
        "a1.weight": "a2.weight",
        "a2.weight": "a1.weight",
        "b1.weight": "b2.weight",
        "b2.weight": "b1.weight",
    }
    return _glora_change({swapped.get(key, key): value for key, value in t.items()}, W, shape)


def _svdiff(rng: np.random.Generator, shape: Shape) -> Tensors:
    shift = rng.normal(0, 0.3, min(_flat(shape)))
    shift[-1] = -50.0  # the smallest singular value falls below 0 and is cut off there
    return {"delta": shift}


def _svdiff_change(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    # through the smaller Gram matrix, not through an SVD
    wide = W.shape[0] <= W.shape[1]
    values, vectors = np.linalg.eigh(W @ W.T if wide else W.T @ W)
    order = np.argsort(values)[::-1]
    S, U = np.sqrt(values[order]), vectors[:, order]
    factor = (U * (np.maximum(S + t["delta"], 0) / S)) @ U.T
    return factor @ W if wide else W @ factor


def _added(
    delta: Callable[[Tensors, Matrix, Shape], Matrix],
) -> Callable[[Tensors, Matrix, Shape], Matrix]:
    return lambda t, W, shape: W + delta(t, W, shape)


def _is_conv(shape: Shape) -> bool:
    return len(shape) == 4 and shape[2] > 1


def _is_linear(shape: Shape) -> bool:
    return len(shape) == 2


_PEFT_LORA = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_dora": True, "use_rslora": True}
_FF = ["to_out.0", "conv1"]

CASES = [
    Case("lora", "lora", _lora, _added(_lora_delta)),
    Case("lora-tucker", "lora", _lora_tucker, _added(_lora_tucker_delta), suits=_is_conv),
    Case("loha", "loha", _loha, _added(_loha_delta)),
    Case("loha-tucker", "loha", _loha_tucker, _added(_loha_tucker_delta), suits=_is_conv),
    Case("lokr-whole", "lokr", _lokr(True, True), _added(_lokr_delta)),
    Case("lokr-w1-whole", "lokr", _lokr(True, False), _added(_lokr_delta)),
    Case("lokr-w2-whole", "lokr", _lokr(False, True), _added(_lokr_delta)),
    Case("lokr-low-rank", "lokr", _lokr(False, False), _added(_lokr_delta)),
    Case("lokr-large-first", "lokr", _lokr(False, True, small_first=False), _added(_lokr_delta)),
    Case("lokr-tucker", "lokr", _lokr(True, False, tucker=True), _added(_lokr_delta), suits=_is_conv),
    Case(
        "lokr-peft",
        "lokr",
        _peft_lokr,
        _added(_peft_lokr_delta),
        config={"peft_type": "LOKR", "r": 8, "alpha": 3},
    ),
    Case("full", "full", _full, _added(_full_delta)),
    Case("dora-out", "dora", _dora(_lora, "out"), _dora_change(_lora_delta, "out", EPS32), dependent=True),
    Case("dora-in", "dora", _dora(_lora, "in"), _dora_change(_lora_delta, "in", EPS32), dependent=True),
    Case("dora-loha", "dora", _dora(_loha, "out"), _dora_change(_loha_delta, "out", EPS32), dependent=True),
    Case(
        "dora-lokr",
        "dora",
        _dora(_lokr(True, False), "in"),
        _dora_change(_lokr_delta, "in", EPS32),
        dependent=True,
    ),
    Case(
        "dora-peft",
        "dora",
        _peft_dora,
        _dora_change(_peft_lora_delta, "out", 0.0, "lora_magnitude_vector"),
        dependent=True,
        config=_PEFT_LORA,
    ),
    Case("ia3-out", "ia3", _ia3(False), _ia3_change, dependent=True),
    Case("ia3-in", "ia3", _ia3(True), _ia3_change, dependent=True),
    Case(
        "ia3-peft-out",
        "ia3",
        _peft_ia3("out"),
        _peft_ia3_change("out"),
        dependent=True,
        config={"peft_type": "IA3", "feedforward_modules": []},
    ),
    Case(
        "ia3-peft-in",
        "ia3",
        _peft_ia3("in"),
        _peft_ia3_change("in"),
        dependent=True,
        config={"peft_type": "IA3", "feedforward_modules": ".*"},
    ),
    Case("oft", "oft", _oft(), _oft_change, dependent=True),
    Case("oft-constrained", "oft", _oft(0.01, True), _oft_change, dependent=True),
    Case(
        "oft-peft",
        "oft",
        _peft_oft,
        _peft_oft_change(5),
        dependent=True,
        config={"peft_type": "OFT", "use_cayley_neumann": True, "num_cayley_neumann_terms": 5},
    ),
    Case(
        "oft-peft-exact",
        "oft",
        _peft_oft,
        _peft_oft_change(None),
        dependent=True,
        config={"peft_type": "OFT", "use_cayley_neumann": False},
    ),
    Case("boft", "boft", _boft(), _boft_change, dependent=True),
    Case("boft-rescaled", "boft", _boft(True), _boft_change, dependent=True),
    Case("boft-peft", "boft", _peft_boft, _peft_boft_change, dependent=True, config={"peft_type": "BOFT"}),
    Case("glora", "glora", _glora, _glora_change, dependent=True),
    Case("glora-early", "glora", _glora_early, _glora_early_change, dependent=True, suits=_is_linear),
    Case("svdiff", "svdiff", _svdiff, _svdiff_change, dependent=True, linear_strength=False),
]


# DiffuseKronA: attention alone, in the old names of its code


def _krona(a1: int, a2: int) -> Callable[[np.random.Generator, Shape], Tensors]:
    def make(rng: np.random.Generator, shape: Shape) -> Tensors:
        # down is (a2, a1), up is (b1, b2)
        return {
            "down.weight": _normal(rng, a2, a1),
            "up.weight": _normal(rng, shape[0] // a1, shape[1] // a2),
        }

    return make


def krona_by_the_code(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    """``dW[p a1 + q, i b2 + j] = up[p, j] down[i, q]``, index by index."""
    up, down = t["up.weight"], t["down.weight"]
    return np.einsum("pj,iq->pqij", up, down).reshape(W.shape)


def krona_by_the_paper(t: Tensors, W: Matrix, shape: Shape) -> Matrix:
    return np.kron(t["down.weight"].T, t["up.weight"])


@dataclass(frozen=True)
class KronaCase(Case):
    """A DiffuseKronA, whose keys are those of attention processors."""

    metadata: Mapping[str, str] = field(default_factory=dict)

    def key(self, layer: str, ending: str) -> str:
        path, _, name = layer.replace(".to_out.0", ".to_out").rpartition(".")
        return f"{path}.processor.{name}_lora.{ending}"

    def write(
        self, folder: Path, shapes: Mapping[str, Shape], dtype: str = "F32", seed: int = 0
    ) -> tuple[Path, dict[str, Tensors]]:
        path, stored = super().write(folder, shapes, dtype, seed)
        write_safetensors(path, load_file(path), dict(self.metadata))
        return path, stored


KRONA_CASES = [
    *(
        KronaCase(f"krona-{a1}-{a2}", "krona", _krona(a1, a2), _added(krona_by_the_code))
        for a1, a2 in ((64, 4), (32, 16), (64, 8))
    ),
    KronaCase(
        "krona-paper",
        "krona",
        _krona(32, 16),
        _added(krona_by_the_paper),
        metadata={"krona.order": "paper"},
    ),
]
"""The three default shapes of the published code, and the product of the paper."""
