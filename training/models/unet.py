"""UNets of Stable Diffusion 1.5, 2 and XL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paramerge.training.models.record import ModelKind
from paramerge.training.prompts import Prompts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UNET"]


def _encode(pipeline: Any, text: str, device: Any) -> Prompts:
    found = pipeline.encode_prompt(
        prompt=[text], device=device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return Prompts(found[0], found[2] if len(found) == 4 else None)


def _predict(
    unet: Any, noisy: Tensor, times: Tensor, prompts: Prompts, time_ids: Tensor, config: Any, dtype: Any
) -> Tensor:
    extra: dict[str, Any] = {}
    if prompts.pooled is not None:
        extra["added_cond_kwargs"] = {"text_embeds": prompts.pooled.to(dtype), "time_ids": time_ids.to(dtype)}
    found: Tensor = unet(
        noisy.to(dtype), times, encoder_hidden_states=prompts.states.to(dtype), **extra
    ).sample
    return found


UNET = ModelKind(
    "unet", ("StableDiffusionPipeline", "StableDiffusionXLPipeline"), "unet", False, _encode, _predict
)
