"""The JSON files of a diffusers folder, so that ``from_pretrained`` of diffusers and transformers takes it.

Tokenizers are not written: ``model_index.json`` names them as absent, and a pipeline loaded from the folder
with ``DiffusionPipeline.from_pretrained(folder, tokenizer=None)`` takes prompt embeddings.
"""

from __future__ import annotations

from blueprints import Blueprint, VaeConfig

from paramerge.models.blueprint_inventory import ClipConfig, UNetConfig
from paramerge.version import __version__

__all__ = ["folder_configs"]

Json = dict[str, object]

_DIFFUSERS = {"_diffusers_version": "0.36.0", "_paramerge_version": __version__}


def folder_configs(blueprint: Blueprint) -> dict[str, Json]:
    """The configuration files of ``blueprint``'s folder by their path in it."""
    configs = {
        "model_index.json": _model_index(blueprint),
        "unet/config.json": _unet(blueprint.unet, xl=len(blueprint.unet.channels) == 3),
        "vae/config.json": _vae(blueprint.vae),
        "scheduler/scheduler_config.json": _scheduler(blueprint.schedule),
    }
    for encoder in blueprint.encoders:
        configs[f"{encoder.component}/config.json"] = _clip(encoder.config, encoder.component)
    return configs


def _model_index(blueprint: Blueprint) -> Json:
    absent = [None, None]
    index: Json = {
        "_class_name": _pipeline(blueprint.architecture),
        **_DIFFUSERS,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler" if blueprint.schedule else "EulerDiscreteScheduler"],
        "tokenizer": absent,
        "text_encoder": absent,
    }
    if blueprint.schedule:
        index |= {"safety_checker": absent, "feature_extractor": absent, "requires_safety_checker": False}
    else:
        index |= {"tokenizer_2": absent, "text_encoder_2": absent}
        index |= {"force_zeros_for_empty_prompt": blueprint.architecture == "sdxl"}
    for encoder in blueprint.encoders:
        index[encoder.component] = ["transformers", _encoder_class(encoder.component)]
    return index


def _pipeline(architecture: str) -> str:
    return {
        "sd15-inpainting": "StableDiffusionInpaintPipeline",
        "sdxl": "StableDiffusionXLPipeline",
        "sdxl-refiner": "StableDiffusionXLImg2ImgPipeline",
    }.get(architecture, "StableDiffusionPipeline")


def _encoder_class(component: str) -> str:
    return "CLIPTextModelWithProjection" if component == "text_encoder_2" else "CLIPTextModel"


def _unet(config: UNetConfig, xl: bool) -> Json:
    has = [depth > 0 for depth in config.depths]
    unet: Json = {
        "_class_name": "UNet2DConditionModel",
        **_DIFFUSERS,
        "act_fn": "silu",
        # diffusers reads this as the number of heads
        "attention_head_dim": list(config.heads),
        "block_out_channels": list(config.channels),
        "cross_attention_dim": config.context,
        "down_block_types": ["CrossAttnDownBlock2D" if x else "DownBlock2D" for x in has],
        "up_block_types": ["CrossAttnUpBlock2D" if x else "UpBlock2D" for x in reversed(has)],
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "norm_eps": 1e-05,
        "norm_num_groups": config.groups,
        "out_channels": config.out_channels,
        "sample_size": 128 if xl else 64,
        # the last entry is the middle block's depth, too
        "transformer_layers_per_block": [depth or config.mid_depth for depth in config.depths],
        "use_linear_projection": config.linear_projection,
    }
    if config.time_ids:
        unet |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.time_id_width,
            "projection_class_embeddings_input_dim": config.pooled + config.time_ids * config.time_id_width,
        }
    return unet


def _clip(config: ClipConfig, component: str) -> Json:
    return {
        "architectures": [_encoder_class(component)],
        "model_type": "clip_text_model",
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_hidden_layers": config.layers - config.unused_layers,
        "num_attention_heads": config.heads,
        "projection_dim": config.projection or config.width,
        "max_position_embeddings": config.positions,
        "vocab_size": config.vocabulary,
        "layer_norm_eps": 1e-05,
        "bos_token_id": 0,
        "pad_token_id": 1,
        # 2 makes transformers pool at the largest token id, as the published encoders do
        "eos_token_id": 2,
        "torch_dtype": "float16",
    }


def _vae(config: VaeConfig) -> Json:
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        **_DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": config.latent,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.groups,
        "sample_size": 512,
        "scaling_factor": config.scaling_factor,
    }


def _scheduler(ddim: bool) -> Json:
    scheduler: Json = {
        "_class_name": "DDIMScheduler" if ddim else "EulerDiscreteScheduler",
        **_DIFFUSERS,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "steps_offset": 1,
    }
    if ddim:
        scheduler |= {"clip_sample": False, "set_alpha_to_one": False}
    return scheduler
