"""Diag-OFT: blocks of a weight's rows, or of its columns, rotated by Cayley transforms.

LyCORIS and kohya rotate outputs, ``W' = rescale o blockdiag(R)^T W``; PEFT rotates inputs,
``W' = W blockdiag(R)^T``, a convolution's kernel among the columns. Both make R of a skew-symmetric Q:
``(I + Q)(I - Q)^-1``, or in PEFT by default the first terms of its series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from paramerge.adapters.contract import DependentModule, read_finite
from paramerge.adapters.family import MATRIX, Family, Form
from paramerge.adapters.group import Group
from paramerge.adapters.parts import NAMES_ALONE
from paramerge.adapters.peft_config import TunerSettings, bad_option, flag
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings, factor_pair
from paramerge.adapters.tuner import Tuner, refuse_biases
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import MODEL, ModuleName


@dataclass(frozen=True)
class OftModule(DependentModule):
    """Diag-OFT of LyCORIS and kohya: rotated outputs.

    Attributes
    ----------
    blocks:
        (n, b, b) with ``n b = out``; ``Q = blocks - blocks^T``.
    rescale:
        One number for each row, or None.
    alpha:
        The constraint of the file: ``||Q||`` over all blocks is at most ``alpha * out``; None or 0 for none.
    """

    name: ModuleName
    blocks: StoredTensor
    rescale: StoredTensor | None = None
    alpha: float | None = None
    alpha_key: str | None = None
    family: str = "oft"

    @property
    def rank(self) -> int:
        """The size b of a block."""
        return self.blocks.shape[-1]

    @property
    def out_features(self) -> int:
        return self.blocks.shape[0] * self.blocks.shape[1]

    @property
    def form(self) -> str:
        blocks = f"{self.blocks.shape[0]} blocks on outputs"
        return blocks if self.rescale is None else f"{blocks}, rescaled"

    def transform(self, W: np.ndarray) -> np.ndarray:
        """Each block of rows through its rotation transposed, then rescaled."""
        R = cayley(constrained_skew(read_finite(self.blocks), self.alpha, self.out_features))
        count, size, _ = R.shape
        turned = (R.transpose(0, 2, 1) @ W.reshape(count, size, -1)).reshape(W.shape)
        if self.rescale is None:
            return np.asarray(turned)
        return np.asarray(read_finite(self.rescale).reshape(-1, 1) * turned)


@dataclass(frozen=True)
class PeftOftModule(DependentModule):
    """OFT of PEFT: rotated inputs.

    Attributes
    ----------
    weight:
        (n, b (b - 1) / 2): the upper triangles of the skew-symmetric blocks; n is 1 for a shared block.
    shared:
        Whether one block rotates all groups of b inputs.
    terms:
        Of the Cayley transform's series (``num_cayley_neumann_terms``); None for the exact inverse, which
        turns the other way.
    """

    name: ModuleName
    weight: StoredTensor
    shared: bool = False
    terms: int | None = 5
    family: str = "oft"

    @property
    def rank(self) -> int:
        """The size b of a block."""
        return block_size(self.weight.shape[1])

    @property
    def in_features(self) -> int | None:
        return None if self.shared else self.weight.shape[0] * self.rank

    @property
    def form(self) -> str:
        blocks = "one shared block" if self.shared else f"{self.weight.shape[0]} blocks"
        return f"{blocks} on inputs, {'exact' if self.terms is None else f'{self.terms} terms of the series'}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """The inputs are a whole number of blocks."""
        return super().fits(shape) and math.prod(shape[1:]) % self.rank == 0

    def transform(self, W: np.ndarray) -> np.ndarray:
        """``W R^T``, block by block of columns."""
        vectors, size = read_finite(self.weight), self.rank
        Q = np.zeros((len(vectors), size, size))
        Q[:, *np.triu_indices(size, 1)] = vectors
        Q -= Q.transpose(0, 2, 1)
        R = cayley(-Q) if self.terms is None else _cayley_series(Q, self.terms)
        columns = W.reshape(len(W), -1, size).transpose(1, 0, 2)
        turned: np.ndarray = (columns @ R.transpose(0, 2, 1)).transpose(1, 0, 2)
        return np.asarray(turned.reshape(W.shape))


def constrained_skew(blocks: np.ndarray, constraint: float | None, out: int) -> np.ndarray:
    """``Q = B - B^T`` of blocks (..., b, b), shortened as a whole to a norm of ``constraint * out``."""
    Q = blocks - np.swapaxes(blocks, -1, -2)
    limit = (constraint or 0.0) * out
    norm = float(np.linalg.norm(Q))
    return np.asarray(Q * (limit / norm)) if 0 < limit < norm else Q


def cayley(Q: np.ndarray) -> np.ndarray:
    """``(I + Q)(I - Q)^-1`` of skew-symmetric blocks (..., b, b): rotations; NaN where Q swallows I."""
    eye = np.eye(Q.shape[-1])
    try:
        return np.asarray(np.linalg.solve(eye - Q, eye + Q))  # the two factors commute
    except np.linalg.LinAlgError:
        return np.full(Q.shape, np.nan)


def _cayley_series(Q: np.ndarray, terms: int) -> np.ndarray:
    """PEFT's sum for the Cayley transform: ``I + 2Q + 2Q^2 + ... + Q^(n-1)``, its last term once only."""
    R = np.eye(Q.shape[-1]) + (2 * Q if terms > 1 else 0)
    if terms > 2:
        power = Q @ Q
        R = R + 2 * power
        for _ in range(3, terms - 1):
            power = power @ Q
            R = R + 2 * power
        R = R + power @ Q
    return np.asarray(np.broadcast_to(R, Q.shape))


