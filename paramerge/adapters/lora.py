"""LoRA and LoCon: a layer's change as a product of two thin matrices, ``scale * B A``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from paramerge.adapters.changes import Product, product_loss
from paramerge.adapters.contract import AdditiveModule, LayerModule, in_order, read_stored
from paramerge.adapters.family import CORE, FACTOR, VECTOR, Family, Form
from paramerge.adapters.folding import folded
from paramerge.adapters.full import DifferenceModule
from paramerge.adapters.group import Group
from paramerge.adapters.krona import build_krona
from paramerge.adapters.parts import KOHYA, Part
from paramerge.adapters.peft_config import read_lora
from paramerge.adapters.rounding import rounded
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings, sides
from paramerge.adapters.tuner import Tuner
from paramerge.errors import ShapeError
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class LoraModule(AdditiveModule):
    """One layer of a LoRA, still in its file: ``W + scale * B A`` with W flattened to (out, in * kh * kw).

    Attributes
    ----------
    up:
        B: (out, r), or (out, r, 1, 1) for a convolution.
    down:
        A: (r, in), or (r, in, kh, kw) for a convolution; (r, in, 1, 1) where there is a ``mid``.
    mid:
        The core of the Tucker form (r, r, kh, kw) that LyCORIS calls ``lora_mid``, or None.
    alpha:
        The file's alpha; None stands for alpha = rank, that is scale 1.
    rslora:
        Rank-stabilised scaling: alpha / sqrt(r) and not alpha / r.
    alpha_key:
        The key that the alpha was read from, where it is a tensor of the file.
    rows:
        The runs ``(start, stop)`` of rows of B that are this layer's, in its order; None for all. A LoRA on
        stacked projections is several layers of this kind, which share their tensors.
    """

    name: ModuleName
    up: StoredTensor
    down: StoredTensor
    mid: StoredTensor | None = None
    alpha: float | None = None
    rslora: bool = False
    alpha_key: str | None = None
    family: str = "lora"
    rows: tuple[tuple[int, int], ...] | None = None

    @property
    def rank(self) -> int:
        """The rank r, from the shapes."""
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """The factor on B A: alpha / r, or alpha / sqrt(r) with :attr:`rslora`."""
        alpha = float(self.rank) if self.alpha is None else self.alpha
        return alpha / math.sqrt(self.rank) if self.rslora else alpha / self.rank

    @property
    def out_features(self) -> int:
        """Rows of the weight that it changes."""
        if self.rows is None:
            return self.up.shape[0]
        return sum(stop - start for start, stop in self.rows)

    @property
    def in_features(self) -> int:
        """Columns of the weight that it changes, a convolution flattened: in * kh * kw."""
        return self.down.shape[1] * math.prod(self.kernel)

    @property
    def kernel(self) -> tuple[int, ...]:
        """``(kh, kw)`` of the convolution that it changes; ``()`` for a linear layer."""
        return (self.mid or self.down).shape[2:]

    @property
    def rank_bound(self) -> int:
        """The rank, where the weight has as many rows and columns."""
        return min(self.rank, self.out_features, self.in_features)

    @property
    def form(self) -> str:
        return "Tucker" if self.mid is not None else ""

    @property
    def is_cut(self) -> bool:
        return self.rows is not None

    def part(self, name: ModuleName, runs: tuple[tuple[int, int], ...]) -> LoraModule:
        """The same factors, these rows of B."""
        return replace(self, name=name, rows=runs)

    def change(self) -> Product:
        """Read the factors in float64.

        Raises
        ------
        NonFiniteError
            NaN or Inf in one.
        """
        B, A = (factor.astype(np.float64) for factor in self.factors())
        return Product(B, A, self.scale)

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Read B (d, r) and A (r, k); the scale is *not* in them.

        float32 holding exactly the stored values (float64 where they are stored so). With a ``mid`` both
        are float64, and A is ``mid`` and ``down`` contracted in float64.

        Raises
        ------
        NonFiniteError
            NaN or Inf in one.
        FileFormatError
            The file changed while it was open.
        """
        B = in_order(_read_exact(self.up).reshape(self.up.shape[0], self.rank), self.rows)
        A = _read_exact(self.down).reshape(self.rank, -1)
        if self.mid is None:
            common = np.result_type(B, A)
            return B.astype(common, copy=False), A.astype(common, copy=False)
        core = _read_exact(self.mid).astype(np.float64)
        contracted = np.einsum("ijhw,jk->ikhw", core, A.astype(np.float64))
        return B.astype(np.float64), contracted.reshape(self.rank, -1)


def _read_exact(tensor: StoredTensor) -> np.ndarray:
    """The tensor as float32, or as float64 if it is stored so: no value changes."""
    return read_stored(tensor).astype(np.float64 if tensor.dtype == "F64" else np.float32)


