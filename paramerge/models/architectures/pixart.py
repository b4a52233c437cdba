"""PixArt and Sana: the keys and values of their cross attention are stacked, and q, k and v of the other."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable, triple
from paramerge.models.record import ArchitectureRecord
from paramerge.models.transformer_blocks import one_stack

_ATTENTION: dict[str, str | Layer] = {
    "attn.qkv": triple("attn1"),
    "attn.proj": "attn1.to_out.0",
    "cross_attn.q_linear": "attn2.to_q",
    "cross_attn.kv_linear": Layer(("attn2.to_k", "attn2.to_v")),
    "cross_attn.proj": "attn2.to_out.0",
    "scale_shift_table": "scale_shift_table",
}
_CAPTION: dict[str, str | Layer] = {
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.scale_shift_table": "scale_shift_table",
}


def _embedder(single: str, diffusers: str) -> dict[str, str | Layer]:
    return {f"{single}.mlp.0": f"{diffusers}.linear_1", f"{single}.mlp.2": f"{diffusers}.linear_2"}


KEY_MAP = LayerTable(
    {
        "x_embedder.proj": "pos_embed.proj",
        **_embedder("t_embedder", "adaln_single.emb.timestep_embedder"),
        **_embedder("csize_embedder", "adaln_single.emb.resolution_embedder"),
        **_embedder("ar_embedder", "adaln_single.emb.aspect_ratio_embedder"),
        "t_block.1": "adaln_single.linear",
        **_CAPTION,
    },
    (
        Blocks(
            "blocks",
            "transformer_blocks",
            {**_ATTENTION, "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"},
        ),
    ),
)
SANA = LayerTable(
    {
        "x_embedder.proj": "patch_embed.proj",
        **_embedder("t_embedder", "time_embed.emb.timestep_embedder"),
        "t_block.1": "time_embed.linear",
        "attention_y_norm": "caption_norm",
        **_CAPTION,
    },
    (
        Blocks(
            "blocks",
            "transformer_blocks",
            {
                **_ATTENTION,
                "mlp.inverted_conv.conv": "ff.conv_inverted",
                "mlp.depth_conv.conv": "ff.conv_depth",
                "mlp.point_conv.conv": "ff.conv_point",
            },
        ),
    ),
)

_CROSS = r"\bblocks\.\d+\.cross_attn\.kv_linear\."
RECORDS = (
    ArchitectureRecord(
        "sana",
        label="Sana",
        patterns=(
            r"\bblocks\.\d+\.mlp\.inverted_conv\.|\btransformer_blocks\.\d+\.ff\.conv_inverted\.",
            r"\b(attention_y_norm|caption_norm)\.",
        ),
        blocks=one_stack(28, depths=(20,)),
        key_map=SANA,
        modelspec_read=("sana",),
    ),
    ArchitectureRecord(
        "pixart",
        label="PixArt",
        patterns=(
            rf"{_CROSS}|\badaln_single\.emb\.timestep_embedder\.",
            r"\b(y_embedder\.y_proj|caption_projection)\.",
            r"\bx_embedder\.proj\.|\bpos_embed\.proj\.",
        ),
        blocks=one_stack(28),
        key_map=KEY_MAP,
        modelspec_read=("pixart",),
    ),
)
