"""Stable Diffusion 3 and 3.5: two CLIPs, and T5 where the pipeline has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paramerge.training.models.record import ModelKind
from paramerge.training.prompts import Prompts

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SD3"]

_BLOCK = r"transformer_blocks\.\d+\."
_ATTENTION = r"attn2?\.(?:to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
_MLP = r"(?:ff|ff_context)\.net\.(?:0\.proj|2)"


def _encode(pipeline: Any, text: str, device: Any) -> Prompts:
    states, _, pooled, _ = pipeline.encode_prompt(
        prompt=[text], prompt_2=None, prompt_3=None, device=device, do_classifier_free_guidance=False
    )
    return Prompts(states, pooled)


def _predict(
    model: Any, noisy: Tensor, times: Tensor, prompts: Prompts, time_ids: Tensor, config: Any, dtype: Any
) -> Tensor:
    if prompts.pooled is None:
        raise ValueError("prompts of this model have a pooled embedding")
    found: Tensor = model(
        hidden_states=noisy.to(dtype),
        timestep=times,
        encoder_hidden_states=prompts.states.to(dtype),
        pooled_projections=prompts.pooled.to(dtype),
        return_dict=False,
    )[0]
    return found


SD3 = ModelKind(
    "sd3",
    ("StableDiffusion3Pipeline",),
    "transformer",
    True,
    _encode,
    _predict,
    subsets={"attention": _BLOCK + _ATTENTION, "blocks": f"{_BLOCK}(?:{_ATTENTION}|{_MLP})"},
    side_step=16,
    methods=("para", "lora"),
)
