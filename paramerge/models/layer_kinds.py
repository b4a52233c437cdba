"""Kinds of layers, for reports: those of many models here, those of one architecture in its record."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from paramerge.kinds import followed
from paramerge.models.names import ModuleName
from paramerge.models.registry import records

_KINDS = {
    ".attn1.": "self-attention",
    ".attn2.": "cross-attention",
    ".cross_attn.": "cross-attention",
    ".encdecattention.": "cross-attention",
    ".selfattention.": "self-attention",
    ".attn.": "attention",
    ".self_attn.": "self-attention",
    ".ff.": "feed-forward",
    ".mlp.": "feed-forward",
    ".ffn.": "feed-forward",
    ".densereludense.": "feed-forward",
    ".resnets.": "resnet",
    ".downsamplers.": "resampling",
    ".upsamplers.": "resampling",
    ".proj_in.": "transformer in/out",
    ".proj_out.": "transformer in/out",
    "_embedding.": "embedding",
    ".conv_in.": "input/output",
    ".conv_out.": "input/output",
    ".text_projection.": "projection",
}
"""Parts of a layer's path and the kind that each means; the first that is there counts."""

_COLUMNS = {
    "conv_in": "conv",
    "conv_out": "conv",
    "linear_1": "fc1",
    "linear_2": "fc2",
    "conv1": "conv1",
    "conv2": "conv2",
    "time_emb_proj": "time",
    "conv_shortcut": "skip",
    "downsamplers.0.conv": "resample",
    "upsamplers.0.conv": "resample",
    "proj_in": "proj in",
    "attn1.to_q": "self q",
    "attn1.to_k": "self k",
    "attn1.to_v": "self v",
    "attn1.to_out.0": "self out",
    "attn2.to_q": "cross q",
    "attn2.to_k": "cross k",
    "attn2.to_v": "cross v",
    "attn2.to_out.0": "cross out",
    "ff.net.0.proj": "ff 1",
    "ff.net.2": "ff 2",
    "proj_out": "proj out",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "out",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
    "text_projection": "proj",
    "self_attn.o_proj": "out",
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
}
"""The end of a layer's path and its column, in the order of the columns."""


def layer_kind(name: ModuleName) -> str:
    """The kind of a layer, for reports: ``self-attention``, ``feed-forward``, ``resnet`` ..."""
    if name.path.endswith((".weight", ".bias")):
        return "norm or bias" if "embeddings." not in name.path else "embedding"
    for pattern, kind in _kinds().items():
        if pattern in f".{name.path}.".lower():
            return kind
    return "other"


@followed
@cache
def _kinds() -> Mapping[str, str]:
    own = {words: kind for record in records() for words, kind in record.kinds.items()}
    return {**_KINDS, **{words: kind for words, kind in own.items() if words not in _KINDS}}


@followed
@cache
def columns() -> Mapping[str, str]:
    """The ends of layers' paths and their titles above a column, in the order of the columns."""
    own = {end: title for record in records() for end, title in record.columns.items()}
    return {**_COLUMNS, **{end: title for end, title in own.items() if end not in _COLUMNS}}
