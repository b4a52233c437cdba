"""Extracting and converting where names are the checkpoint's own: a sharded language model."""

from __future__ import annotations

from pathlib import Path

import model_zoo as zoo
import numpy as np
import torch

from paramerge.apply.steps import BakeOptions, Step
from paramerge.bake.bake import bake
from paramerge.bake.plan import make_plan
from paramerge.checkpoints.layout import open_base
from paramerge.convert.convert import convert
from paramerge.convert.request import ConvertOptions
from paramerge.extract.extract import extract
from paramerge.extract.families import ExtractOptions
from paramerge.formats import open_adapter
from paramerge.merge.request import Input


def baked(base: Path, adapter: Path, output: Path) -> Path:
    opened = [(Step("lora", adapter), open_adapter(adapter))]
    return bake(make_plan(open_base(base), opened, BakeOptions()), output).output


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def test_a_lora_is_extracted_converted_and_baked_name_for_name(tmp_path: Path) -> None:
    model = zoo.random_model("llama")
    model.save_pretrained(tmp_path / "base", max_shard_size="40KB")
    adapted = zoo.with_lora(model, "llama")
    adapted.save_pretrained(tmp_path / "lora")
    tuned = baked(tmp_path / "base", tmp_path / "lora", tmp_path / "tuned")
    rank = max(module.rank for module in open_adapter(tmp_path / "lora").modules.values())

    found = tmp_path / "found.safetensors"
    extract(open_base(tuned), open_base(tmp_path / "base"), found, ExtractOptions("lora", rank=rank))
    bare = tmp_path / "bare.safetensors"
    opened = open_adapter(found)
    convert([Input(found)], [opened], bare, ConvertOptions("diffusers"), open_base(tmp_path / "base"))

    before, wanted = weights(tmp_path / "base"), weights(tuned)
    changed = {key for key, value in wanted.items() if not np.array_equal(value, before[key])}
    assert changed
    for name, adapter in (("again", found), ("converted", bare)):
        result = weights(baked(tmp_path / "base", adapter, tmp_path / name))
        for key, value in wanted.items():
            if key not in changed:
                assert np.array_equal(result[key], value), key
                continue
            step = np.linalg.norm(value - before[key])
            # factors are stored in float16
            assert np.linalg.norm(result[key] - value) < 4 * torch.finfo(torch.float16).eps * step, key
