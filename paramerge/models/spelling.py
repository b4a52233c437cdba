"""The models that layers of an adapter can be of, told by their names and sizes alone.

A name is a path in the single file's or in diffusers' naming, with dots or with underscores. What metadata
state of a model is advice; the layers decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from paramerge.kinds import followed
from paramerge.models.names import MODEL, ModuleName, split_kind
from paramerge.models.record import ArchitectureRecord
from paramerge.models.registry import record_of, records

Naming = Literal["single file", "diffusers", "both"]
Size = tuple[int | None, int | None]

NOISE = ("unet", "transformer", "transformer_2", "prior", MODEL)
"""Components that an adapter may say for the model that removes the noise, or for no component at all."""


class Spelled(NamedTuple):
    """A layer's path with dots, and the naming that it is of."""

    path: str
    naming: Naming


@followed
@lru_cache(maxsize=1 << 16)
def spelled(architecture: str, path: str) -> Spelled | None:
    """The path of a layer, norm or bias of an architecture, with its dots; None where it has no such."""
    stem, kind = split_kind(path)
    for key_map in record_of(architecture).key_maps:
        dotted = stem if key_map.layer(stem) or key_map.path(stem) else key_map.dotted(stem)
        if dotted is not None:
            single, diffusers = key_map.layer(dotted) is not None, key_map.path(dotted) is not None
            naming: Naming = "single file" if single else "diffusers"
            return Spelled(dotted + kind, "both" if single and diffusers else naming)
    return None


def other_names(architecture: str, name: ModuleName) -> Iterator[ModuleName]:
    """The names that a layer has in the model's other namings; of a stacked one its parts."""
    stem, kind = split_kind(name.path)
    for key_map in record_of(architecture).key_maps:
        single, layer = key_map.path(stem), key_map.layer(stem)
        found = ([] if single is None else [single]) if layer is None else layer.parts
        yield from (name._replace(path=path + kind) for path in found)


def possible_models(layers: Mapping[ModuleName, Size]) -> tuple[str, ...]:
    """The architectures that have all these layers, by name and as far as sizes tell, in their order.

    Parameters
    ----------
    layers:
        Rows and columns of each, None where the adapter does not say; text encoders are passed over.
    """
    own = {name.path: size for name, size in layers.items() if name.component in NOISE}
    if not own:
        return ()
    return tuple(record.name for record in records() if record.key_maps and _has(record, own))


def _has(record: ArchitectureRecord, layers: Mapping[str, Size]) -> bool:
    for path, (rows, columns) in layers.items():
        found = spelled(record.name, path)
        if found is None:
            return False
        if rows is not None and columns is not None and _other_size(record, found.path, rows, columns):
            return False
    return True


def _other_size(record: ArchitectureRecord, path: str, rows: int, columns: int) -> bool:
    """Whether a layer has other proportions than it has in this architecture."""
    return any(
        path.endswith(f".{end}") and rows != ratio * columns for end, ratio in record.proportions.items()
    )


def likeliest(names: Iterable[str]) -> str | None:
    """The one of several architectures that layers of all are taken to be of; None where it is open.

    An architecture from which the others are made is meant where nothing says otherwise.
    """
    found = tuple(names)
    if len(found) == 1:
        return found[0]
    parents = [name for name in found if {*found} <= {name, *record_of(name).like_it}]
    return parents[0] if parents else None
