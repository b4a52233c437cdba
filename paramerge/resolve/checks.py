"""Checks, before any work, that adapters belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

from paramerge.adapters import Adapter, LoraModule
from paramerge.adapters.unread import unread_warnings
from paramerge.errors import ArchitectureError, ShapeError
from paramerge.wording import Worded, option

_SHA256_LENGTH = 64


def check_architectures(adapters: Sequence[Adapter]) -> None:
    """Refuse adapters for different architectures, and PaRas whose layers have different sizes.

    Raises
    ------
    ArchitectureError, ShapeError
    """
    known = [adapter for adapter in adapters if adapter.architecture is not None]
    for adapter in known[1:]:
        if adapter.architecture != known[0].architecture:
            raise ArchitectureError(
                "these adapters were made for different architectures",
                where=adapter.path,
                expected=f"{known[0].architecture}, as {known[0].path.name}",
                found=adapter.architecture,
                hint="only adapters of one architecture have layers in common",
            )
    for first, second in combinations(adapters, 2):
        for name in first.modules.keys() & second.modules.keys():
            one, other = first.modules[name], second.modules[name]
            sizes: list[tuple[int | None, ...]] = [(one.out_features,), (other.out_features,)]
            if isinstance(one, LoraModule) and isinstance(other, LoraModule):
                sizes = [(each.out_features, each.in_features) for each in (one, other)]
            if sizes[0] != sizes[1]:
                raise ShapeError(
                    "two adapters have different sizes for this layer",
                    where=f"{second.path}: {name}",
                    expected=f"{' x '.join(map(str, sizes[0]))}, as {first.path.name}",
                    found=" x ".join(map(str, sizes[1])),
                    hint="they were made for different models",
                )


def common_architecture(adapters: Iterable[Adapter]) -> str | None:
    """The architecture of adapters that passed :func:`check_architectures`; None if none states it."""
    return next((adapter.architecture for adapter in adapters if adapter.architecture is not None), None)


def common_bases(adapters: Sequence[Adapter]) -> tuple[str, ...]:
    """SHA-256 of the base that all adapters which name one agree on; empty where they do not."""
    named = [hashes for adapter in adapters if (hashes := _long(adapter))]
    if not named or _different_bases(adapters):
        return ()
    return tuple(text for text in named[0] if all(text in hashes for hashes in named))


def warnings_of(adapters: Sequence[Adapter], gamma: float | None) -> list[str]:
    """Warnings: other bases, keys that are left out, boundaries that a merge exceeds."""
    warnings = []
    for first, second in _different_bases(adapters):
        warnings.append(
            f"{first.path.name} and {second.path.name} were made for different bases "
            f"({first.base_hashes[0][:12]} and {second.base_hashes[0][:12]}): the merge may not suit either"
        )
    for adapter in adapters:
        warnings += unread_warnings(adapter)
    gammas = [
        adapter.metadata["paramerge.gamma"] for adapter in adapters if "paramerge.gamma" in adapter.metadata
    ]
    several = sum(adapter.family == "para" for adapter in adapters) > 1
    if gammas and gamma is None and several:
        text = (
            f"an input was made within the rank boundary gamma {min(gammas, key=float)}; the joint rank is "
            f"not held within it unless you add {option('gamma')}"
        )
        warnings.append(Worded(text))
    return warnings


def _different_bases(adapters: Sequence[Adapter]) -> list[tuple[Adapter, Adapter]]:
    """Pairs that name bases and have none in common, hashes of one kind compared with each other."""
    found = []
    for first, second in combinations(adapters, 2):
        kinds = [
            (
                {h for h in first.base_hashes if long == (len(h) == _SHA256_LENGTH)},
                {h for h in second.base_hashes if long == (len(h) == _SHA256_LENGTH)},
            )
            for long in (True, False)
        ]
        comparable = [(one, other) for one, other in kinds if one and other]
        if comparable and not any(one & other for one, other in comparable):
            found.append((first, second))
    return found


def _long(adapter: Adapter) -> tuple[str, ...]:
    return tuple(text for text in adapter.base_hashes if len(text) == _SHA256_LENGTH)
