"""AuraFlow: the words differ between the layouts, and the last modulation is swapped in diffusers."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable
from paramerge.models.record import ArchitectureRecord
from paramerge.models.transformer_blocks import double_and_single

Layers = dict[str, str | Layer]


def _feed_forward(single: str, diffusers: str) -> Layers:
    words = {"c_fc1": "linear_1", "c_fc2": "linear_2", "c_proj": "out_projection"}
    return {f"{single}.{word}": f"{diffusers}.{name}" for word, name in words.items()}


def _attention(weights: str, names: str, out: str) -> Layers:
    return {
        **{f"attn.{weights}{letter}": f"attn.{names.format(letter)}" for letter in "qkv"},
        f"attn.{weights}o": f"attn.{out}",
    }


KEY_MAP = LayerTable(
    {
        "register_tokens": "register_tokens",
        "positional_encoding": "pos_embed.pos_embed",
        "init_x_linear": "pos_embed.proj",
        "cond_seq_linear": "context_embedder",
        "t_embedder.mlp.0": "time_step_proj.linear_1",
        "t_embedder.mlp.2": "time_step_proj.linear_2",
        "final_linear": "proj_out",
        "modF.1": Layer(("norm_out.linear",), swapped=True),
    },
    (
        Blocks(
            "double_layers",
            "joint_transformer_blocks",
            {
                **_feed_forward("mlpX", "ff"),
                **_feed_forward("mlpC", "ff_context"),
                "modX.1": "norm1.linear",
                "modC.1": "norm1_context.linear",
                **_attention("w2", "to_{}", "to_out.0"),
                **_attention("w1", "add_{}_proj", "to_add_out"),
            },
        ),
        Blocks(
            "single_layers",
            "single_transformer_blocks",
            {
                **_feed_forward("mlp", "ff"),
                "modCX.1": "norm1.linear",
                **_attention("w1", "to_{}", "to_out.0"),
            },
        ),
    ),
)

RECORDS = (
    ArchitectureRecord(
        "auraflow",
        label="AuraFlow",
        patterns=(
            r"double_layers\.\d+\.|\bjoint_transformer_blocks\.\d+\.",
            r"register_tokens|positional_encoding",
        ),
        blocks=double_and_single(4, 32, "joint_transformer_blocks"),
        key_map=KEY_MAP,
        modelspec_read=("auraflow",),
    ),
)
