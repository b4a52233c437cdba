"""Keys of thirty thousand characters, made to look like a family's, are sorted in time linear in them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from paramerge.files.header import TensorInfo
from paramerge.formats import families, peft
from paramerge.formats.roles import read_role

_UNITS = [
    *(".oft_R", ".oft_r", ".dora_scale", ".magnitude", ".deft_x", "_deft_x.", ".lora_magnitude_vector"),
    *(".oft_embedding_R", ".lora_A.default", ".trainable_tokens_a", "motion_modules.", "control", "\n"),
    *(
        "controlnet_a.",
        ".to_q_lora",
        ".lora_up.weight",
        "down_blocks.0.",
        "encoder.down.",
        "decoder.up.x.weight",
    ),
    *("a", "a.", "_", "lora_unet_", "layers_0_", ".processor", "0."),
]


@pytest.mark.parametrize("unit", _UNITS)
def test_long_keys_are_sorted_in_linear_time(unit):
    for key in (unit * (30_000 // len(unit)) + end for end in ("", "!", "\n", ".weight")):
        families.survey(SimpleNamespace(tensors={key: TensorInfo(key, "F32", (0,), 0, 0)}))
        families.adapter_keys([key])
        peft.leftover_reason(key)
        read_role(key)
