"""Small models of the true layers of FLUX, SD3, Qwen-Image, Wan and language models, with adapters by PEFT.

Nothing here uses paramerge.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lora_oracles import randomise
from peft import LoraConfig


def flux(width: int = 16, doubles: int = 2, singles: int = 2) -> Any:
    """FLUX.1's transformer; its width is ``width``, a multiple of 8."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=doubles,
        num_single_layers=singles,
        attention_head_dim=width // 2,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, width // 2 - 4),
    )


def sd3() -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    )


def qwen_image() -> Any:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        in_channels=8,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
    )


def wan() -> Any:
    """Wan's video transformer: its patch embedding is a 3-D convolution."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=24,
        num_layers=2,
    )


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=32,
        )
    )


def gpt2() -> Any:
    """GPT-2, whose layers are stored (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=16, vocab_size=32))


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=32)
    return T5EncoderModel(config)


MODELS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "flux": (flux, ["to_q", "add_k_proj", "to_out.0", "to_add_out", "proj_mlp", "proj_out", "norm1.linear"]),
    "sd3": (sd3, ["to_q", "to_k", "add_v_proj", "to_out.0", "net.2", "pos_embed.proj"]),
    "qwen-image": (qwen_image, ["to_q", "add_q_proj", "net.0.proj", "img_mod.1"]),
    "wan": (wan, ["to_q", "to_k", "patch_embedding", "ffn.net.2"]),
    "llama": (llama, ["q_proj", "v_proj", "down_proj"]),
    "gpt2": (gpt2, ["c_attn", "c_proj", "c_fc"]),
    "t5": (t5, ["q", "v", "wo"]),
}
"""By the name that paramerge reports; with layers of every kind that adapters change."""


def random_model(name: str) -> Any:
    """A model with random weights in all parameters (norms and gates begin at 1 and 0 otherwise)."""
    torch.manual_seed(0)
    model = MODELS[name][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def lora_config(name: str, **options: Any) -> LoraConfig:
    return LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=MODELS[name][1],
        alpha_pattern={MODELS[name][1][0]: 3},
        fan_in_fan_out=name == "gpt2",
        **options,
    )


def with_lora(model: Any, name: str, seed: int = 3) -> Any:
    """A copy of the model inside PEFT, with a random LoRA."""
    from peft import get_peft_model

    adapted = get_peft_model(copy.deepcopy(model), lora_config(name))
    randomise(adapted, seed)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                parameter.mul_(0.2)
    return adapted


def merged(adapted: Any) -> dict[str, torch.Tensor]:
    """What PEFT makes of it in float64: the state dict with the LoRA merged in."""
    return dict(copy.deepcopy(adapted).double().merge_and_unload().state_dict())


def save_pipeline(folder: Path, components: dict[str, Any], **options: Any) -> Path:
    """Save models as the components of a diffusers pipeline (without tokenizers and scheduler)."""
    index: dict[str, Any] = {"_class_name": "SomePipeline"}
    for name, model in components.items():
        model.save_pretrained(folder / name, **options)
        index[name] = [type(model).__module__.partition(".")[0], type(model).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
