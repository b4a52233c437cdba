"""An explanation as JSON-ready data, and its layers in groups."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from paramerge.compare.places import group_of
from paramerge.explain.findings import AdapterFinding, Explanation, LayerFinding


def as_dict(explanation: Explanation) -> dict[str, object]:
    """All of it; numbers that are not known are None."""
    return {
        "file": explanation.file,
        "base": explanation.base,
        "architecture": explanation.architecture,
        "adapters": [_adapter(finding) for finding in explanation.adapters],
        "order": asdict(explanation.order),
        "change": explanation.change,
        "unexplained": explanation.unexplained,
        "unchanged": explanation.unchanged,
        "beside": list(explanation.beside),
        "layers": [_layer(layer) for layer in explanation.layers],
        "left_out": dict(explanation.left_out),
        "recipe": [asdict(claim) for claim in explanation.claims],
        "warnings": list(explanation.warnings),
    }


def _adapter(finding: AdapterFinding) -> dict[str, object]:
    content = {key: _known(value) for key, value in asdict(finding).items()}
    return {**content, "most": _known(finding.most)}


def _layer(layer: LayerFinding) -> dict[str, object]:
    return {
        "layer": str(layer.name),
        "change": layer.change,
        "unexplained": layer.unexplained,
        "strengths": {name: _known(value) for name, value in layer.strengths.items()},
        "bars": {name: _known(value) for name, value in layer.bars.items()},
    }


def _known(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Group:
    """Layers of one kind: their number, the norm of their change, and of what is unexplained in it."""

    title: str
    layers: tuple[LayerFinding, ...]

    @property
    def change(self) -> float:
        """``||W' - W||`` over the group."""
        return math.hypot(*(layer.change for layer in self.layers))

    @property
    def unexplained(self) -> float:
        """The unexplained part of it, 0 to about 1."""
        return math.hypot(*(layer.unexplained for layer in self.layers)) / self.change

    def strength(self, name: str) -> float | None:
        """The mean strength of an adapter here, weighted by accuracy; None where it has no such layers."""
        pairs = [
            (layer.strengths[name], layer.bars[name])
            for layer in self.layers
            if layer.bars.get(name, 0.0) > 0 and math.isfinite(layer.bars[name])
        ]
        total = sum(bar**-2 for _, bar in pairs)
        return sum(value * bar**-2 for value, bar in pairs) / total if pairs else None


def grouped(explanation: Explanation) -> list[Group]:
    """The changed layers by kind, in the order of the model."""
    groups: dict[tuple[int, str], list[LayerFinding]] = {}
    for layer in explanation.layers:
        groups.setdefault(group_of(layer.name), []).append(layer)
    return [Group(title, tuple(layers)) for (_, title), layers in sorted(groups.items())]


def worst(explanation: Explanation, count: int) -> list[LayerFinding]:
    """The layers where most is unexplained, by its norm."""
    left = [layer for layer in explanation.layers if layer.unexplained > 0]
    return sorted(left, key=lambda layer: -layer.unexplained)[:count]


def strength_text(strength: float, bar: float) -> str:
    """``0.6000 ± 0.0012``: two digits of the error bar."""
    if not math.isfinite(bar):
        return "not known"
    digits = min(max(1 - math.floor(math.log10(bar)), 2), 6) if bar > 0 else 6
    error = f"{bar:.{digits}f}" if bar >= 1e-5 else f"{bar:.0e}"
    return f"{strength:.{digits}f} ± {error}"
