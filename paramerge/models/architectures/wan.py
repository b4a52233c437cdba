"""Wan 2.1 and 2.2: the words differ between the layouts, and nothing is stacked. 2.2 has two transformers."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.resemblance import VIDEO_TRANSFORMER
from paramerge.models.transformer_blocks import one_stack

_WORDS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_OF_PICTURES = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_LAYERS: dict[str, str | Layer] = {
    **{f"self_attn.{single}": f"attn1.{name}" for single, name in _WORDS.items()},
    **{f"cross_attn.{single}": f"attn2.{name}" for single, name in {**_WORDS, **_OF_PICTURES}.items()},
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",
    "modulation": "scale_shift_table",
}
_WITH_CONTROL: dict[str, str | Layer] = {**_LAYERS, "before_proj": "proj_in", "after_proj": "proj_out"}
KEY_MAP = LayerTable(
    {
        "patch_embedding": "patch_embedding",
        "vace_patch_embedding": "vace_patch_embedding",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
        "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
        "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
        "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
        "head.head": "proj_out",
        "head.modulation": "scale_shift_table",
    },
    (Blocks("blocks", "blocks", _LAYERS), Blocks("vace_blocks", "vace_blocks", _WITH_CONTROL)),
)

RECORDS = (
    ArchitectureRecord(
        "wan",
        label="Wan",
        patterns=(r"blocks\.\d+\.(self_attn\.norm_q|attn1\.norm_q)\.", r"patch_embedding\."),
        blocks=one_stack(40, "blocks", depths=(30,)),
        key_map=KEY_MAP,
        resembles=(VIDEO_TRANSFORMER,),
        modelspec_read=("wan",),
        kohya=KohyaNames(also=("wan",)),
    ),
)
