"""The one list of architectures: those that come along, those that other packages add, and those of a caller.

A package adds its own under the entry point ``paramerge.architectures``: an :class:`ArchitectureRecord` or
several (``docs/extending.md``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache

from paramerge.errors import PluginError
from paramerge.expressions import compiled
from paramerge.kinds import Registry, followed
from paramerge.models.architectures import BUILT_IN
from paramerge.models.names import COMPONENTS, ModuleName
from paramerge.models.record import ArchitectureRecord, Published


def _check(record: ArchitectureRecord, who: str, known: Sequence[ArchitectureRecord]) -> None:
    """Refuse a record with a field that cannot be."""
    where = f"{who}: architecture {record.name}"
    if record.component not in COMPONENTS:
        raise PluginError(
            "an architecture has a component that does not exist",
            where=where,
            expected=", ".join(COMPONENTS),
            found=record.component,
        )
    if record.family is not None and all(record.family != other.name for other in known):
        raise PluginError(
            "an architecture has a family that does not exist", where=where, found=record.family
        )
    given = (record.shown_by, record.unordered_rows, *(found.pattern for found in record.resembles))
    for pattern in (*record.patterns, *(text for text in given if text is not None)):
        try:
            compiled(pattern)
        except ValueError as error:
            raise PluginError(
                f"a pattern of this architecture is no regular expression ({error})",
                where=where,
                expected="one that RE2 knows: no lookarounds, no backreferences",
                found=pattern,
            ) from error


ARCHITECTURES = Registry(
    ArchitectureRecord,
    "architecture",
    "paramerge.architectures",
    BUILT_IN,
    names=lambda record: (record.name,),
    check=_check,
    added_first=True,  # they know their own models; the last of those that come along are vague
)
records = ARCHITECTURES.all
register, unregister = ARCHITECTURES.register, ARCHITECTURES.unregister


@followed
@lru_cache(maxsize=256)  # names come from files
def record_of(name: str | None) -> ArchitectureRecord:
    """The record of the architecture ``name``; one with the name alone where nothing is known of it.

    A variant that differs in its inputs alone is its family's: ``sdxl-16-channels`` is as ``sdxl``.
    """
    known = {record.name: record for record in records()}
    if name is None or name in known:
        return known[name] if name is not None else ArchitectureRecord("unknown")
    families = [record for record in known.values() if record.inputs and name.startswith(f"{record.name}-")]
    if families:
        return max(families, key=lambda record: len(record.name)).variant(name)
    return ArchitectureRecord(name)


def family_of(name: str) -> str:
    """The architecture whose layers ``name`` has: ``sd15`` of ``sd15-inpainting``.

    Both have the same layers, but for the shape of the first convolution.
    """
    return record_of(name).plain


def published() -> dict[str, Callable[[], Published]]:
    """The functions that make the layouts of published checkpoints, by architecture, where known."""
    return {record.name: record.published for record in records() if record.published is not None}


@followed
@cache
def published_shapes(architecture: str | None) -> Mapping[ModuleName, tuple[int, ...]]:
    """The shape of every layer, norm, bias and embedding of a published architecture; empty for others."""
    make = published().get(architecture or "")
    if make is None:
        return {}
    blueprint, found = make(), {}
    for component in blueprint.components:
        for key, shape in blueprint.shapes(component).items():
            path = key.removesuffix(".weight") if len(shape) > 1 and "embeddings." not in key else key
            found[ModuleName(component, path)] = shape
    return found
