"""The names of a format's reader for the layers of a model that is known: the single file's, or diffusers'.

Layers that one naming stacks and the other has one by one are divided, or joined: a LoRA's factors then stand
side by side, so that the change is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from paramerge.adapters.parts import Part
from paramerge.errors import FamilyError
from paramerge.formats.dialect import Dialect
from paramerge.models.key_map import KeyMap, Layer
from paramerge.models.names import ModuleName
from paramerge.models.record import ArchitectureRecord
from paramerge.models.spelling import NOISE

_JOINED = "stacked with the other projections of its layer, as the format's readers have it"


def has_single_names(dialect: Dialect, record: ArchitectureRecord) -> bool:
    """Whether readers of the dialect have the single file's names for this model."""
    return dialect.original and not (dialect.underscored and record.kohya.diffusers)


def joined(parts: Iterable[Part], record: ArchitectureRecord) -> Iterator[Part]:
    """The parts under the single file's names; those that it stacks are joined.

    Raises
    ------
    FamilyError
        Parts of a stack that are no LoRAs, or of which the rows of another are not known.
    """
    key_map = record.key_maps[0]
    stacks: dict[ModuleName, dict[str, Part]] = {}
    for part in parts:
        path = key_map.path(part.name.path) if part.name.component in (*NOISE, record.component) else None
        layer = key_map.layer(path) if path is not None else None
        if path is None or layer is None or key_map.layer(part.name.path) is not None:
            yield part
            continue
        name = part.name._replace(path=path)
        if len(layer.parts) == 1:
            yield replace(_swapped(part, layer), name=name)
        else:
            stacks.setdefault(name, {})[part.name.path] = part
    for name, found in stacks.items():
        yield _stack(name, found, key_map, record)


def _swapped(part: Part, layer: Layer) -> Part:
    up, down = part.tensors.get("up"), part.tensors.get("down")
    if not layer.swapped:
        return part
    if up is None or down is None or part.family != "lora":
        raise _cannot(part, layer)
    if not layer.of_shape((len(up), down.shape[1])).swapped:
        return part
    return replace(part, tensors={**part.tensors, "up": np.concatenate(np.split(up, 2)[::-1])})


def _cannot(part: Part, layer: Layer) -> FamilyError:
    return FamilyError(
        "a layer of this family cannot be written under the single file's name, which others share",
        where=part.name,
        expected=f"a LoRA on {', '.join(layer.parts)}",
        found=part.family,
        hint="keep the file for programs that read diffusers' names",
    )


def _stack(name: ModuleName, found: Mapping[str, Part], key_map: KeyMap, record: ArchitectureRecord) -> Part:
    """One LoRA on a stack out of those on its parts; parts that are not trained have rows of zeros."""
    layer = key_map.layer(name.path)
    if layer is None or any(part.family != "lora" or "mid" in part.tensors for part in found.values()):
        raise _cannot(next(iter(found.values())), layer or Layer(tuple(found)))
    sizes = _sizes(name, layer, found, record)
    given = [found.get(path) for path in layer.parts]
    trained = [part for part in given if part is not None]
    downs, scales = [part.tensors["down"] for part in trained], [_scale(part) for part in trained]
    same = all(np.array_equal(downs[0], down) for down in downs) and len(set(scales)) == 1
    rank = len(downs[0]) if same else sum(map(len, downs))
    dtype = np.result_type(*(part.tensors["up"] for part in trained))
    up, column = np.zeros((sum(sizes), rank), dtype), 0
    for part, stop in zip(given, np.cumsum(sizes), strict=True):
        if part is None:
            continue
        own = part.tensors["up"]
        factor = 1.0 if len(set(scales)) == 1 else _scale(part)
        up[stop - len(own) : stop, column : column + own.shape[1]] = own * np.asarray(factor, dtype)
        column += 0 if same else own.shape[1]
    scale = scales[0] if len(set(scales)) == 1 else 1.0
    down = downs[0] if same else np.concatenate(downs)
    rounding = max(part.rounding for part in trained)
    notes = tuple(dict.fromkeys((*(note for part in trained for note in part.notes), _JOINED)))
    return Part(name, "lora", {"up": up, "down": down}, scale * rank, rank, rounding, notes=notes)


def _scale(part: Part) -> float:
    """The scale of a part, whose alpha is a tensor where names alone change."""
    stated = part.tensors.get("alpha")
    alpha = part.alpha if stated is None else float(stated.reshape(-1)[0])
    return 1.0 if alpha is None else alpha / part.rank


def _sizes(
    name: ModuleName, layer: Layer, found: Mapping[str, Part], record: ArchitectureRecord
) -> Sequence[int]:
    """The rows of each part of a stack, those of the untrained ones by the rule of the stack."""
    known = {path: len(part.tensors["up"]) for path, part in found.items()}
    columns = next(iter(found.values())).tensors["down"].shape[1]
    sizes: list[int | None] = [known.get(path) for path in layer.parts]
    if layer.rows == "equal":
        sizes = [next(iter(known.values()))] * len(sizes)
    elif layer.rows == "square":
        whole = next((n for end, n in record.proportions.items() if name.path.endswith(f".{end}")), None)
        last = sizes[-1] or (whole and columns * (whole - len(sizes) + 1)) or columns
        sizes = [*[columns] * (len(sizes) - 1), last]
    elif layer.rows == "grouped":
        others = {size for path, size in known.items() if path != layer.parts[0]}
        sizes = [columns, *[next(iter(others), None)] * (len(sizes) - 1)]
    else:
        sizes = list(layer.rows)
    if None in sizes:
        raise FamilyError(
            "the rows of an untrained projection are not known, and the single file stacks it with others",
            where=name,
            expected=f"a LoRA on one more of {', '.join(layer.parts)}",
            found=", ".join(found),
        )
    return [size for size in sizes if size is not None]
