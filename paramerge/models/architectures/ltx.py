"""LTX-Video and LTX-2: a few words of the outer layers, and of norms, differ between the layouts."""

from __future__ import annotations

from collections.abc import Iterable

from paramerge.models.key_map import Blocks, Layer, LayerTable
from paramerge.models.record import ArchitectureRecord
from paramerge.models.transformer_blocks import one_stack

Layers = dict[str, str | Layer]
_PARTS = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")


def _same(names: Iterable[str]) -> Layers:
    return {name: name for name in names}


def _modulation(single: str, diffusers: str) -> Layers:
    return {f"{single}.{part}": f"{diffusers}.{part}" for part in _PARTS}


def _attention(name: str) -> Layers:
    return {
        **_same(f"{name}.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")),
        f"{name}.q_norm": f"{name}.norm_q",
        f"{name}.k_norm": f"{name}.norm_k",
    }


_CAPTION = ("caption_projection.linear_1", "caption_projection.linear_2")
KEY_MAP = LayerTable(
    {
        "patchify_proj": "proj_in",
        **_modulation("adaln_single", "time_embed"),
        **_same((*_CAPTION, "proj_out", "scale_shift_table")),
    },
    (
        Blocks(
            "transformer_blocks",
            "transformer_blocks",
            {
                **_attention("attn1"),
                **_attention("attn2"),
                **_same(("ff.net.0.proj", "ff.net.2", "scale_shift_table")),
            },
        ),
    ),
)

_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_SECOND: Layers = {}
for _name in _ATTENTIONS:
    _SECOND |= _attention(_name)
_SECOND |= _same(
    ("ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2", "scale_shift_table",
     "audio_scale_shift_table", "prompt_scale_shift_table", "audio_prompt_scale_shift_table")
)  # fmt: skip
_SECOND |= {
    f"scale_shift_table_a2v_ca_{way}": f"{way}_a2v_cross_attn_scale_shift_table" for way in ("video", "audio")
}
KEY_MAP_2 = LayerTable(
    {
        "patchify_proj": "proj_in",
        "audio_patchify_proj": "audio_proj_in",
        **_modulation("adaln_single", "time_embed"),
        **_modulation("audio_adaln_single", "audio_time_embed"),
        **_modulation("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
        **_modulation("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
        **_modulation("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
        **_modulation("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
        **_same((*_CAPTION, *(f"audio_{name}" for name in _CAPTION))),
        **_same(("proj_out", "audio_proj_out", "scale_shift_table", "audio_scale_shift_table")),
    },
    (Blocks("transformer_blocks", "transformer_blocks", _SECOND),),
)

_BLOCKS = r"\btransformer_blocks\.\d+\.attn1\.(q_norm|norm_q)\."
RECORDS = (
    ArchitectureRecord(
        "ltx2",
        label="LTX-2",
        patterns=(r"\baudio_(patchify_proj|proj_in)\.", r"\btransformer_blocks\.\d+\.audio_attn1\."),
        blocks=one_stack(48),
        key_map=KEY_MAP_2,
        modelspec_read=("ltx-2", "ltx2"),
    ),
    ArchitectureRecord(
        "ltx",
        label="LTX-Video",
        patterns=(_BLOCKS, r"\bpatchify_proj\.|\btime_embed\.emb\.timestep_embedder\."),
        blocks=one_stack(48, depths=(28,)),
        key_map=KEY_MAP,
        like_it=("ltx2",),
        modelspec_read=("ltx",),
    ),
)
