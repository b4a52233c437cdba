"""BOFT: several rotations by blocks, each after a butterfly's reordering.

LyCORIS turns outputs (``W' = rescale o B_m ... B_1 W``), PEFT turns inputs (``W' = s o W (B_m ... B_1)^T``).
Stage i mixes rows that are 2^i half blocks apart; the two order them differently.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from paramerge.adapters.contract import DependentModule, read_finite
from paramerge.adapters.family import Family, Form
from paramerge.adapters.group import Group
from paramerge.adapters.oft import build_rotation, cayley, constrained_skew
from paramerge.adapters.parts import NAMES_ALONE
from paramerge.adapters.peft_config import TunerSettings
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings, butterfly_blocks
from paramerge.adapters.tuner import Tuner, refuse_biases
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class BoftModule(DependentModule):
    """BOFT of LyCORIS.

    Attributes
    ----------
    blocks:
        (m, n, b, b) with ``n b = out`` and b even; ``Q = blocks - blocks^T``.
    rescale:
        One number for each row, or None.
    alpha:
        The constraint of the file: ``||Q||`` over all stages is at most ``alpha * out``; None or 0 for none.
    """

    name: ModuleName
    blocks: StoredTensor
    rescale: StoredTensor | None = None
    alpha: float | None = None
    alpha_key: str | None = None
    family: str = "boft"
    copies: ClassVar[int] = 6

    @property
    def rank(self) -> int:
        """The size b of a block."""
        return self.blocks.shape[-1]

    @property
    def out_features(self) -> int:
        return self.blocks.shape[1] * self.blocks.shape[2]

    @property
    def form(self) -> str:
        stages, count = self.blocks.shape[:2]
        return f"{stages} stages of {count} blocks on outputs" + (", rescaled" if self.rescale else "")

    def transform(self, W: np.ndarray) -> np.ndarray:
        """The stages one after the other, then the rescaling."""
        R = cayley(constrained_skew(read_finite(self.blocks), self.alpha, self.out_features))
        turned = _butterfly(W, R, interleaved=True)
        if self.rescale is None:
            return turned
        return np.asarray(read_finite(self.rescale).reshape(-1, 1) * turned)


@dataclass(frozen=True)
class PeftBoftModule(DependentModule):
    """BOFT of PEFT.

    Attributes
    ----------
    blocks:
        (m, n, b, b) with ``n b = in`` (a convolution's kernel among the inputs);
        ``Q = (blocks - blocks^T) / 2``, turned the other way than LyCORIS does.
    s:
        One number for each row: (out, 1), or (1, out) for a convolution.
    """

    name: ModuleName
    blocks: StoredTensor
    s: StoredTensor
    family: str = "boft"
    copies: ClassVar[int] = 6

    @property
    def rank(self) -> int:
        """The size b of a block."""
        return self.blocks.shape[-1]

    @property
    def out_features(self) -> int:
        return math.prod(self.s.shape)

    @property
    def in_features(self) -> int:
        return self.blocks.shape[1] * self.blocks.shape[2]

    @property
    def form(self) -> str:
        stages, count = self.blocks.shape[:2]
        return f"{stages} stages of {count} blocks on inputs"

    def transform(self, W: np.ndarray) -> np.ndarray:
        """The stages on the columns, then the scaling of the rows."""
        R = cayley(-constrained_skew(read_finite(self.blocks), None, self.in_features) / 2)
        return np.asarray(read_finite(self.s).reshape(-1, 1) * _butterfly(W.T, R, interleaved=False).T)


def _butterfly(X: np.ndarray, R: np.ndarray, interleaved: bool) -> np.ndarray:
    """Stages R (m, n, b, b) on the rows of X (n b, k).

    At stage i a block's two halves are b / 2 rows each, 2^i b / 2 rows apart: single rows in turn
    (``interleaved``, LyCORIS), or both halves in one piece (PEFT).
    """
    stages, count, size, _ = R.shape
    if stages == 1 and not interleaved:  # nothing is reordered, and blocks of odd size have no halves
        return np.asarray(R[0] @ X.reshape(count, size, -1)).reshape(X.shape)
    columns = X.shape[1]
    unit = 1 if interleaved else size // 2
    for stage in range(stages):
        apart = 2**stage * (size // 2) // unit
        blocks = X.reshape(-1, 2, apart, unit, columns).transpose(0, 2, 1, 3, 4)
        mixed = R[stage] @ blocks.reshape(count, size, columns)
        X = mixed.reshape(-1, apart, 2, unit, columns).transpose(0, 2, 1, 3, 4).reshape(-1, columns)
    return X


def _build(group: Group, rules: Rules) -> Iterator[BoftModule]:
    module = build_rotation(group, BoftModule)
    group.check(module.rank % 2 == 0, "blocks with two halves")
    _check_butterfly(group, module.blocks)
    yield module


def _build_peft(group: Group, rules: Rules) -> Iterator[PeftBoftModule]:
    blocks, s = group.need("boft_R"), group.need("boft_s")
    square = len(blocks.shape) == 4 and blocks.shape[-1] == blocks.shape[-2]
    group.check(square and max(s.shape) == math.prod(s.shape), "blocks (m, n, b, b) and s (out, 1)")
    _check_butterfly(group, blocks)
    rules.tuner(group, "BOFT", TunerSettings)
    yield PeftBoftModule(group.name, blocks, s)


def _check_butterfly(group: Group, blocks: StoredTensor) -> None:
    stages, count, size, _ = blocks.shape
    fits = stages == 1 or (size % 2 == 0 and (count * size) % (2**stages * (size // 2)) == 0)
    group.check(fits, "stages that a butterfly of this size has")


def _read_tuner(config: Mapping[str, object], where: str) -> TunerSettings:
    refuse_biases(config, where)
    return TunerSettings("BOFT", where)


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int | None:
    blocks = butterfly_blocks(shape[0], settings.rank)
    if blocks is None:
        return None
    size, count = blocks
    return (1 + (count - 1).bit_count()) * count * size * size


FAMILY = Family(
    key="boft",
    label="BOFT",
    formula="butterfly stages of OFT on rows; PEFT: on columns",
    forms=(
        Form(
            "BOFT",
            {"oft_blocks": "oft_blocks", "rescale": "rescale"},
            _build,
            {"oft_blocks": range(4, 5)},
        ),
        Form(
            "BOFT of PEFT",
            {"boft_R.<name>": "boft_R", "boft_s.<name>": "boft_s"},
            _build_peft,
            {"boft_R": range(4, 5)},
        ),
    ),
    stored=_stored,
    counted="block sizes",
    tuner=Tuner("BOFT", _read_tuner),
    parts=NAMES_ALONE,
)
