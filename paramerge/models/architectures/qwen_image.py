"""Qwen-Image and -Edit, whose layers are called the same in both layouts, and 2.1, which has one stack."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.resemblance import DIFFUSION_TRANSFORMER, Resemblance
from paramerge.models.transformer_blocks import one_stack

_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.norm_q", "attn.norm_k")
_BOTH = ("time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
         "img_in", "norm_out.linear", "proj_out")  # fmt: skip
_LAYERS = (
    *_ATTENTION,
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "attn.norm_added_q",
    "attn.norm_added_k",
    "img_mod.1",
    "txt_mod.1",
    "img_mlp.net.0.proj",
    "img_mlp.net.2",
    "txt_mlp.net.0.proj",
    "txt_mlp.net.2",
)
KEY_MAP = LayerTable(
    {name: name for name in (*_BOTH, "txt_in", "txt_norm", "time_text_embed.addition_t_embedding")},
    (Blocks("transformer_blocks", "transformer_blocks", {name: name for name in _LAYERS}),),
)
KEY_MAP_2_1 = LayerTable(
    {
        name: name
        for name in (*_BOTH, "txt_in.text_norm", "txt_in.in_layer", "txt_in.out_layer", "modulation.1")
    },
    (
        Blocks(
            "transformer_blocks",
            "transformer_blocks",
            {
                **{name: name for name in (*_ATTENTION, "img_mlp.out")},
                "img_mlp.gate_up": Layer(("img_mlp.gate_layer", "img_mlp.proj")),
            },
        ),
    ),
)

RECORDS = (
    ArchitectureRecord(
        "qwen-image",
        label="Qwen-Image",
        patterns=(r"transformer_blocks\.\d+\.img_mod\.", r"\bimg_in\."),
        blocks=one_stack(60),
        key_map=KEY_MAP,
        resembles=(
            Resemblance("Qwen-Image", r"transformer_blocks[._]\d+[._](img|txt)_(mod|mlp)[._]"),
            DIFFUSION_TRANSFORMER,
        ),
        modelspec_read=("qwen-image",),
        kohya=KohyaNames(also=("qwen_image", "qwen-image")),
    ),
    ArchitectureRecord(
        "qwen-image-2.1",
        label="Qwen-Image 2.1",
        patterns=(r"transformer_blocks\.\d+\.img_mlp\.(gate_up|gate_layer)\.", r"\bimg_in\."),
        blocks=one_stack(32),
        key_map=KEY_MAP_2_1,
        resembles=(DIFFUSION_TRANSFORMER,),
        modelspec_read=("qwen-image-2.1",),
    ),
)
