"""Stable Diffusion 3 and 3.5: diffusers swaps the last modulation, and that of the text in the last block."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable, triple
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.resemblance import DIFFUSION_TRANSFORMER, T5_ENCODER, Resemblance
from paramerge.models.transformer_blocks import one_stack

KEY_MAP = LayerTable(
    {
        "pos_embed": "pos_embed.pos_embed",
        "x_embedder.proj": "pos_embed.proj",
        "context_embedder": "context_embedder",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
        "final_layer.linear": "proj_out",
        "final_layer.adaLN_modulation.1": Layer(("norm_out.linear",), swapped=True),
    },
    (
        Blocks(
            "joint_blocks",
            "transformer_blocks",
            {
                "x_block.attn.qkv": triple("attn"),
                "x_block.attn.proj": "attn.to_out.0",
                "x_block.attn.ln_q": "attn.norm_q",
                "x_block.attn.ln_k": "attn.norm_k",
                "x_block.attn2.qkv": triple("attn2"),
                "x_block.attn2.proj": "attn2.to_out.0",
                "x_block.attn2.ln_q": "attn2.norm_q",
                "x_block.attn2.ln_k": "attn2.norm_k",
                "x_block.adaLN_modulation.1": "norm1.linear",
                "x_block.mlp.fc1": "ff.net.0.proj",
                "x_block.mlp.fc2": "ff.net.2",
                "context_block.attn.qkv": triple("attn", "add_{}_proj"),
                "context_block.attn.proj": "attn.to_add_out",
                "context_block.attn.ln_q": "attn.norm_added_q",
                "context_block.attn.ln_k": "attn.norm_added_k",
                "context_block.adaLN_modulation.1": Layer(("norm1_context.linear",), swapped="pair"),
                "context_block.mlp.fc1": "ff_context.net.0.proj",
                "context_block.mlp.fc2": "ff_context.net.2",
            },
        ),
    ),
)

RECORDS = (
    ArchitectureRecord(
        "sd3",
        label="Stable Diffusion 3",
        patterns=(r"joint_blocks\.\d+\.|\btransformer_blocks\.\d+\.norm1_context\.", r"\bpos_embed\b"),
        blocks=one_stack(38, depths=(24,)),
        key_map=KEY_MAP,
        resembles=(
            Resemblance("Stable Diffusion 3", r"joint_blocks[._]\d+[._]"),
            DIFFUSION_TRANSFORMER,
            T5_ENCODER,
        ),
        modelspec_read=("stable-diffusion-3",),
        kohya=KohyaNames(also=("sd3",)),
    ),
)
