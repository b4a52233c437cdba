"""Z-Image: its blocks have the same names in both layouts, but for the stacked attention of single files."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable, triple
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.transformer_blocks import Kind, numbered_blocks

_SAME = (
    "feed_forward.w1",
    "feed_forward.w2",
    "feed_forward.w3",
    "attention_norm1",
    "attention_norm2",
    "ffn_norm1",
    "ffn_norm2",
    "adaLN_modulation.0",
)
_LAYERS: dict[str, str | Layer] = {
    "attention.qkv": triple("attention"),
    "attention.out": "attention.to_out.0",
    "attention.q_norm": "attention.norm_q",
    "attention.k_norm": "attention.norm_k",
    **{name: name for name in _SAME},
}
_OUTSIDE = ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1", "x_pad_token")
KEY_MAP = LayerTable(
    {
        "x_embedder": "all_x_embedder.2-1",
        "final_layer.linear": "all_final_layer.2-1.linear",
        "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
        "cap_pad_token": "cap_pad_token",
        **{name: name for name in _OUTSIDE},
    },
    tuple(Blocks(name, name, _LAYERS) for name in ("layers", "noise_refiner", "context_refiner")),
)

AS_UNDERSCORES_WERE_READ = LayerTable(
    {},
    tuple(
        Blocks(name, name, {f"attention.to.{letter}": f"attention.to_{letter}" for letter in "qkv"})
        for name in ("layers", "noise_refiner", "context_refiner")
    ),
)
"""Names of adapters whose trainer took all underscores for dots: no file of weights has them."""

RECORDS = (
    ArchitectureRecord(
        "z-image",
        label="Z-Image",
        patterns=(r"\bcap_embedder\.", r"\blayers\.\d+\.attention\.(qkv|to_q)\."),
        blocks=numbered_blocks(
            Kind("NR", "noise_refiner", 2), Kind("CR", "context_refiner", 2), Kind("TB", "layers", 30)
        ),
        key_map=KEY_MAP,
        other_maps=(AS_UNDERSCORES_WERE_READ,),
        modelspec_read=("z-image", "zimage"),
        kohya=KohyaNames(also=("zimage", "z-image", "z_image"), diffusers=True),
    ),
)
