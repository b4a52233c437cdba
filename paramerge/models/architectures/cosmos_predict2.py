"""Cosmos-Predict2 and Anima, which is made from it: the words differ between the layouts."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, LayerTable
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.resemblance import VIDEO_TRANSFORMER
from paramerge.models.transformer_blocks import one_stack

_ATTENTION = {
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "output_proj": "to_out.0",
    "q_norm": "norm_q",
    "k_norm": "norm_k",
}
_MODULATIONS = {"self_attn": "norm1", "cross_attn": "norm2", "mlp": "norm3"}
KEY_MAP = LayerTable(
    {
        "x_embedder.proj.1": "patch_embed.proj",
        "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
        "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
        "t_embedding_norm": "time_embed.norm",
        "final_layer.adaln_modulation.1": "norm_out.linear_1",
        "final_layer.adaln_modulation.2": "norm_out.linear_2",
        "final_layer.linear": "proj_out",
    },
    (
        Blocks(
            "blocks",
            "transformer_blocks",
            {
                **{f"self_attn.{single}": f"attn1.{name}" for single, name in _ATTENTION.items()},
                **{f"cross_attn.{single}": f"attn2.{name}" for single, name in _ATTENTION.items()},
                "mlp.layer1": "ff.net.0.proj",
                "mlp.layer2": "ff.net.2",
                **{
                    f"adaln_modulation_{of}.{n}": f"{norm}.linear_{n}"
                    for of, norm in _MODULATIONS.items()
                    for n in (1, 2)
                },
            },
        ),
    ),
)

_COSMOS = ArchitectureRecord(
    "cosmos-predict2",
    label="Cosmos-Predict2",
    patterns=(r"\bblocks\.\d+\.adaln_modulation_self_attn\.|\btransformer_blocks\.\d+\.norm3\.linear_2\.",),
    blocks=one_stack(36, depths=(28,)),
    key_map=KEY_MAP,
    resembles=(VIDEO_TRANSFORMER,),
)
RECORDS = (
    _COSMOS.variant(
        "anima",
        label="Anima",
        patterns=(*_COSMOS.patterns, r"\bllm_adapter\."),
        like_it=("cosmos-predict2",),
        modelspec_read=("anima",),
        kohya=KohyaNames(also=("anima",)),
    ),
    _COSMOS,
)
