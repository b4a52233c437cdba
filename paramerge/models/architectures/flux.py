"""FLUX.1: single files, kohya's and ComfyUI's adapters stack projections, diffusers has them one by one.

q, k and v are stacked, and in the single blocks the MLP's first layer below them. One layer, the last
modulation, has its two halves (shift and scale) the other way round in diffusers.
"""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable, scale, triple
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.resemblance import DIFFUSION_TRANSFORMER, FLUX_LIKE, T5_ENCODER
from paramerge.models.transformer_blocks import double_and_single

DOUBLE = Blocks(
    "double_blocks",
    "transformer_blocks",
    {
        "img_attn.qkv": triple("attn", rows="square"),
        "txt_attn.qkv": triple("attn", "add_{}_proj", "square"),
        "img_attn.proj": "attn.to_out.0",
        "txt_attn.proj": "attn.to_add_out",
        "img_mlp.0": "ff.net.0.proj",
        "img_mlp.2": "ff.net.2",
        "txt_mlp.0": "ff_context.net.0.proj",
        "txt_mlp.2": "ff_context.net.2",
        "img_mod.lin": "norm1.linear",
        "txt_mod.lin": "norm1_context.linear",
        "img_attn.norm.query_norm": scale("attn.norm_q"),
        "img_attn.norm.key_norm": scale("attn.norm_k"),
        "txt_attn.norm.query_norm": scale("attn.norm_added_q"),
        "txt_attn.norm.key_norm": scale("attn.norm_added_k"),
    },
)
SINGLE = Blocks(
    "single_blocks",
    "single_transformer_blocks",
    {
        "linear1": Layer(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "square"),
        "linear2": "proj_out",
        "modulation.lin": "norm.linear",
        "norm.query_norm": scale("attn.norm_q"),
        "norm.key_norm": scale("attn.norm_k"),
    },
)
_OUTSIDE: dict[str, str | Layer] = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": Layer(("norm_out.linear",), swapped=True),
}
KEY_MAP = LayerTable(_OUTSIDE, (DOUBLE, SINGLE))

_STREAMS = {"1": ("to_{}", "attn.to_out.0"), "2": ("add_{}_proj", "attn.to_add_out")}
XLABS = LayerTable(
    {},
    (
        Blocks(
            "double_blocks",
            "transformer_blocks",
            {
                f"processor.{layer}_lora{stream}": triple("attn", names, "square") if layer == "qkv" else out
                for stream, (names, out) in _STREAMS.items()
                for layer in ("qkv", "proj")
            },
        ),
        Blocks(
            "single_blocks",
            "single_transformer_blocks",
            {"processor.qkv_lora": triple("attn", rows="square"), "processor.proj_lora": "proj_out"},
        ),
    ),
)
"""The layers of XLabs' adapters, which are of attention processors: no file of weights has them."""

RECORDS = (
    ArchitectureRecord(
        "flux",
        label="FLUX.1",
        patterns=(
            r"double_blocks\.\d+\.img_attn\.qkv\.|\btransformer_blocks\.\d+\.attn\.add_q_proj\.",
            r"single_blocks\.\d+\.linear1\.|single_transformer_blocks\.\d+\.proj_mlp\.",
            r"\b(vector_in\.in_layer|time_text_embed\.text_embedder\.linear_1)\.",
        ),
        blocks=double_and_single(19, 38),
        key_map=KEY_MAP,
        other_maps=(XLABS,),
        proportions={"linear1": 7, "img_mlp.0": 4, "txt_mlp.0": 4},
        like_it=("flux2", "chroma", "hunyuan-video", "hunyuan-video-1.5"),
        resembles=(FLUX_LIKE, DIFFUSION_TRANSFORMER, T5_ENCODER),
        modelspec_read=("flux-1",),
        kohya=KohyaNames(also=("flux1",)),
        kinds={
            ".ff_context.": "feed-forward",
            ".proj_mlp.": "feed-forward",
            ".norm.linear.": "modulation",
            ".norm1.linear.": "modulation",
            ".norm1_context.linear.": "modulation",
        },
        columns={
            "attn.to_q": "q",
            "attn.to_k": "k",
            "attn.to_v": "v",
            "attn.to_out.0": "out",
            "attn.add_q_proj": "text q",
            "attn.add_k_proj": "text k",
            "attn.add_v_proj": "text v",
            "attn.to_add_out": "text out",
            "ff_context.net.0.proj": "text ff 1",
            "ff_context.net.2": "text ff 2",
            "proj_mlp": "ff 1",
        },
    ),
)
