"""cloneofsimo's dialect: layers by number, ``unet:17:up``, in the order of a walk over the model of 2023.

The metadata names the classes of modules whose linear layers were trained (``unet``: ["CrossAttention",
"Attention", "GEGLU"]) and the rank of each layer. The walk is over registered modules: a UNet registered its
down blocks, then its up blocks, then its middle. The walks known here are checked against every shape of the
file, so that a file from another walk is refused and not applied to the wrong layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from paramerge.errors import AdapterError, ShapeError
from paramerge.files.header import Header
from paramerge.formats.dialect import Dialect, Place
from paramerge.listing import listed
from paramerge.models.names import ModuleName
from paramerge.strict_json import parse

_KEY = re.compile(r"(?P<component>unet|text_encoder):(?P<index>[0-9]{1,5}):(?P<side>up|down)")

_UNET_CLASSES = {"CrossAttention", "Attention", "GEGLU"}
_TEXT_CLASSES = {"CLIPAttention"}

_LEVELS = (
    *(("down_blocks", number, 2, width) for number, width in enumerate((320, 640, 1280))),
    *(("up_blocks", number, 3, width) for number, width in ((1, 1280), (2, 640), (3, 320))),
)
"""Blocks with transformers in SD1's and SD2's UNet, as registered: name, number, transformers, width."""


class _Layer(NamedTuple):
    path: str
    shape: tuple[int, int]
    """(out, in)"""


def _claims(key: str) -> bool:
    return key.startswith(("unet:", "text_encoder:"))


def _unnumbered(stem: str) -> Place | None:
    """No layer: a number alone does not name one."""
    return None


def _token_embeddings(header: Header) -> tuple[str, ...]:
    """Keys of the token embeddings that the metadata names: ``<s1>``."""
    return tuple(key for key in header.tensors if header.metadata.get(key) == "<embed>")


def _places(header: Header) -> dict[str, Place]:
    """The layer of every numbered stem of a file.

    Raises
    ------
    AdapterError
        The metadata name classes whose walk is not known, or the numbers leave gaps.
    ShapeError
        The shapes fit no known walk.
    """
    indices: dict[str, set[int]] = {}
    for key in header.tensors:
        if match := _KEY.fullmatch(key):
            indices.setdefault(match["component"], set()).add(int(match["index"]))
    places = {}
    for component, layers in indices.items():
        found = [_shape(header, component, index) for index in range(len(layers))]
        walk = _walk_that_fits(header, component, found)
        for index in sorted(layers):
            name = ModuleName(component, walk[index].path)
            places[f"{component}:{index}"] = Place(name, True, "cloneofsimo")
    return places


def _walk_that_fits(header: Header, component: str, found: list[tuple[int, int]]) -> list[_Layer]:
    walks = list(_known_walks(component, _targets(header, component)))
    for walk in walks:
        if [layer.shape for layer in walk] == found:
            return walk
    lengths = sorted({len(walk) for walk in walks})
    raise ShapeError(
        "the layers of this file are numbered in an order that is not known",
        where=f"{header.path}: {component}:0 to {component}:{len(found) - 1}",
        expected=f"{listed(list(map(str, lengths)))} layers with the shapes of an SD1.5 or SD2 {component}",
        found=f"{len(found)} layers, the first {listed([f'{out} x {width}' for out, width in found])}",
        hint="convert it with the tool that it comes from to a file that names its layers",
    )


def _shape(header: Header, component: str, index: int) -> tuple[int, int]:
    """(out, in) of one numbered layer."""
    sides = [f"{component}:{index}:{side}" for side in ("up", "down")]
    missing = [key for key in sides if key not in header.tensors]
    if missing:
        raise AdapterError(
            "the numbers of this file leave a gap, or a layer lacks a factor",
            where=header.path,
            expected="every number from 0, each with up and down",
            found=f"no {' and no '.join(missing)}",
            hint="the file is damaged or was cut: get it from its source again",
        )
    up, down = (header.tensors[key].shape for key in sides)
    if len(up) != 2 or len(down) != 2:
        raise ShapeError(
            "a numbered layer is not linear",
            where=f"{header.path}: {component}:{index}",
            expected="matrices",
            found=f"{list(up)} and {list(down)}",
        )
    stated = header.metadata.get(f"{component}:{index}:rank")
    if stated is not None and stated != str(down[0]):
        raise ShapeError(
            "the metadata and the weights differ in a layer's rank",
            where=f"{header.path}: {component}:{index}",
            expected=f"rank {stated}",
            found=f"rank {down[0]}",
        )
    return up[0], down[1]


def _targets(header: Header, component: str) -> frozenset[str]:
    text = header.metadata.get(component)
    try:
        classes = parse(text) if text is not None else None
    except ValueError:
        classes = None
    known = _UNET_CLASSES if component == "unet" else _TEXT_CLASSES
    if not isinstance(classes, list) or not classes or not set(map(str, classes)) <= known:
        raise AdapterError(
            "the order of this file's numbered layers is not known",
            where=f"{header.path}: metadata {component}",
            expected=f"some of {', '.join(sorted(known))}",
            found=text or "nothing",
            hint="convert it with the tool that it comes from to a file that names its layers",
        )
    return frozenset(map(str, classes))


def _known_walks(component: str, classes: frozenset[str]) -> Iterator[list[_Layer]]:
    if component == "text_encoder":
        for width, depth in ((768, 12), (1024, 23), (1024, 24)):
            yield list(_text_encoder(width, depth))
        return
    for context in (768, 1024):
        for order in (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff")):
            yield list(_unet(context, order, classes))


def _text_encoder(width: int, depth: int) -> Iterator[_Layer]:
    for number in range(depth):
        for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
            yield _Layer(f"text_model.encoder.layers.{number}.self_attn.{projection}", (width, width))


def _unet(context: int, order: tuple[str, ...], classes: frozenset[str]) -> Iterator[_Layer]:
    """Linear layers of a UNet's attentions and gates; ``order`` is that of a transformer block's parts."""
    blocks = [
        (f"{block}.{number}.attentions.{index}", width)
        for block, number, count, width in _LEVELS
        for index in range(count)
    ]
    for prefix, width in [*blocks, ("mid_block.attentions.0", 1280)]:
        for part in order:
            path = f"{prefix}.transformer_blocks.0.{part}"
            if part == "ff":
                if "GEGLU" in classes:
                    yield _Layer(f"{path}.net.0.proj", (8 * width, width))
            elif classes & {"CrossAttention", "Attention"}:
                yield from _attention(path, width, context if part == "attn2" else width)


def _attention(path: str, width: int, source: int) -> Iterator[_Layer]:
    yield _Layer(f"{path}.to_q", (width, width))
    yield _Layer(f"{path}.to_k", (width, source))
    yield _Layer(f"{path}.to_v", (width, source))
    yield _Layer(f"{path}.to_out.0", (width, width))


CLONEOFSIMO = Dialect(
    key="cloneofsimo",
    names="numbers, which only a walk over a model gives",
    claims=_claims,
    place=_unnumbered,
    separator=":",
    endings={"up": "up", "down": "down"},
    indexed=_places,
    embeddings=_token_embeddings,
)
