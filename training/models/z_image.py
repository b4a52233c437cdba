"""Z-Image: texts of a language model, each of its own length; time runs from noise (0) to picture (1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paramerge.training.models.record import ModelKind
from paramerge.training.prompts import Prompts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Z_IMAGE"]

_BLOCK = r"(?:layers|noise_refiner|context_refiner)\.\d+\."
_ATTENTION = r"attention\.(?:to_[qkv]|to_out\.0)"
_MLP = r"feed_forward\.w[123]"


def _encode(pipeline: Any, text: str, device: Any) -> Prompts:
    (states,), _ = pipeline.encode_prompt(prompt=[text], device=device, do_classifier_free_guidance=False)
    return Prompts(states[None], None, (len(states),))


def _predict(
    model: Any, noisy: Tensor, times: Tensor, prompts: Prompts, time_ids: Tensor, config: Any, dtype: Any
) -> Tensor:
    import torch

    texts = [
        states[:length] for states, length in zip(prompts.states.to(dtype), prompts.lengths, strict=True)
    ]
    found = model(
        list(noisy.to(dtype).unsqueeze(2).unbind(0)),
        ((1000 - times) / 1000).to(dtype),
        texts,
        return_dict=False,
    )[0]
    return -torch.stack(list(found)).squeeze(2)


Z_IMAGE = ModelKind(
    "z-image",
    ("ZImagePipeline",),
    "transformer",
    True,
    _encode,
    _predict,
    subsets={"attention": _BLOCK + _ATTENTION, "blocks": f"{_BLOCK}(?:{_ATTENTION}|{_MLP})"},
    side_step=16,
    methods=("para", "lora"),
)
