"""Block weights of transformers: every layer is in a block, by either of its names."""

from __future__ import annotations

from pathlib import Path

import diffusion_transformers as small
import numpy as np
import pytest
from baking import plan_of
from checkpoint_files import write_holes
from dialect_files import SPELLINGS, write_lora
from lora_factors import factors_of
from single_files import namings, single_shapes

from paramerge.apply.steps import Step
from paramerge.models.key_map import single_key
from paramerge.models.names import ModuleName
from paramerge.models.registry import record_of
from paramerge.resolve.blocks import block_names, block_of, parse_blocks


@pytest.mark.parametrize("name", small.MODELS)
def test_every_layer_is_in_a_block_by_both_of_its_names(name: str) -> None:
    shapes = small.small_shapes(name)
    (key_map, *_) = namings(name, shapes)
    known = block_names(name)
    found = set()
    for key in shapes:
        path = key.removesuffix(".weight")
        block = block_of(ModuleName("transformer", path), name)
        single = str(single_key(key_map, key)).removesuffix(".weight").removesuffix(".scale")
        assert block in known
        assert block_of(ModuleName("transformer", single), name) == block
        found.add(block)
    assert len(found) >= 3 and "BASE" in found


@pytest.mark.parametrize("name", small.MODELS)
def test_a_vector_names_each_block_once(name: str) -> None:
    blocks = record_of(name).blocks
    assert blocks is not None
    for length, named in blocks.vectors.items():
        assert len(named) == length == len(set(named))
        assert set(named) <= set(blocks.names)
    assert set(blocks.names) in [set(named) for named in blocks.vectors.values()]


def test_a_flux_lora_without_its_single_blocks(tmp_path: Path) -> None:
    shapes = small.small_shapes("flux")
    key_map = namings("flux", shapes)[0]
    own, _ = factors_of(key_map, shapes)
    lora = write_lora(tmp_path / "l.safetensors", SPELLINGS["ai-toolkit"], own)
    base = write_holes(tmp_path / "base.safetensors", single_shapes(key_map, shapes), "F32")
    step = Step("lora", lora, 1.0, parse_blocks("SB=0,DB01=0.5"))
    plan = plan_of(base, step)
    strengths = {edit.target.key: np.unique([op.strength for op in edit.ops]) for edit in plan.edits}
    assert not any(key.startswith("single_blocks.") for key in strengths)
    assert strengths["double_blocks.0.img_attn.qkv.weight"] == [1.0]
    assert strengths["double_blocks.1.txt_mlp.2.weight"] == [0.5]


@pytest.mark.parametrize("only", ["transformer.double_blocks.0*", "transformer.transformer_blocks.0.*"])
def test_a_pattern_may_be_of_either_naming(only: str, tmp_path: Path) -> None:
    shapes = small.small_shapes("flux")
    key_map = namings("flux", shapes)[0]
    own, _ = factors_of(key_map, shapes)
    lora = write_lora(tmp_path / "l.safetensors", SPELLINGS["diffusers, SimpleTuner"], own)
    base = write_holes(tmp_path / "base.safetensors", single_shapes(key_map, shapes), "F32")
    keys = {edit.target.key for edit in plan_of(base, Step("lora", lora), only=(only,)).edits}
    assert keys and all(key.startswith("double_blocks.0.") for key in keys)
