"""DiffuseKronA: a Kronecker product in one of two orders.

The published code computes ``W[p a1 + q, i b2 + j] += up[p, j] * down[i, q]``: the rows of the paper's
``A (x) B`` (A = down^T, B = up) shuffled, since its output is laid out with B's index first. Files hold what
that code trained, so that is what they mean unless they, or the user, say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.adapters.changes import Kronecker, ShuffledKronecker
from paramerge.adapters.contract import AdditiveModule, read_finite
from paramerge.files.tensors import StoredTensor
from paramerge.models.names import ModuleName

__all__ = ["KronaModule"]


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

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        return (self.up, self.down)

    def change(self) -> Kronecker:
        """Read both factors."""
        kind = ShuffledKronecker if self.shuffled else Kronecker
        return kind(read_finite(self.down).T, read_finite(self.up), 1.0)
