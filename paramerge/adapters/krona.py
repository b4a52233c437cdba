"""DiffuseKronA: a Kronecker product in one of two orders.

The published code computes ``W[p a1 + q, i b2 + j] += up[p, j] * down[i, q]``: the rows of the paper's ``A
(x) B`` (A = down^T, B = up) shuffled, since its output is laid out with B's index first. Files hold that
code's training, so they have its order unless they, or the user, say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.adapters.changes import Kronecker, ShuffledKronecker
from paramerge.adapters.contract import AdditiveModule, read_finite
from paramerge.adapters.family import Family
from paramerge.adapters.group import Group
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName


@dataclass(frozen=True)
class KronaModule(AdditiveModule):
    """One layer of a DiffuseKronA; it has no alpha.

    Attributes
    ----------
    up:
        B: (b1, b2) with ``a1 b1 = out`` and ``a2 b2 = in``.
    down:
        A transposed: (a2, a1).
    shuffled:
        The order of the published code; False for the paper's ``A (x) B``.
    """

    name: ModuleName
    up: StoredTensor
    down: StoredTensor
    shuffled: bool = True
    family: str = "krona"

    @property
    def rank(self) -> int:
        """``a1``, the first number of the code's ``rank=(a1, a2)``."""
        return self.down.shape[1]

    @property
    def rank_bound(self) -> int:
        """Ranks multiply in a Kronecker product, and reordering rows does not change them."""
        return min(self.up.shape) * min(self.down.shape)

    @property
    def out_features(self) -> int:
        return self.down.shape[1] * self.up.shape[0]

    @property
    def in_features(self) -> int:
        return self.down.shape[0] * self.up.shape[1]

    @property
    def form(self) -> str:
        a2, a1 = self.down.shape
        order = "rows as in the published code" if self.shuffled else "A (x) B as in the paper"
        return f"({a1}, {a2}), {order}"

    def change(self) -> Kronecker:
        """Read both factors."""
        kind = ShuffledKronecker if self.shuffled else Kronecker
        return kind(read_finite(self.down).T, read_finite(self.up), 1.0)


def build_krona(group: Group, rules: Rules) -> KronaModule:
    """The layer of a file whose keys are a LoRA's: :attr:`Rules.krona` names them."""
    up, down = group.need("up"), group.need("down")
    group.check(len(up.shape) == len(down.shape) == 2, "two matrices, down (a2, a1) and up (b1, b2)")
    return KronaModule(group.name, up, down, shuffled=not rules.paper_order)


def _stored(shape: tuple[int, ...], settings: SizeSettings) -> int | None:
    a1, a2 = settings.kronecker
    if len(shape) != 2 or shape[0] % a1 or shape[1] % a2:
        return None
    return a1 * a2 + (shape[0] // a1) * (shape[1] // a2)


FAMILY = Family(key="krona", label="DiffuseKronA", formula="W + down^T (x) up, rows shuffled", stored=_stored)
