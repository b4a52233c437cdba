"""Compare adapters with each other, layer by layer and in total."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from paramerge.adapters import Adapter, LayerModule, LoraModule, ParaModule
from paramerge.adapters.overflow import overflowing
from paramerge.adapters.unread import refuse_unread
from paramerge.checkpoints.layout import Base
from paramerge.compare.changes import ChangePair, compare_changes, compare_with_para
from paramerge.compare.pairs import (
    LoraPair,
    MixedPair,
    ParaPair,
    compare_loras,
    compare_mixed,
    compare_paras,
)
from paramerge.compare.spaces import LayerSpaces, LoraSpace, ParaSpace, read_spaces
from paramerge.errors import ShapeError, UsageError
from paramerge.files.source import check_unchanged
from paramerge.models.names import ModuleName, in_order
from paramerge.resolve.checks import check_architectures, warnings_of
from paramerge.resolve.spellings import in_one_spelling
from paramerge.resolve.weights import BaseWeights
from paramerge.summarised import Summarised

LayerPair = ParaPair | MixedPair | LoraPair | ChangePair

_THREADS = 2
"""NumPy works outside Python's lock: two layers at a time pay off; the matrices are too small for more."""


@dataclass(frozen=True)
class PairComparison:
    """Two of the adapters on all the layers that they have in common.

    Attributes
    ----------
    first, second:
        Their places among the adapters compared; of a PaRa and another family the PaRa is the first.
    kind:
        ``para-para``, ``para-lora`` or ``lora-lora``; ``para-change`` or ``change-change`` where one is of
        another family.
    only_first, only_second:
        The number of layers that one has and the other has not.
    """

    first: int
    second: int
    kind: str
    layers: tuple[LayerPair, ...] = field(repr=False)
    only_first: int
    only_second: int


@dataclass(frozen=True, repr=False)
class Comparison(Summarised):
    """All pairs of the adapters."""

    adapters: tuple[Adapter, ...]
    pairs: tuple[PairComparison, ...]
    base: Base | None
    warnings: tuple[str, ...]

    def summary(self) -> Mapping[str, object]:
        """The facts that it is shown by."""
        return {
            "adapters": ", ".join(adapter.path.name for adapter in self.adapters),
            "pairs": len(self.pairs),
            "base": None if self.base is None else self.base.path,
            "warnings": len(self.warnings) or None,
        }


