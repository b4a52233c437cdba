"""HiDream: its layers are called the same in both layouts."""

from __future__ import annotations

from collections.abc import Iterator

from paramerge.models.key_map import Blocks, LayerTable
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.transformer_blocks import double_and_single

_EXPERTS = 8
_LLAMA_LAYERS = 64
_ATTENTION = ("to_q", "to_k", "to_v", "to_out", "q_rms_norm", "k_rms_norm")


def _feed_forward(name: str) -> Iterator[str]:
    for weights in ("w1", "w2", "w3"):
        yield f"block.{name}.{weights}"


def _both_streams() -> Iterator[str]:
    yield "block.adaLN_modulation.1"
    yield from (f"block.attn1.{layer}" for layer in _ATTENTION)
    yield from _feed_forward("ff_i.shared_experts")
    for expert in range(_EXPERTS):
        yield from _feed_forward(f"ff_i.experts.{expert}")
    yield "block.ff_i.gate"


_SINGLE = tuple(_both_streams())
_DOUBLE = (*_SINGLE, *(f"block.attn1.{layer}_t" for layer in _ATTENTION), *_feed_forward("ff_t"))
_OUTSIDE = (
    "x_embedder.proj",
    *(f"t_embedder.timestep_embedder.linear_{n}" for n in (1, 2)),
    *(f"p_embedder.pooled_embedder.linear_{n}" for n in (1, 2)),
    *(f"caption_projection.{n}.linear" for n in range(_LLAMA_LAYERS)),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
KEY_MAP = LayerTable(
    {name: name for name in _OUTSIDE},
    (
        Blocks("double_stream_blocks", "double_stream_blocks", {name: name for name in _DOUBLE}),
        Blocks("single_stream_blocks", "single_stream_blocks", {name: name for name in _SINGLE}),
    ),
)

RECORDS = (
    ArchitectureRecord(
        "hidream",
        label="HiDream",
        patterns=(r"\bdouble_stream_blocks\.\d+\.block\.attn1\.",),
        blocks=double_and_single(16, 32, "double_stream_blocks", "single_stream_blocks"),
        key_map=KEY_MAP,
        modelspec_read=("hidream",),
        kohya=KohyaNames(also=("hidream",)),
    ),
)
