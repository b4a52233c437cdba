"""The report of a merge of adapters: inputs, layers, and the errors over them all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paramerge.merge.request import CombineOptions
from paramerge.models.names import ModuleName
from paramerge.summarised import Summarised


@dataclass(frozen=True)
class MergedInput:
    """An input of the merge, and the number of its layers."""

    path: Path
    family: str
    dialect: str
    scale: float
    layers: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class MergedLayer:
    """The outcome for one layer.

    ``ranks`` are those of the inputs (0: no such layer), ``full_rank`` the joint rank of PaRas or the sum of
    LoRA ranks, ``limit`` the rank boundary, ``rank`` that of the output (0: the layer was left out).
    ``error`` and ``rounding`` are relative to ``norm``, the Frobenius norm of a LoRA's change.
    ``kept_energy`` is the share of the removed energy that a boundary kept.
    """

    name: ModuleName
    ranks: tuple[int, ...]
    full_rank: int
    rank: int
    limit: int | None = None
    dependent: int = 0
    kept_energy: float | None = None
    norm: float | None = None
    error: float = 0.0
    rounding: float = 0.0


@dataclass(frozen=True, repr=False)
class MergeReport(Summarised):
    """The outcome of a merge."""

    family: str
    output: Path
    bytes: int
    architecture: str | None
    inputs: tuple[MergedInput, ...]
    layers: tuple[MergedLayer, ...] = field(repr=False)
    options: CombineOptions
    warnings: tuple[str, ...]

    def summary(self) -> Mapping[str, object]:
        """The facts that it is shown by."""
        return {
            "output": self.output,
            "family": self.family,
            "architecture": self.architecture,
            "inputs": ", ".join(given.path.name for given in self.inputs),
            "layers": len(self.layers),
            "bytes": self.bytes,
            "warnings": len(self.warnings) or None,
        }

    @property
    def left_out(self) -> list[ModuleName]:
        """Layers without anything left to write."""
        return [layer.name for layer in self.layers if layer.rank == 0]

    @property
    def error(self) -> float:
        """The error of truncation over all layers together, relative (Frobenius)."""
        return _overall(self.layers, [layer.error for layer in self.layers])

    @property
    def rounding(self) -> float:
        """The error of rounding to the output's dtype over all layers together, relative (Frobenius)."""
        return _overall(self.layers, [layer.rounding for layer in self.layers])


def _overall(layers: Sequence[MergedLayer], errors: Sequence[float]) -> float:
    norms = [layer.norm or 0.0 for layer in layers]
    total = math.hypot(*norms)
    return (
        math.hypot(*(error * norm for error, norm in zip(errors, norms, strict=True))) / total
        if total
        else 0.0
    )
