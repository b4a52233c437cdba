"""Lumina Image 2.0: keys and values are shared by several queries, so that the stacked rows are unequal."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable, triple
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.transformer_blocks import one_stack

_EVERYWHERE: dict[str, str | Layer] = {
    "attention.qkv": triple("attn", rows="grouped"),
    "attention.out": "attn.to_out.0",
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
    "attention_norm2": "norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
}
_MODULATED = {**_EVERYWHERE, "attention_norm1": "norm1.norm", "adaLN_modulation.1": "norm1.linear"}
KEY_MAP = LayerTable(
    {
        "x_embedder": "x_embedder",
        "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
        "cap_embedder.0": "time_caption_embed.caption_embedder.0",
        "cap_embedder.1": "time_caption_embed.caption_embedder.1",
        "final_layer.adaLN_modulation.1": "norm_out.linear_1",
        "final_layer.linear": "norm_out.linear_2",
    },
    (
        Blocks("layers", "layers", _MODULATED),
        Blocks("noise_refiner", "noise_refiner", _MODULATED),
        Blocks("context_refiner", "context_refiner", {**_EVERYWHERE, "attention_norm1": "norm1"}),
    ),
)

RECORDS = (
    ArchitectureRecord(
        "lumina2",
        label="Lumina Image 2.0",
        patterns=(
            r"\b(cap_embedder|time_caption_embed)\.",
            r"\blayers\.\d+\.(adaLN_modulation\.1|norm1\.linear)\.",
        ),
        blocks=one_stack(26, "layers"),
        key_map=KEY_MAP,
        modelspec_read=("lumina-2", "lumina2"),
        kohya=KohyaNames(also=("lumina2",)),
    ),
)
