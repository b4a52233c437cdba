"""Models of which only the name and keys are known: their layers go by the names that their files have.

An architecture of which more becomes known gets a file of its own.
"""

from __future__ import annotations

from paramerge.models.names import MODEL
from paramerge.models.record import ArchitectureRecord
from paramerge.models.resemblance import VIDEO_TRANSFORMER

_RECORDS = (
    ArchitectureRecord(
        "pixart-or-sana",
        label="PixArt or Sana",
        modelspec_read=("pixart-or-sana",),
        patterns=(r"adaln_single\.|blocks\.\d+\.cross_attn\.(q|kv)_linear\.",),
        vague=True,
    ),
    ArchitectureRecord(
        "hunyuan-dit",
        label="Hunyuan-DiT",
        patterns=(r"blocks\.\d+\.(attn2\.kv_proj|default_modulation)\.",),
        resembles=(VIDEO_TRANSFORMER,),
    ),
    ArchitectureRecord(
        "lumina-or-z-image",
        label="Lumina or Z-Image",
        patterns=(r"cap_embedder\.|noise_refiner\.\d+\.", r"\blayers\.\d+\."),
        vague=True,
    ),
    ArchitectureRecord(
        "stable-cascade",
        label="Stable Cascade",
        patterns=(r"down_blocks\.\d+\.\d+\.channelwise\.|clip_txt_mapper\.",),
        beside_unet=True,
    ),
    ArchitectureRecord(
        "svd",
        label="Stable Video Diffusion",
        component="unet",
        patterns=(r"\.time_stack\.|\.time_mixer\.|\.spatial_res_block\.",),
        beside_unet=True,
    ),
    ArchitectureRecord(
        "diffusion-transformer",
        label="a diffusion transformer of another kind",
        patterns=(
            r"^([\w.]*\.)?transformer_blocks\.\d+\.(scale_shift_table$|attn1?\.to_q\.)|patchify_proj\.",
        ),
        vague=True,
    ),
    ArchitectureRecord(
        "language-model",
        label="a language model",
        component=MODEL,
        patterns=(
            r"layers\.\d+\.self_attn\.q_proj\.|\bh\.\d+\.attn\.c_attn\.",
            r"\b(embed_tokens|wte)\.weight$",
        ),
        vague=True,
    ),
    ArchitectureRecord(
        "minimax_h3", label="MiniMax H3", unordered_rows=r"(?:.*\.)?qkv_proj(?:\.weight|\.bias)?"
    ),
)
OTHERS = {record.name: record for record in _RECORDS}
"""By name. MiniMax H3 is known by the name in its configuration: the model's own files interleave q, k and v
head by head, and most of its adapters stack them: all of q, then k, then v."""
