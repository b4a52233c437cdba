"""diffusers' transformers at a tenth of their sizes, as classes and options; nothing here uses paramerge."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Small(NamedTuple):
    """A model: its class in diffusers, and options that make it small."""

    kind: str
    options: dict[str, Any]


def _small(kind: str, **options: Any) -> Small:
    return Small(kind, options)


MODELS: dict[str, Small] = {
    "flux": _small(
        "FluxTransformer2DModel",
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    ),
    "flux2": _small(
        "Flux2Transformer2DModel",
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=10,
        axes_dims_rope=(2, 2, 2, 2),
    ),
    "chroma": _small(
        "ChromaTransformer2DModel",
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=8,
        approximator_hidden_dim=10,
        approximator_layers=2,
    ),
    "z-image": _small(
        "ZImageTransformer2DModel",
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=12,
        axes_dims=[4, 6, 6],
        axes_lens=[8, 8, 8],
    ),
    "lumina2": _small(
        "Lumina2Transformer2DModel",
        in_channels=4,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=2,
        num_attention_heads=6,
        num_kv_heads=2,
        multiple_of=8,
        cap_feat_dim=12,
        axes_dim_rope=(2, 2, 0),
        axes_lens=(8, 8, 8),
    ),
    "qwen-image": _small(
        "QwenImageTransformer2DModel",
        in_channels=8,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(2, 2, 4),
    ),
    "qwen-image-2.1": _small(
        "QwenImage21Transformer2DModel",
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        context_in_dim=12,
        axes_dims_rope=(2, 2, 4),
    ),
    "wan": _small(
        "WanTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=24,
        num_layers=2,
        image_dim=14,
        added_kv_proj_dim=16,
    ),
    "sd3": _small(
        "SD3Transformer2DModel",
        sample_size=8,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0, 1),
        qk_norm="rms_norm",
    ),
    "hunyuan-video": _small(
        "HunyuanVideoTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        text_embed_dim=12,
        pooled_projection_dim=10,
        rope_axes_dim=(2, 2, 4),
    ),
    "hunyuan-video-1.5": _small(
        "HunyuanVideo15Transformer3DModel",
        in_channels=5,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=12,
        text_embed_2_dim=10,
        image_embed_dim=14,
        rope_axes_dim=(2, 2, 4),
    ),
    "krea2": _small(
        "Krea2Transformer2DModel",
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        timestep_embed_dim=8,
        text_hidden_dim=16,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=24,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(2, 2, 4),
    ),
    "cosmos-predict2": _small(
        "CosmosTransformer3DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        text_embed_dim=12,
        adaln_lora_dim=6,
        max_size=(4, 8, 8),
        extra_pos_embed_type=None,
    ),
    "ltx": _small(
        "LTXVideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=12,
    ),
    "ltx2": _small(
        "LTX2VideoTransformer3DModel",
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=8,
        audio_out_channels=8,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=12,
    ),
    "hidream": _small(
        "HiDreamImageTransformer2DModel",
        patch_size=2,
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[12, 12],
        text_emb_dim=10,
        num_routed_experts=2,
        axes_dims_rope=(4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    ),
    "pixart": _small(
        "PixArtTransformer2DModel",
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=12,
        use_additional_conditions=True,
    ),
    "sana": _small(
        "SanaTransformer2DModel",
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=8,
    ),
    "auraflow": _small(
        "AuraFlowTransformer2DModel",
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
    ),
}
"""By the name that paramerge reports."""


def small_model(name: str) -> Any:
    """The model, with random weights in all parameters."""
    import diffusers

    torch.manual_seed(0)
    model = getattr(diffusers, MODELS[name].kind)(**MODELS[name].options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def small_shapes(name: str, **others: Any) -> dict[str, tuple[int, ...]]:
    """The keys of the model and their shapes; ``others`` are other options."""
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, MODELS[name].kind)(**MODELS[name].options | others)
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
