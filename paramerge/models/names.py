"""The one naming of layers in paramerge: a component and a dotted module path.

Paths are those of diffusers (UNet) and transformers (CLIP text encoders), whatever a file calls them::

    unet            down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q
    text_encoder    text_model.encoder.layers.0.self_attn.q_proj
    text_encoder_2  text_projection

Of all other models they are the keys of the checkpoint itself, without ``.weight``; a model on its own, such
as a language model, is the component ``model``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

MODEL = "model"
"""The component of a model on its own, and of adapters that do not name a component of a pipeline."""

COMPONENTS = (
    "unet",
    "transformer",
    "transformer_2",
    "prior",
    MODEL,
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
    "vae",
)
"""The components that an adapter or a checkpoint may name, in the order they are reported."""


class ModuleName(NamedTuple):
    """A layer: the component of the pipeline and the path of the module in it (no ``.weight``)."""

    component: str
    path: str

    def __str__(self) -> str:
        return f"{self.component}.{self.path}"

    @classmethod
    def parse(cls, text: str) -> ModuleName:
        """Read ``component.path``; raises ``ValueError`` where there is no known component."""
        component, _, path = text.partition(".")
        if component not in COMPONENTS or not path:
            raise ValueError(f"{text!r} does not begin with one of {', '.join(COMPONENTS)}")
        return cls(component, path)


def in_order(names: Iterable[ModuleName]) -> list[ModuleName]:
    """The names in the order of the components, then of the paths."""
    return sorted(names, key=lambda name: (COMPONENTS.index(name.component), name.path))


def split_kind(path: str) -> tuple[str, str]:
    """A parameter's path cut before its ``.weight`` or ``.bias``; a layer's path has neither."""
    stem, dot, kind = path.rpartition(".")
    return (stem, dot + kind) if kind in ("weight", "bias") else (path, "")
