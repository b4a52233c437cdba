"""Chroma, made from FLUX.1: its blocks without their modulations, which one network makes for all of them."""

from __future__ import annotations

from paramerge.models.architectures import flux
from paramerge.models.key_map import Blocks, LayerTable, scale
from paramerge.models.record import ArchitectureRecord
from paramerge.models.resemblance import DIFFUSION_TRANSFORMER, FLUX_LIKE, T5_ENCODER
from paramerge.models.transformer_blocks import double_and_single

_GUIDANCE = "distilled_guidance_layer"
KEY_MAP = LayerTable(
    {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        f"{_GUIDANCE}.in_proj": f"{_GUIDANCE}.in_proj",
        f"{_GUIDANCE}.out_proj": f"{_GUIDANCE}.out_proj",
        **{f"{_GUIDANCE}.norms.{n}": scale(f"{_GUIDANCE}.norms.{n}") for n in range(8)},
        "final_layer.linear": "proj_out",
    },
    (
        flux.DOUBLE.without("img_mod.lin", "txt_mod.lin"),
        flux.SINGLE.without("modulation.lin"),
        Blocks(
            f"{_GUIDANCE}.layers",
            f"{_GUIDANCE}.layers",
            {"in_layer": "linear_1", "out_layer": "linear_2"},
        ),
    ),
)

RECORDS = (
    ArchitectureRecord(
        "chroma",
        label="Chroma",
        patterns=(
            r"distilled_guidance_layer\.",
            r"\b(double|transformer)_blocks\.\d+\.(img_)?attn\.",
        ),
        blocks=double_and_single(19, 38),
        key_map=KEY_MAP,
        resembles=(FLUX_LIKE, DIFFUSION_TRANSFORMER, T5_ENCODER),
        modelspec_read=("chroma",),
    ),
)
