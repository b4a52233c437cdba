"""The configuration of a PaRa for PEFT."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from paramerge.algebra.boundary import adjusted_rank
from paramerge.errors import UsageError
from paramerge.peft.types import PaRaType

INITS = ("least-energy", "orthonormal", "gate", "soft")
MERGES = ("joint", "sequential")
METHODS = ("qr", "cholesky")


@dataclass
class PaRaConfig(PeftConfig):
    """A PaRa: in every target layer of weight ``W0`` train B (d, r) and use ``W0 - Q Q^T W0``, Q from B = QR.

    (Equations 2 to 4 of the paper.) Linear layers and convolutions without groups; a convolution's weight is
    the matrix ``(c_out, c_in * h * w)``.
    """

    r: int = field(default=4, metadata={"help": "How many directions each layer loses."})
    target_modules: list[str] | str | None = field(
        default=None,
        metadata={"help": "As PEFT has it: ends of names, or one regular expression for whole names."},
    )
    exclude_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Names to leave out, spelled as target_modules."}
    )
    rank_pattern: dict[str, int] = field(
        default_factory=dict,
        metadata={"help": "Ranks of single layers: whole names, or PEFT's patterns; 0 leaves a layer alone."},
    )
    gamma: float | None = field(
        default=None,
        metadata={"help": "Rank boundary: at most floor(gamma * min(d, k)) directions (equation 8)."},
    )
    gamma_layers: str = field(
        default="all",
        metadata={"help": "Where it holds: 'all' layers, or 'conv' as in the paper's Table 3."},
    )
    init: str = field(
        default="least-energy",
        metadata={
            "help": "How B starts. 'least-energy': the directions that W0 uses least. 'orthonormal': random. "
            "'gate': random, behind a gate that the training opens from 0 to 1. 'soft': a tiny random B "
            "in B (B^T B + eps I)^-1 B^T, hardened to a projector when it is saved."
        },
    )
    merge: str = field(
        default="joint",
        metadata={"help": "Several PaRas on one layer: by their 'joint' span, or 'sequential'."},
    )
    method: str = field(
        default="qr",
        metadata={"help": "Q from B in training: Householder 'qr', or 'cholesky' (CholeskyQR2, else QR)."},
    )
    soft_epsilon: float = field(default=1e-2, metadata={"help": "The eps of the soft projector."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type: Any = PaRaType.PARA
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):
                setattr(self, name, set(value))
        self._check()

    def _check(self) -> None:
        if self.init == "zero":
            raise UsageError(
                "B cannot start at zero, though the paper says so (section 3.1)",
                where="init",
                expected=", ".join(INITS),
                found=self.init,
                hint="QR of a zero B is r arbitrary unit vectors, so r arbitrary channels would go at once, "
                "and its gradient is NaN; 'soft' is the start that changes the model least",
            )
        for name, value, known in (
            ("init", self.init, INITS),
            ("merge", self.merge, MERGES),
            ("method", self.method, METHODS),
            ("gamma_layers", self.gamma_layers, ("all", "conv")),
        ):
            if value not in known:
                raise UsageError("no such choice", where=name, expected=", ".join(known), found=value)
        if isinstance(self.r, bool) or not isinstance(self.r, int) or self.r < 1:
            raise UsageError("the rank is out of range", where="r", expected="1 or more", found=self.r)
        if wrong := {name: rank for name, rank in self.rank_pattern.items() if rank < 0}:
            raise UsageError("a rank is negative", where="rank_pattern", expected="0 or more", found=wrong)
        if self.gamma is not None and not 0 < self.gamma <= 1:
            raise UsageError(
                "gamma is out of range",
                where="gamma",
                expected="a number in (0, 1], or None for no boundary",
                found=self.gamma,
            )
        if not (math.isfinite(self.soft_epsilon) and self.soft_epsilon > 0):
            raise UsageError(
                "the eps of the soft projector is out of range",
                where="soft_epsilon",
                expected="above 0",
                found=self.soft_epsilon,
            )

    def rank_for(self, path: str, shape: Iterable[int]) -> int:
        """The rank of the layer ``path`` with a weight of ``shape`` (d, k) or (d, c, h, w); 0: left alone.

        Raises
        ------
        UsageError
            More directions are asked for than the layer has.
        """
        rows, *rest = shape
        full = min(rows, math.prod(rest))
        rank = self.rank_pattern.get(path)
        if rank is None:
            rank = self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), path), self.r)
        if self.gamma is not None and (self.gamma_layers == "all" or len(rest) == 3):
            rank = adjusted_rank(rank, self.gamma, full)
        if rank > rows:
            raise UsageError(
                "a layer has fewer output features than it should lose",
                where=path,
                expected=f"a rank of at most {rows}",
                found=rank,
                hint="leave the layer out by exclude_modules, give it a rank by rank_pattern, or set gamma",
            )
        return rank
