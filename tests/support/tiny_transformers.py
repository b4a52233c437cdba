"""Tiny random pipelines of FLUX.1, Stable Diffusion 3 and Z-Image, as diffusers folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
)

from paramerge.training.tiny.tokenizer import make_tokenizer

WORDS = ("<pad>", "</s>", "<unk>", "user", "assistant", "a", "noto", "dog", "twemoji", "cat")


def vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=32, shift_factor=0.1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.4,
    )  # fmt: skip


def clip(projection: bool) -> Any:
    width = len(make_tokenizer())
    config = CLIPTextConfig(
        hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, vocab_size=width,
        max_position_embeddings=make_tokenizer().model_max_length, projection_dim=8,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def words(length: int = 16) -> PreTrainedTokenizerFast:
    """A tokenizer of a few whole words."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_max_length=length,
        chat_template="{% for m in messages %}user {{ m['content'] }} {% endfor %}assistant",
    )  # fmt: skip


def t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(WORDS), d_model=12, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    )


def flux() -> Any:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return FluxPipeline(
        FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae(), clip(False), make_tokenizer(),
        t5(), words(), transformer,
    )  # fmt: skip


def sd3() -> Any:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), vae(), clip(True), make_tokenizer(),
        clip(True), make_tokenizer(), None, None,
    )  # fmt: skip


def z_image() -> Any:
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
        axes_dims=[2, 2, 4], axes_lens=[64, 32, 32],
    )  # fmt: skip
    encoder = Qwen3Model(
        Qwen3Config(vocab_size=len(WORDS), hidden_size=12, intermediate_size=16, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2, head_dim=6)
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ZImagePipeline(scheduler, vae(), encoder, words(), transformer)


PIPELINES: dict[str, Callable[[], Any]] = {"flux": flux, "sd3": sd3, "z-image": z_image}


def transformer_pipeline(name: str, folder: Path) -> Path:
    """The pipeline ``name`` in ``folder / name``, in float32."""
    made = PIPELINES[name]()
    made.save_pretrained(folder / name)
    return folder / name