def block_size(elements: int) -> int:
    """b with ``b (b - 1) / 2 = elements``."""
    return (1 + math.isqrt(1 + 8 * elements)) // 2


class _Rotation(Protocol):
    @property
    def out_features(self) -> int: ...


_R = TypeVar("_R", bound=_Rotation)


def build_rotation(group: Group, kind: Callable[..., _R]) -> _R:
    """The module ``kind`` of LyCORIS' ``oft_blocks``: Diag-OFT's, or a butterfly's."""
    blocks, rescale = group.need("oft_blocks"), group.take("rescale")
    constraint = group.number("alpha", positive=True)
    square = blocks.shape[-1] == blocks.shape[-2]
    group.check(square, "blocks (n, b, b), or (m, n, b, b) for BOFT")
    module = kind(group.name, blocks, rescale, constraint, group.key_of("alpha"))
    if rescale is not None:
        count = math.prod(rescale.shape)
        group.check(count == module.out_features == rescale.shape[0], "as many numbers as rows to rescale")
    return module


def _build(group: Group, rules: Rules) -> Iterator[OftModule]:
    yield build_rotation(group, OftModule)


def _build_peft(group: Group, rules: Rules) -> Iterator[PeftOftModule]:
    weight = group.need("oft_R")
    size = block_size(weight.shape[1]) if len(weight.shape) == 2 else 0
    group.check(size > 1 and size * (size - 1) // 2 == weight.shape[1], "vectors (n, b (b - 1) / 2)")
    if rules.configuration is None and group.name.component != MODEL:
        # OneTrainer saves PEFT's tensors under names of its own and without a configuration: PEFT's series,
        # and one block for all where there is but one
        yield PeftOftModule(group.name, weight, weight.shape[0] == 1)
        return
    settings = rules.tuner(group, "OFT", OftSettings)
    yield PeftOftModule(group.name, weight, settings.shared_block, settings.series_terms)


_MAX_TERMS = 100
"""Terms of a series; PEFT's default is 5, and each is a product of matrices for every layer."""


@dataclass(frozen=True)
class OftSettings(TunerSettings):
    """PEFT's configuration: whether one block turns all groups of inputs; the series' terms, or None."""

    shared_block: bool = False
    series_terms: int | None = None


def _read_tuner(config: Mapping[str, object], where: str) -> OftSettings:
    refuse_biases(config, where)
    option = "num_cayley_neumann_terms"
    terms = config.get(option, 5)
    series = flag(config, "use_cayley_neumann", where, default=True)
    if series and (type(terms) is not int or not 0 < terms <= _MAX_TERMS):
        raise bad_option(option, terms, where, f"a whole number from 1 to {_MAX_TERMS}")
    return OftSettings(
        "OFT",
        where,
        shared_block=flag(config, "block_share", where),
        series_terms=terms if series and isinstance(terms, int) else None,
    )


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int:
    size, count = factor_pair(shape[0], settings.rank)
    return count * size * size


FAMILY = Family(
    key="oft",
    label="OFT",
    formula="rescale o blockdiag(R)^T W; PEFT: W blockdiag(R)^T",
    forms=(
        Form(
            "OFT",
            {"oft_blocks": "oft_blocks", "rescale": "rescale"},
            _build,
            {"oft_blocks": range(3, 4)},
        ),
        Form("OFT of PEFT", {"oft_R.<name>.weight": "oft_R"}, _build_peft, {"oft_R": MATRIX}),
    ),
    stored=_stored,
    counted="block sizes",
    tuner=Tuner("OFT", _read_tuner),
    parts=NAMES_ALONE,
)
