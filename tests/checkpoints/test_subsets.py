"""The paper's parameter subsets: their layers on SDXL, and the sizes that its Table 3 prints."""

from __future__ import annotations

import math
import re

import pytest
from blueprints import sdxl

from paramerge.algebra.boundary import adjusted_rank
from paramerge.errors import UsageError
from paramerge.models.blueprint_inventory import unet_shapes
from paramerge.models.subsets import PAPER_GAMMA, SUBSETS, in_subset, select, subset

LAYERS = {
    key.removesuffix(".weight"): shape
    for key, shape in unet_shapes(sdxl().unet)
    if key.endswith(".weight") and len(shape) > 1
}
COUNTS = {
    "ex-ca": 346,
    "ex-sa-table": 346,
    "ex-sa": 346,
    "sao": 280,
    "cao": 280,
    "fmt": 626,
    "sca": 210,
    "sca-qk": 140,
    "ex-ca-hl": 46,
    "ex-ca-hl-last": 1,
}
PRINTED = {  # MiB of PaRa and LoRA at r = 2, 16 and 128
    "ex-ca": ((1.8, 13, 87), (4.8, 33, 190)),
    "ex-sa-table": ((1.9, 13, 87), (4.8, 33, 190)),
    "sao": ((1.6, 11, 82), (3.1, 21, 163)),
    "cao": ((1.6, 11, 82), (3.5, 25, 193)),
    "fmt": ((3.4, 23, 169), (8.2, 58, 382)),
    "sca": ((1.2, 7.9, 62), (2.8, 20, 152)),
    "ex-ca-hl": ((276 / 1024, 1.9, 14), (700 / 1024, 5.0, 30)),
}


@pytest.mark.parametrize("name", SUBSETS)
def test_the_number_of_layers_on_sdxl(name):
    assert len(select(name, LAYERS)) == COUNTS[name]


def test_exclude_self_attention_is_two_things():
    printed, said = set(select("ex-sa-table", LAYERS)), set(select("ex-sa", LAYERS))
    assert printed == set(select("ex-ca", LAYERS))
    assert any(".attn1." in path for path in printed)
    assert not any(".attn2." in path for path in printed)
    assert any(".attn2." in path for path in said)
    assert not any(".attn1." in path for path in said)
    assert subset("ExSA").name == "ex-sa-table"  # the paper's label is the paper's row


def test_what_is_in_no_subset():
    outside = ("conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2")
    block = "mid_block.attentions.0"
    outside += (f"{block}.proj_in", f"{block}.proj_out", f"{block}.transformer_blocks.0.ff.net.0.proj")
    assert set(outside) <= LAYERS.keys()
    assert not [(name, path) for name in SUBSETS for path in outside if in_subset(name, path)]


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.parametrize(("rank", "column"), [(2, 0), (16, 1), (128, 2)])
def test_the_sizes_of_table_3(name, rank, column):
    """In fp16, with the boundary on convolutions; the paper prints file sizes, rounded up as ``ls -h`` does.

    A file adds at most 1 KiB a layer to PaRa's one tensor, and 2 KiB to LoRA's up, down and alpha.
    """
    para = lora = 0
    chosen = select(name, LAYERS)
    for path in chosen:
        out, inner = LAYERS[path][0], math.prod(LAYERS[path][1:])
        limited = adjusted_rank(rank, PAPER_GAMMA, min(out, inner)) if len(LAYERS[path]) == 4 else rank
        para += 2 * out * limited
        lora += 2 * limited * (out + inner)
    for size, overhead, printed in zip((para, lora), (1, 2), PRINTED[name], strict=True):
        stated = printed[column]
        unit = 1 if stated >= 10 else 0.1 if stated >= 1 else 1 / 1024
        assert size / 2**20 <= stated <= (size + len(chosen) * overhead * 1024) / 2**20 + unit


def test_patterns_are_target_modules_of_peft():
    """PEFT matches a string against whole names; a nested model's prefix is allowed, a longer word is not."""
    assert re.fullmatch(subset("sao").pattern, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    assert not re.fullmatch(subset("sao").pattern, "x.attn1.to_q.base_layer")
    assert not re.fullmatch(subset("sao").pattern, "x.notattn1.to_q")
    assert not re.fullmatch(subset("ex-ca-hl").pattern, "down_blocks.0.mid_block.resnets.0.conv1")


def test_an_unknown_subset_and_an_empty_one():
    with pytest.raises(UsageError, match="no such subset"):
        subset("all")
    with pytest.raises(UsageError, match="none of these layers"):
        select("cao", ["unet.mid_block.resnets.0.conv1"])
