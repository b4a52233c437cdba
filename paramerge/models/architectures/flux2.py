"""FLUX.2: one modulation for all blocks of a kind, and single blocks that are stacked in diffusers, too."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable, scale, triple
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.resemblance import DIFFUSION_TRANSFORMER, FLUX_LIKE
from paramerge.models.transformer_blocks import double_and_single

KEY_MAP = LayerTable(
    {
        "img_in": "x_embedder",
        "txt_in": "context_embedder",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
        "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
        "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
        "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
        "single_stream_modulation.lin": "single_stream_modulation.linear",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": Layer(("norm_out.linear",), swapped=True),
    },
    (
        Blocks(
            "double_blocks",
            "transformer_blocks",
            {
                "img_attn.qkv": triple("attn"),
                "txt_attn.qkv": triple("attn", "add_{}_proj"),
                "img_attn.proj": "attn.to_out.0",
                "txt_attn.proj": "attn.to_add_out",
                "img_attn.norm.query_norm": scale("attn.norm_q"),
                "img_attn.norm.key_norm": scale("attn.norm_k"),
                "txt_attn.norm.query_norm": scale("attn.norm_added_q"),
                "txt_attn.norm.key_norm": scale("attn.norm_added_k"),
                "img_mlp.0": "ff.linear_in",
                "img_mlp.2": "ff.linear_out",
                "txt_mlp.0": "ff_context.linear_in",
                "txt_mlp.2": "ff_context.linear_out",
            },
        ),
        Blocks(
            "single_blocks",
            "single_transformer_blocks",
            {
                "linear1": "attn.to_qkv_mlp_proj",
                "linear2": "attn.to_out",
                "norm.query_norm": scale("attn.norm_q"),
                "norm.key_norm": scale("attn.norm_k"),
            },
        ),
    ),
)

RECORDS = (
    ArchitectureRecord(
        "flux2",
        label="FLUX.2",
        patterns=(r"double_stream_modulation_img\.lin(ear)?\.",),
        blocks=double_and_single(8, 48),
        key_map=KEY_MAP,
        proportions={"linear1": 9, "img_mlp.0": 6, "txt_mlp.0": 6},
        resembles=(FLUX_LIKE, DIFFUSION_TRANSFORMER),
        modelspec_read=("flux-2", "flux2"),
        kohya=KohyaNames(also=("flux2",)),
    ),
)
