"""FLUX.1: latents in patches of 2 x 2 as a sequence, CLIP's pooled embedding and T5's states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paramerge.training.models.record import ModelKind
from paramerge.training.prompts import Prompts

if TYPE_CHECKING:
    from torch import Tensor

    from paramerge.training.config import TrainConfig

__all__ = ["FLUX"]

_LONGEST = 512
_BLOCK = r"(?:single_)?transformer_blocks\.\d+\."
_ATTENTION = r"attn\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_MLP = r"(?:ff|ff_context)\.net\.(?:0\.proj|2)|proj_mlp|proj_out"


def _encode(pipeline: Any, text: str, device: Any) -> Prompts:
    states, pooled, _ = pipeline.encode_prompt(
        prompt=[text],
        prompt_2=None,
        device=device,
        max_sequence_length=min(_LONGEST, pipeline.tokenizer_2.model_max_length),
    )
    return Prompts(states, pooled)


def _predict(
    model: Any,
    noisy: Tensor,
    times: Tensor,
    prompts: Prompts,
    time_ids: Tensor,
    config: TrainConfig,
    dtype: Any,
) -> Tensor:
    import torch
    from diffusers import FluxPipeline

    library: Any = FluxPipeline
    n, c, h, w = noisy.shape
    guidance = None
    if model.config.guidance_embeds:
        guidance = torch.full((n,), config.embedded_guidance, device=noisy.device)
    found = model(
        hidden_states=library._pack_latents(noisy.to(dtype), n, c, h, w),
        timestep=(times / 1000).to(dtype),
        guidance=guidance,
        pooled_projections=_required(prompts.pooled).to(dtype),
        encoder_hidden_states=prompts.states.to(dtype),
        txt_ids=torch.zeros(prompts.states.shape[1], 3, device=noisy.device, dtype=dtype),
        img_ids=library._prepare_latent_image_ids(n, h // 2, w // 2, noisy.device, dtype),
        return_dict=False,
    )[0]
    unpacked: Tensor = library._unpack_latents(found, h, w, 1)
    return unpacked


def _required(pooled: Tensor | None) -> Tensor:
    if pooled is None:
        raise ValueError("prompts of this model have a pooled embedding")
    return pooled


FLUX = ModelKind(
    "flux",
    ("FluxPipeline",),
    "transformer",
    True,
    _encode,
    _predict,
    subsets={"attention": _BLOCK + _ATTENTION, "blocks": f"{_BLOCK}(?:{_ATTENTION}|{_MLP})"},
    side_step=16,
    methods=("para", "lora"),
)
