"""Krea 2: the words differ between the layouts, and the tables of its modulations have other shapes."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable, scale
from paramerge.models.record import ArchitectureRecord
from paramerge.models.transformer_blocks import one_stack

_LAYERS: dict[str, str | Layer] = {
    "attn.wq": "attn.to_q",
    "attn.wk": "attn.to_k",
    "attn.wv": "attn.to_v",
    "attn.wo": "attn.to_out.0",
    "attn.gate": "attn.to_gate",
    "attn.qknorm.qnorm": scale("attn.norm_q"),
    "attn.qknorm.knorm": scale("attn.norm_k"),
    "mlp.gate": "ff.gate",
    "mlp.up": "ff.up",
    "mlp.down": "ff.down",
    "prenorm": scale("norm1"),
    "postnorm": scale("norm2"),
}
KEY_MAP = LayerTable(
    {
        "first": "img_in",
        "tmlp.0": "time_embed.linear_1",
        "tmlp.2": "time_embed.linear_2",
        "tproj.1": "time_mod_proj",
        "txtmlp.0": scale("txt_in.norm"),
        "txtmlp.1": "txt_in.linear_1",
        "txtmlp.3": "txt_in.linear_2",
        "txtfusion.projector": "text_fusion.projector",
        "last.linear": "final_layer.linear",
        "last.norm": scale("final_layer.norm"),
        "last.modulation.lin": "final_layer.scale_shift_table",
    },
    (
        Blocks("blocks", "transformer_blocks", {**_LAYERS, "mod.lin": "scale_shift_table"}),
        *(
            Blocks(f"txtfusion.{name}", f"text_fusion.{name}", _LAYERS)
            for name in ("layerwise_blocks", "refiner_blocks")
        ),
    ),
)

RECORDS = (
    ArchitectureRecord(
        "krea2",
        label="Krea 2",
        patterns=(
            r"\b(txtfusion|text_fusion)\.",
            r"\bblocks\.\d+\.attn\.wq\.|\btransformer_blocks\.\d+\.attn\.to_gate\.",
        ),
        blocks=one_stack(28),
        key_map=KEY_MAP,
        modelspec_read=("krea-2", "krea2"),
    ),
)
