"""Packages that add kinds, and the other files of a folder, in recipes: named, checked, and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from baking import load, lora_file, random_factors, shapes_of, small_model
from random_recipes import write_inputs
from toy_packages import HALFWAY, ROWGAIN, run

import paramerge as pm
from paramerge.errors import PluginError
from paramerge.files.writer import write_safetensors
from paramerge.replay.call import plan_replay

KEY = "paramerge.recipe"
STEM = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "base.safetensors", dtype="F16")


def packages(path: Path) -> object:
    return json.loads(load(path).metadata[KEY]).get("packages")


def test_a_package_that_a_bake_needs(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(0, 0.3, shapes_of(base)[LAYER][0]).astype(np.float32)
    gains, out = tmp_path / "gains.safetensors", tmp_path / "out.safetensors"
    write_safetensors(gains, {f"{STEM}.row_gain.weight": values}, {"ss_base_model_version": "sd_v1"})
    with ROWGAIN.installed(tmp_path / "site-packages"):
        pm.bake(base, [gains], out)
        assert packages(out) == {"paramerge-rowgain": "1.0"}
        pm.replay(out, tmp_path / "again.safetensors", models=[base.parent])
        assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()
        assert pm.verify(out, models=[base.parent]).verdict == "identical"
    with pytest.raises(PluginError, match=r"pip install paramerge-rowgain==1\.0"):
        pm.replay(out, tmp_path / "new.safetensors", models=[base.parent])
    code, text = run(capsys, "replay", out, "--models", base.parent, "-o", tmp_path / "new.safetensors")
    assert code == PluginError.exit_code and "pip install paramerge-rowgain==1.0" in text
    found = pm.verify(out, models=[base.parent])
    assert found.verdict == "cannot tell" and "pip install" in found.findings[0]
    with ROWGAIN.known(tmp_path / "other", "entry point"):
        metadata = tmp_path / "other" / "paramerge_rowgain-1.0.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("Version: 1.0", "Version: 2.0"))
        made = plan_replay(out, models=[base.parent])
        assert made.versions["paramerge-rowgain"] == ("1.0", "2.0")
    pm.bake(base, [pm.Adapter(lora_of(base, tmp_path))], tmp_path / "plain.safetensors")
    assert packages(tmp_path / "plain.safetensors") is None


def lora_of(base: Path, folder: Path) -> Path:
    return lora_file(folder / "l.safetensors", random_factors(shapes_of(base), [LAYER], 2))


def test_a_package_that_a_merge_needs(base: Path, tmp_path: Path) -> None:
    other = shutil.copyfile(base, tmp_path / "other.safetensors")
    with HALFWAY.installed(tmp_path / "site-packages"):
        pm.merge([base, other], tmp_path / "m.safetensors", method="halfway")
        assert packages(tmp_path / "m.safetensors") == {"paramerge-halfway": "1.0"}
        assert pm.verify(tmp_path / "m.safetensors", models=[base.parent]).verdict == "identical"
    with pytest.raises(PluginError, match="paramerge-halfway"):
        pm.replay(tmp_path / "m.safetensors", tmp_path / "n.safetensors")


def test_the_other_files_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of two folders with the same weights the one with the recipe's configurations is taken."""
    inputs = tmp_path / "inputs"
    write_inputs(inputs)
    config = inputs / "tree" / "unet" / "config.json"
    assert config.is_file()
    models = tmp_path / "models"
    for name in ("a-changed", "b-same", "c-changed"):
        shutil.copytree(inputs / "tree", models / name)
    for name in ("a-changed", "c-changed"):
        changed = models / name / "unet" / "config.json"
        changed.write_text(changed.read_text() + "\n")
    out, again = tmp_path / "out" / "model", tmp_path / "again" / "model"
    for path in (out, again):
        path.parent.mkdir()
    pm.bake(inputs / "tree", [inputs / "l.safetensors"], out)
    recipe = json.loads((out / "paramerge_recipe.json").read_text())
    assert {file["name"] for file in recipe["companions"]} >= {"unet/config.json", "model_index.json"}
    shutil.copyfile(inputs / "l.safetensors", models / "l.safetensors")
    made = plan_replay(out, models=[models])
    assert made.companions == () and made.plan.base.path == models / "b-same"
    pm.replay(out, again, models=[models])
    files = sorted(path.relative_to(out) for path in out.rglob("*") if path.is_file())
    assert all((again / path).read_bytes() == (out / path).read_bytes() for path in files)
    shutil.rmtree(models / "b-same")
    assert plan_replay(out, models=[models]).companions == ("unet/config.json",)
    code, text = run(capsys, "replay", out, "--models", models, "-o", tmp_path / "other")
    assert code == 0 and "unet/config.json is not the one that the recipe was made with" in " ".join(
        text.split()
    )
    found = pm.verify(out, models=[models])
    assert found.verdict == "differs" and "unet/config.json is not that of the base" in found.findings
