"""The layers that adapters can reach in a file: each Linear and Conv layer of its models.

A target is a view of a stored tensor: all of it, a range of its rows (q, k and v in OpenCLIP's stacked
``in_proj_weight``, or in FLUX's single files), or its transpose (OpenCLIP's ``text_projection``, and GPT-2's
Conv1D layers).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from paramerge.errors import CheckpointError
from paramerge.models.components import Located, locate
from paramerge.models.key_map import Rows, runs_of
from paramerge.models.model_names import recognise
from paramerge.models.names import ModuleName


@dataclass(frozen=True, slots=True)
class Target:
    """A layer's weight in a checkpoint file, as an adapter sees it."""

    module: ModuleName
    key: str
    """The key of the stored tensor."""
    shape: tuple[int, ...]
    """The weight's own shape, after slicing and transposing: (out, in) or (out, in, kh, kw)."""
    rows: tuple[int, int] | None = None
    """The rows ``[start, stop)`` of the stored tensor that are this layer's; None for all."""
    transposed: bool = False
    """Whether the tensor is stored transposed."""
    stack: bool = False
    """Whether it is a second name for layers that are targets of their own, stacked in one tensor."""


def find_targets(
    keys: Mapping[str, tuple[int, ...]], component: str | None = None
) -> dict[ModuleName, Target]:
    """Every layer that an adapter can change in a file of these keys and shapes.

    Parameters
    ----------
    keys:
        Key to shape: of a single file, of a bare UNet (LDM or diffusers names, with or without prefix), or,
        with ``component``, of all weights in that component's folder.

    Raises
    ------
    CheckpointError
        The UNet has gaps, two tensors claim to be the same layer, or a stacked tensor cannot be divided.
    """
    return targets_of(keys, locate(keys, component, recognise(keys) if component != "vae" else None))


def targets_of(
    shapes: Mapping[str, tuple[int, ...]], located: Mapping[str, Located]
) -> dict[ModuleName, Target]:
    """Every layer that an adapter can change, as :func:`find_targets`, for keys that have been located
    already."""
    targets: dict[ModuleName, Target] = {}
    for key, shape in shapes.items():
        for target in _views(key, shape, located[key], shapes):
            if target.module in targets:
                raise CheckpointError(
                    "two tensors of the file are the same layer",
                    where=target.module,
                    found=f"{targets[target.module].key} and {key}",
                    hint="the file was put together wrongly: remove one of them",
                )
            targets[target.module] = target
    return targets


def _views(
    key: str, shape: tuple[int, ...], located: Located, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Target]:
    if len(shape) < 2 or not all(_is_layer(part) for part in located.parts):
        return
    count = len(located.parts)
    if located.own is not None and _is_layer(located.own):
        own = ModuleName(located.component, located.own.removesuffix(".weight"))
        yield Target(own, key, shape, stack=count > 1)
    if count > 1:
        for part, (start, stop) in zip(located.parts, _rows_of_parts(key, shape, located), strict=True):
            module = ModuleName(located.component, part.removesuffix(".weight"))
            yield Target(module, key, (stop - start, *shape[1:]), (start, stop))
    elif count:
        module = ModuleName(located.component, located.parts[0].removesuffix(".weight"))
        transposed = located.transposed or _is_conv1d(key, shape, shapes)
        yield Target(module, key, shape[::-1] if transposed else shape, None, transposed)


def divided_rows(shape: tuple[int, ...], located: Located) -> tuple[tuple[int, int], ...] | None:
    """The rows of each part of a stacked tensor of this shape; None if it cannot be divided so."""
    return runs_of(located.rows, len(located.parts), shape[0], shape[1])


def _rows_of_parts(key: str, shape: tuple[int, ...], located: Located) -> tuple[tuple[int, int], ...]:
    count = len(located.parts)
    rows = divided_rows(shape, located)
    if rows is None:
        raise CheckpointError(
            "a stacked tensor cannot be divided into its parts",
            where=key,
            expected=_expected_rows(located.rows, count),
            found=f"shape {list(shape)}",
        )
    return rows


def _expected_rows(rows: Rows, count: int) -> str:
    if rows == "square":
        return f"{count - 1} square parts and a last one"
    if rows == "grouped":
        return f"a square part and {count - 1} equal ones"
    return f"a multiple of {count} rows" if rows == "equal" else f"{' + '.join(map(str, rows))} rows"


_EMBEDDINGS = (
    "embed_tokens",
    "embed_positions",
    "shared",
    "wte",
    "wpe",
    "token_embedding",
    "position_embedding",
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "relative_attention_bias",
)
"""Layers that look up rows, by the last word of their paths in the models of transformers."""

_CONV1D = re.compile(
    r"(?P<block>(?:.+\.)?h\.\d+)\.(?:attn|crossattention|mlp)\.(?:c_attn|q_attn|c_proj|c_fc)\.weight"
)


def _is_layer(part: str) -> bool:
    """Whether a canonical key is the weight of a Linear or Conv layer, given that it has two or more axes."""
    if not part.endswith(".weight") or part == "class_embedding.weight":
        return False
    path = part.removesuffix(".weight")
    return path.rpartition(".")[2] not in _EMBEDDINGS and not part.startswith("text_model.embeddings.")


def _is_conv1d(key: str, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a layer is one of GPT-2's Conv1D, stored (in, out): their q, k and v are stacked by columns."""
    match = _CONV1D.fullmatch(key)
    stacked = shapes.get(f"{match['block']}.attn.c_attn.weight") if match else None
    return stacked is not None and len(stacked) == len(shape) == 2 and stacked[1] == 3 * stacked[0]
