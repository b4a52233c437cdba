"""The networks: Stable Diffusion 1.5's blocks at a width that a CPU can train.

All blocks, layer kinds and names are SD1.5's: 3x3 and 1x1 convolutions, Linear layers, cross attention on
three of four levels. Only the widths and the number of latent channels differ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

from paramerge.training.tiny.libraries import (
    AutoencoderKL,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    DDIMScheduler,
    UNet2DConditionModel,
)
from paramerge.training.tiny.pictures import SIZE
from paramerge.training.tiny.tokenizer import MAX_TOKENS

__all__ = [
    "SIZES",
    "Sizes",
    "make_autoencoder",
    "make_contrastive",
    "make_scheduler",
    "make_text_encoder",
    "make_unet",
]

_UNET_GROUPS = 16
_GROUP_CHANNELS = 4


@dataclass(frozen=True, slots=True)
class Sizes:
    """Widths of the networks; ``vae`` has one entry a resolution, so it also fixes the latents' side."""

    vae: tuple[int, ...]
    latent_channels: int
    unet: tuple[int, int, int, int]
    text: int
    text_layers: int
    contrastive: int
    contrastive_layers: int

    @property
    def latent_side(self) -> int:
        """Height and width of the latents."""
        return SIZE >> (len(self.vae) - 1)


SIZES = {
    # 8 x 8 x 8 latents: two hours or so on two cores
    "cpu": Sizes((24, 48, 96, 96), 8, (64, 128, 128, 64), 128, 3, 128, 4),
    # 16 x 16 x 4 latents: SD1.5's own count of channels, for minutes of a GPU
    "gpu": Sizes((32, 64, 128), 4, (80, 144, 192, 96), 160, 4, 192, 6),
    "smoke": Sizes((16, 16, 16, 16), 8, (16, 16, 32, 32), 32, 1, 32, 1),
}
"""The sizes by name."""


def make_autoencoder(sizes: Sizes) -> AutoencoderKL:
    """The autoencoder of pictures in [-1, 1] and latents."""
    levels = len(sizes.vae)
    return AutoencoderKL(
        sample_size=SIZE,
        block_out_channels=sizes.vae,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        # a group of one channel would normalise away how bright its colour is
        norm_num_groups=sizes.vae[0] // _GROUP_CHANNELS,
        scaling_factor=1.0,  # the latents' scale is folded into quant_conv and post_quant_conv
    )


def make_unet(sizes: Sizes) -> UNet2DConditionModel:
    """The denoiser; its block types and layers per block are SD1.5's."""
    return UNet2DConditionModel(
        sample_size=sizes.latent_side,
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        block_out_channels=sizes.unet,
        down_block_types=(*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
        layers_per_block=2,
        cross_attention_dim=sizes.text,
        attention_head_dim=4,
        norm_num_groups=_UNET_GROUPS,
    )


def make_text_encoder(sizes: Sizes, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """The text encoder, with a row for each token and placeholder."""
    return CLIPTextModel(_text_config(sizes.text, sizes.text_layers, tokenizer))


def make_contrastive(sizes: Sizes, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A CLIP of its own, for measuring: it scores how well a picture fits a caption."""
    width = sizes.contrastive
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=sizes.contrastive_layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        projection_dim=width,
    )
    text = _text_config(width, sizes.text_layers, tokenizer)
    return CLIPModel(
        CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=width)
    )


def _text_config(width: int, layers: int, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def make_scheduler() -> DDIMScheduler:
    """DDIM with v-prediction and zero terminal SNR: the last time is pure noise, so white stays white."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """The padded tokens of ``captions``, int64 (n, 24)."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    )
    ids: torch.Tensor = encoded.input_ids
    return ids
