"""What adapters can reach in a file beside its layers: norms' weights, biases, embeddings.

Each goes by the name of its module with ``.weight`` or ``.bias`` behind it, which no layer has:
``unet.down_blocks.0.resnets.0.norm1.weight``, ``unet.conv_in.bias``.
"""

from __future__ import annotations

from collections.abc import Mapping

from paramerge.checkpoints.components import Located
from paramerge.checkpoints.modules import ModuleName
from paramerge.checkpoints.targets import Target

__all__ = ["parameters_of"]

_COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


def parameters_of(
    shapes: Mapping[str, tuple[int, ...]], located: Mapping[str, Located]
) -> dict[ModuleName, Target]:
    """Every norm's weight, bias and embedding of the UNet and the text encoders, for located keys.

    A stacked bias (OpenCLIP's q, k and v) is cut into its rows, as its weight is.
    """
    found = {}
    for key, shape in shapes.items():
        name = located[key]
        if name.component not in _COMPONENTS or not all(_is_parameter(part, shape) for part in name.parts):
            continue
        step = shape[0] // max(1, len(name.parts)) if shape else 0
        for i, part in enumerate(name.parts):
            rows = (i * step, (i + 1) * step) if len(name.parts) > 1 else None
            module = ModuleName(name.component, part)
            found[module] = Target(module, key, (step, *shape[1:]), rows)
    return found


def _is_parameter(part: str, shape: tuple[int, ...]) -> bool:
    if len(shape) == 1:
        return part.endswith((".weight", ".bias"))
    embedding = part.startswith("text_model.embeddings.") or part == "class_embedding.weight"
    return embedding and len(shape) == 2 and part.endswith(".weight")
