"""What adapters can reach in a file: each Linear and Conv layer of the UNet and the text encoders.

A target is a view of a stored tensor: all of it, a range of its rows (q, k and v in OpenCLIP's stacked
``in_proj_weight``), or its transpose (OpenCLIP's ``text_projection``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from paramerge.checkpoints.components import Located, locate
from paramerge.checkpoints.modules import ModuleName
from paramerge.errors import CheckpointError

__all__ = ["Target", "find_targets", "targets_of"]


@dataclass(frozen=True, slots=True)
class Target:
    """A layer's weight in a checkpoint file, as an adapter sees it."""

    module: ModuleName
    key: str
    """The key of the stored tensor."""
    shape: tuple[int, ...]
    """The weight's own shape, after slicing and transposing: (out, in) or (out, in, kh, kw)."""
    rows: tuple[int, int] | None = None
    """The rows ``[start, stop)`` of the stored tensor that it is; None for all."""
    transposed: bool = False
    """Whether the tensor is stored transposed."""
    scaled: bool = False
    """Whether a separate scale multiplies the stored numbers (scaled fp8): they are not the weight itself."""


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
    return targets_of(keys, locate(keys.keys(), component))


def targets_of(
    shapes: Mapping[str, tuple[int, ...]], located: Mapping[str, Located]
) -> dict[ModuleName, Target]:
    """As :func:`find_targets`, for keys that have been located already."""
    targets: dict[ModuleName, Target] = {}
    for key, shape in shapes.items():
        for target in _views(key, shape, located[key], shapes.keys()):
            if target.module in targets:
                raise CheckpointError(
                    "two tensors of the file are the same layer",
                    where=target.module,
                    found=f"{targets[target.module].key} and {key}",
                    hint="the file was put together wrongly: remove one of them",
                )
            targets[target.module] = target
    return targets


def _views(key: str, shape: tuple[int, ...], located: Located, keys: Collection[str]) -> Iterator[Target]:
    if len(shape) < 2 or not all(_is_layer(part) for part in located.parts):
        return
    count = len(located.parts)
    if count > 1 and shape[0] % count:
        raise CheckpointError(
            "a stacked tensor cannot be divided into its parts",
            where=key,
            expected=f"a multiple of {count} rows",
            found=f"shape {list(shape)}",
        )
    scaled = _is_scaled(key, keys)
    for i, part in enumerate(located.parts):
        module = ModuleName(located.component, part.removesuffix(".weight"))
        if count > 1:
            step = shape[0] // count
            yield Target(module, key, (step, *shape[1:]), (i * step, (i + 1) * step), scaled=scaled)
        else:
            view = shape[::-1] if located.transposed else shape
            yield Target(module, key, view, None, located.transposed, scaled)


def _is_layer(part: str) -> bool:
    """Whether a canonical key is the weight of a Linear or Conv layer, given that it has two or more axes."""
    if not part.endswith(".weight") or part == "class_embedding.weight":
        return False
    return not part.startswith("text_model.embeddings.")


def _is_scaled(key: str, keys: Collection[str]) -> bool:
    stem = key.removesuffix(".weight")
    return f"{stem}.scale_weight" in keys or f"{key}_scale" in keys