def compare(
    adapters: Sequence[Adapter],
    base: Base | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    allow_unmatched: bool = False,
) -> Comparison:
    """Compare every two of the opened ``adapters``; with ``base`` also by their effects on its weights.

    The matrices are small: NumPy's own threads only slow it down (the command sets ``OPENBLAS_NUM_THREADS=1``
    before NumPy is imported; do so, too, for many large adapters).

    Raises
    ------
    UsageError
        Fewer than two adapters, or no two with a layer in common.
    ArchitectureError, ShapeError, UnmatchedError
        The adapters are for different models, or not for ``base``; keys that are not understood, without
        ``allow_unmatched``.
    FamilyError
        What an adapter changes depends on the weight, and there is no ``base``.
    NonFiniteError
        NaN or Inf in an adapter.
    InputChangedError
        A file was written to or replaced since it was opened.
    """
    if len(adapters) < 2:
        raise UsageError(
            "there is nothing to compare with", expected="two or more adapters", found=len(adapters)
        )
    for adapter in adapters:
        refuse_unread(adapter, allowed=allow_unmatched)
    adapters = in_one_spelling(adapters)
    check_architectures(adapters)
    weights = None if base is None else BaseWeights(base)
    if weights is not None:
        adapters = [weights.check(adapter) for adapter in adapters]
    names = [n for n in _common_names(adapters) if weights is None or weights.has(n)]
    if not names:
        raise UsageError(
            "these adapters have no layer in common",
            where=", ".join(adapter.path.name for adapter in adapters),
            hint="they touch different layers, so neither order nor way of merging makes a difference",
        )
    found: dict[tuple[int, int], list[LayerPair]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        work = pool.map(lambda name: _compare_layer(name, adapters, weights), names)
        for done, layer in enumerate(work, 1):
            for places, pair in layer:
                found.setdefault(places, []).append(pair)
            progress(done, len(names))
    check_unchanged(*adapters, weights)
    pairs = tuple(_pair(adapters, *places, found.get(places, [])) for places in _ordered_pairs(adapters))
    return Comparison(tuple(adapters), pairs, base, tuple(warnings_of(adapters, gamma=1.0)))


def _common_names(adapters: Sequence[Adapter]) -> list[ModuleName]:
    """Layers that at least two adapters have."""
    counts: dict[ModuleName, int] = {}
    for adapter in adapters:
        for name in adapter.modules:
            counts[name] = counts.get(name, 0) + 1
    return in_order(name for name, count in counts.items() if count > 1)


def _ordered_pairs(adapters: Sequence[Adapter]) -> list[tuple[int, int]]:
    """Every two places once; of a PaRa and another family the PaRa first."""
    return [
        (j, i) if adapters[j].family == "para" != adapters[i].family else (i, j)
        for i, j in combinations(range(len(adapters)), 2)
    ]


def _compare_layer(
    name: ModuleName, adapters: Sequence[Adapter], weights: BaseWeights | None
) -> list[tuple[tuple[int, int], LayerPair]]:
    modules = {i: adapter.modules[name] for i, adapter in enumerate(adapters) if name in adapter.modules}
    W = None if weights is None else weights.matrix(name)
    low_rank = {
        i: module
        for i, module in modules.items()
        if isinstance(module, ParaModule | LoraModule) and adapters[i].family in ("para", "lora")
    }
    with overflowing():
        found = _compare_changes(name, adapters, modules, low_rank, W)
        if len(low_rank) > 1:
            found += _compare_low_rank(name, adapters, low_rank, W)
    return found


def _compare_changes(
    name: ModuleName,
    adapters: Sequence[Adapter],
    modules: Mapping[int, LayerModule],
    low_rank: Collection[int],
    W: np.ndarray | None,
) -> list[tuple[tuple[int, int], LayerPair]]:
    """The pairs in which one is of another family than PaRa and LoRA."""
    found: list[tuple[tuple[int, int], LayerPair]] = []
    for i, j in _ordered_pairs(adapters):
        if i not in modules or j not in modules or (i in low_rank and j in low_rank):
            continue
        first, second = modules[i], modules[j]
        if isinstance(first, ParaModule):
            found.append(((i, j), compare_with_para(name, first, second, W)))
        else:
            found.append(((i, j), compare_changes(name, first, second, W)))
    return found


def _compare_low_rank(
    name: ModuleName,
    adapters: Sequence[Adapter],
    modules: Mapping[int, ParaModule | LoraModule],
    W: np.ndarray | None,
) -> list[tuple[tuple[int, int], LayerPair]]:
    """The pairs of PaRas and LoRAs, in small coordinates."""
    layer = read_spaces(list(modules.values()), outputs=W is not None)
    spaces = dict(zip(modules, layer.spaces, strict=True))
    seen, norm = None, 0.0
    if W is not None and layer.outputs is not None:
        seen, norm = layer.outputs.T @ W, float(np.linalg.norm(W))
    return [
        ((i, j), _compare_spaces(name, layer, spaces[i], spaces[j], seen, norm))
        for i, j in _ordered_pairs(adapters)
        if i in spaces and j in spaces
    ]


def _compare_spaces(
    name: ModuleName,
    layer: LayerSpaces,
    first: ParaSpace | LoraSpace,
    second: ParaSpace | LoraSpace,
    seen: np.ndarray | None,
    norm: float,
) -> LayerPair:
    if isinstance(first, ParaSpace) and isinstance(second, ParaSpace):
        return compare_paras(name, first, second, layer.rows, seen, norm)
    if isinstance(first, ParaSpace) and isinstance(second, LoraSpace):
        return compare_mixed(name, first, second, layer.rows, seen)
    if isinstance(first, LoraSpace) and isinstance(second, LoraSpace) and layer.columns is not None:
        return compare_loras(name, first, second, layer.rows, layer.columns)
    raise ShapeError("the adapters are not in the order that they are compared in", where=name)


def _pair(
    adapters: Sequence[Adapter], first: int, second: int, layers: Sequence[LayerPair]
) -> PairComparison:
    one, other = adapters[first].modules.keys(), adapters[second].modules.keys()
    families = (adapters[first].family, adapters[second].family)
    plain = set(families) <= {"para", "lora"}
    kind = "-".join(families) if plain else "para-change" if families[0] == "para" else "change-change"
    return PairComparison(first, second, kind, tuple(layers), len(one - other), len(other - one))