def _build(group: Group, rules: Rules) -> Iterator[LayerModule]:
    if group.key_of("up") in rules.krona:
        yield build_krona(group, rules)
        return
    up, down, mid = group.need("up"), group.need("down"), group.take("mid")
    check_factors(up, down, mid)
    alpha, rslora = rules.scaling(group.name, down.shape[0])
    stated = group.number("alpha")
    alpha = alpha if stated is None else stated
    lora = LoraModule(group.name, up, down, mid, alpha, rslora, group.key_of("alpha"))
    yield lora
    if bias := group.take("up_bias"):  # trained beside the factors, and scaled as they are
        yield DifferenceModule(group.bias, bias, factor=lora.scale)


def check_factors(up: StoredTensor, down: StoredTensor, mid: StoredTensor | None) -> None:
    """Refuse factors of a LoRA that do not fit together.

    Raises
    ------
    ShapeError
        Ranks that differ, a kernel where it cannot be.
    """
    tensors = [tensor for tensor in (up, down, mid) if tensor is not None]
    where = f"{up.path}: {' and '.join(tensor.key for tensor in tensors)}"
    found = ", ".join(str(list(tensor.shape)) for tensor in tensors)
    if odd := [t for t in tensors if len(t.shape) in (3, 5) and len(t.shape) != len(down.shape)]:
        raise ShapeError(
            "a factor of this adapter is neither a matrix nor a convolution",
            where=f"{up.path}: {odd[0].key}",
            expected="2 to 5 dimensions",
            found=list(odd[0].shape),
        )
    rank = down.shape[0]
    if up.shape[1] != rank or (mid is not None and mid.shape[:2] != (rank, rank)):
        raise ShapeError(
            "the ranks of up and down do not agree",
            where=where,
            expected="up (out, r), down (r, in)" + (", mid (r, r, kh, kw)" if mid else ""),
            found=found,
        )
    if set(up.shape[2:]) - {1} or (mid is not None and (len(mid.shape) != 4 or set(down.shape[2:]) - {1})):
        raise ShapeError(
            "a factor has a kernel where it can have none",
            where=where,
            expected="up (out, r, 1, 1)" + (" and down (r, in, 1, 1) around mid" if mid else ""),
            found=found,
        )


_FOLDED = "alphas folded into the factors: the format has no place for them"
_TUCKER = "Tucker cores contracted with their down factors: the format has no place for them"
_RSLORA = "rank-stabilised scales written as plain alphas"


def _part(module: LayerModule, to: str, dtype: str | None) -> Part | None:
    if not isinstance(module, LoraModule):
        return None
    alpha = float(module.rank) if module.alpha is None else module.alpha
    notes = []
    if module.rslora:
        alpha = module.scale * module.rank
        notes.append(_RSLORA)
    contracted = module.mid is not None and to != KOHYA
    into_factors = to == "diffusers" and alpha != module.rank
    if not contracted and not into_factors and module.rows is None:
        tensors = {"up": read_stored(module.up), "down": read_stored(module.down)}
        if module.mid is not None:
            tensors["mid"] = read_stored(module.mid)
        return Part(module.name, "lora", tensors, alpha, module.rank, notes=tuple(notes))
    up, down = (factor.astype(np.float64) for factor in module.factors())
    notes += [_TUCKER] * contracted + [_FOLDED] * into_factors
    stored_as = dtype or module.dtype
    if into_factors:
        up, down = folded(up, down, alpha / module.rank, stored_as)
        alpha = float(module.rank)
    new_up, new_down = (rounded(module.name, factor, stored_as) for factor in (up, down))
    tensors = {"up": new_up, "down": new_down}
    if module.kernel:
        tensors = {
            "up": new_up.reshape(*new_up.shape, *(1,) * len(module.kernel)),
            "down": new_down.reshape(len(new_down), -1, *module.kernel),
        }
    lost = product_loss(up, down, new_up, new_down)
    return Part(module.name, "lora", tensors, alpha, module.rank, lost, notes=tuple(notes))


def stored_of_lora(shape: tuple[int, ...], settings: SizeSettings) -> int:
    """The numbers of both factors."""
    return settings.rank * sum(sides(shape))


def lora_options(parts: Sequence[Part]) -> dict[str, object]:
    """PEFT's options of a LoRA, or of the DoRA around it."""
    return {"bias": "none", "use_dora": parts[0].family == "dora", "use_rslora": False}


FORM = Form(
    "LoRA",
    {
        "lora_B.<name>.bias": "up_bias",
        "lora_up.weight": "up",
        "lora_down.weight": "down",
        "lora_mid.weight": "mid",
        "lora.up.weight": "up",
        "lora.down.weight": "down",
        "lora_linear_layer.up.weight": "up",
        "lora_linear_layer.down.weight": "down",
        "lora_B.<name>.weight": "up",
        "lora_A.<name>.weight": "down",
    },
    _build,
    {"up": FACTOR, "down": FACTOR, "mid": CORE, "up_bias": VECTOR},
    vague=frozenset({"up_bias"}),
)
FAMILY = Family(
    key="lora",
    label="LoRA",
    formula="W + s B A, a Tucker core within A",
    forms=(FORM,),
    stored=stored_of_lora,
    ranked=True,
    parts=dict.fromkeys((KOHYA, "diffusers", "peft"), _part),
    tuner=Tuner("LORA", read_lora, lora_options, "lora_alpha"),
)
