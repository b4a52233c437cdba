"""Parameters that adapters reach beside layers: norms' weights, biases, embeddings.

Each goes by the name of its module with ``.weight`` or ``.bias`` behind it, which no layer has:
``unet.down_blocks.0.resnets.0.norm1.weight``, ``unet.conv_in.bias``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from paramerge.checkpoints.targets import Target, divided_rows
from paramerge.models.components import Located
from paramerge.models.names import ModuleName

_BARE = re.compile(
    r"(?:^|[._])(?:modulation|mod\.lin|modulation\.lin|scale_shift_table|pad_token|register_tokens)$"
)
"""Trained tables and tokens of transformers, which are no modules and have no ending."""


def parameters_of(
    shapes: Mapping[str, tuple[int, ...]], located: Mapping[str, Located]
) -> dict[ModuleName, Target]:
    """Every norm's weight and bias, every CLIP embedding and every table of modulations, for located keys;
    the VAE has none of them.

    A stacked bias (OpenCLIP's and FLUX's q, k and v) is cut into its rows, as its weight is.
    """
    found: dict[ModuleName, Target] = {}
    for key, shape in shapes.items():
        if not located[key].parts and located[key].own is None:
            continue
        for target in _views(key, shape, located[key], shapes):
            found[target.module] = target
    return found


def _views(
    key: str, shape: tuple[int, ...], located: Located, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Target]:
    if located.component == "vae" or not all(_is_parameter(part, shape) for part in located.parts):
        return
    count = len(located.parts)
    runs: Sequence[tuple[int, int] | None] | None = (None,) * count
    if count > 1:
        runs = divided_rows(_shape_of_stack(key, shape, shapes), located)
    if runs is None:
        return  # not of the size of its weight: adapters do not reach it, and one that would is refused
    if located.own is not None and _is_parameter(located.own, shape):
        yield Target(ModuleName(located.component, located.own), key, shape, stack=count > 1)
    for part, run in zip(located.parts, runs, strict=True):
        size = shape[0] if run is None else run[1] - run[0]
        module = ModuleName(located.component, part)
        yield Target(module, key, (size, *shape[1:]), run)


def _shape_of_stack(
    key: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int]:
    """A stacked bias's rows, and the columns of its weight, by which square parts are found."""
    weight = shapes.get(f"{key.removesuffix('.bias')}.weight", ())
    return shape[0], weight[1] if len(weight) == 2 else shape[0]


def _is_parameter(part: str, shape: tuple[int, ...]) -> bool:
    if len(shape) == 1 and not _BARE.search(part):
        return part.endswith((".weight", ".bias"))
    if _BARE.search(part):
        return True
    embedding = part.startswith("text_model.embeddings.") or part == "class_embedding.weight"
    return embedding and len(shape) == 2 and part.endswith(".weight")
