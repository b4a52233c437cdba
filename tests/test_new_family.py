"""A family that paramerge does not know, defined in one place: every verb takes it, or refuses it by name.

The family is the one of ``docs/extending.md``, whose code is run as it stands there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from baking import check_close, load, plan_of, rounded, shapes_of, small_model
from tiny_pipelines import sd_pipeline
from toy_packages import ROWGAIN, WAYS, run

from paramerge.adapters import LayerModule, registry
from paramerge.adapters.contract import read_stored
from paramerge.adapters.parts import Part
from paramerge.adapters.peft_config import TunerSettings
from paramerge.adapters.tuner import Tuner
from paramerge.apply.steps import Step
from paramerge.checkpoints.layout import open_base
from paramerge.errors import FamilyError, PluginError
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.generation.adapting import apply_plan
from paramerge.generation.loading import load_pipeline

PATH = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
STEM = f"lora_unet_{PATH.replace('.', '_')}"
LDM = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
ENDING = "row_gain.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "base.safetensors", dtype="F16")


@pytest.fixture(params=WAYS)
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """The family, as an installed package adds it and as a call does."""
    with ROWGAIN.known(tmp_path / "site-packages", request.param):
        yield


@pytest.fixture
def gains(base: Path, tmp_path: Path) -> Path:
    return gains_for(base, tmp_path / "gains.safetensors")


def gains_for(model: Path, path: Path) -> Path:
    """Row gains for one layer of the model's UNet."""
    rows = shapes_of(model)[f"unet.{PATH}"][0]
    values = np.random.default_rng(0).normal(0, 0.3, rows).astype(np.float32)
    write_safetensors(path, {f"{STEM}.{ENDING}": values}, {"ss_base_model_version": "sd_v1"})
    return path


def test_without_its_package_the_file_is_named_in_one_way(
    gains: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Neither an adapter that is none, nor one that is refused as a checkpoint."""
    code, text = run(capsys, "inspect", gains)
    assert code == 0 and "a package that adds it may be missing" in " ".join(text.split())
    assert "not a base checkpoint" not in text
    code, text = run(capsys, "convert", gains, "--to", "kohya", "-o", tmp_path / "out.safetensors")
    assert code == 4 and "a package that adds it may be missing" in text


@pytest.mark.usefixtures("known")
def test_every_verb(base: Path, gains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "inspect", gains)
    assert code == 0 and "RowGain" in text and "numbers" in text and "not applied" not in text
    code, text = run(capsys, "inspect", gains, "--json")
    assert code == 0 and json.loads(text)["family"] == "rowgain"

    baked, nothing = tmp_path / "baked.safetensors", tmp_path / "not.safetensors"
    code, text = run(capsys, "bake", "--base", base, "--adapter", f"{gains}@0.5", "-o", baked)
    assert code == 0, text
    _check_baked(base, gains, baked, 0.5)
    code, text = run(capsys, "bake", "--base", base, "--adapter", gains, "--dry-run")
    assert code == 0 and "RowGain" in text
    code, text = run(capsys, "bake", "--base", base, "--lora", gains, "-o", nothing)
    assert code == 4 and "this is a RowGain, not a LoRA" in text

    sgm = tmp_path / "sgm.safetensors"
    code, text = run(capsys, "convert", gains, "--to", "kohya-sgm", "-o", sgm)
    assert code == 0, text
    assert set(load(sgm).tensors) == {f"{LDM}.{ENDING}"}
    assert [str(name) for name in open_adapter(sgm).modules] == [f"unet.{PATH}"]
    assert next(iter(load(sgm).raw.values())) == next(iter(load(gains).raw.values()))
    for to in ("diffusers", "peft", "para", "deft"):
        code, text = run(capsys, "convert", gains, "--to", to, "-o", tmp_path / to)
        assert code == 4 and f"{to} has no way to hold RowGain" in text and "kohya" in text

    code, text = run(capsys, "merge", gains, gains, "-o", nothing)
    assert code == 4 and "RowGain cannot be merged" in text
    code, text = run(capsys, "resize", gains, "--rank", "1", "-o", nothing)
    assert code == 4 and "RowGain cannot be resized" in text
    code, text = run(capsys, "extract", "--from-lora", gains, "--rank", "1", "-o", nothing)
    assert code == 4 and "RowGain" in text
    assert not (nothing).exists()

    code, text = run(capsys, "compare", gains, gains, "--base", base, "--json")
    assert code == 0, text
    code, text = run(capsys, "compare", gains, gains)
    assert code == 4 and "what RowGain changes depends on its weights" in text

    code, text = run(capsys, "sizes", "--arch", "sd15", "--subset", "all", "--family", "rowgain", "--json")
    (size,) = json.loads(text)["sizes"]
    assert code == 0 and size["parameters"] > 0 and size["capped"] == 0
    code, text = run(capsys, "sizes", "--help")
    assert code == 0 and "rowgain" in text

    code, text = run(capsys, "bake", "--base", gains, "--adapter", gains, "-o", nothing)
    assert code == 3 and "this is an adapter, not a base checkpoint" in text


def _check_baked(base: Path, gains: Path, baked: Path, strength: float) -> None:
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    before, after = load(base).tensors, load(baked).tensors
    W = before[key].astype(np.float64)
    g = next(iter(load(gains).tensors.values())).astype(np.float64)
    check_close(after[key], W + strength * (np.exp(g)[:, None] * W - W))
    assert all(np.array_equal(after[other], before[other]) for other in before if other != key)
    assert not np.array_equal(rounded(W, "F16"), after[key].astype(np.float64))


@pytest.mark.usefixtures("known")
def test_generates_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Applied to a pipeline that is loaded, and by the command."""
    model, _ = sd_pipeline(tmp_path)
    gains = gains_for(model, tmp_path / "gains.safetensors")
    pipeline = load_pipeline(open_base(model), torch.float32)
    before = {key: value.numpy().copy() for key, value in pipeline.unet.state_dict().items()}
    (result,) = apply_plan(plan_of(model, Step("adapter", gains, 0.5)), pipeline)
    assert result.name == f"unet.{PATH}"
    after = {key: value.numpy() for key, value in pipeline.unet.state_dict().items()}
    W = before[f"{PATH}.weight"].astype(np.float64)
    g = next(iter(load(gains).tensors.values())).astype(np.float64)
    check_close(after[f"{PATH}.weight"], W + 0.5 * (np.exp(g)[:, None] * W - W))
    assert [key for key in after if not np.array_equal(after[key], before[key])] == [f"{PATH}.weight"]

    drawn = ("--prompt", "a dog", "--steps", 1, "-n", 1, "-o", tmp_path / "grid.png", "--json")
    code, text = run(capsys, "generate", "--model", model, "--adapter", gains, *drawn)
    facts = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert code == 0 and facts["layers"] == 1 and facts["adapters"][0]["name"] == gains.name


def test_a_tuner_of_peft_is_read_and_written_by_the_family_alone(
    gains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with a configuration of the family's own, there and back."""

    def read(config: Mapping[str, object], where: str) -> TunerSettings:
        if config.get("base") != "e":
            raise FamilyError("these row gains are of another base", where=where)
        return TunerSettings("ROWGAIN", where)

    def part(module: LayerModule, to: str, dtype: str | None) -> Part:
        return Part(module.name, module.family, {"gains": read_stored(module.tensors[0])}, rank=module.rank)

    with ROWGAIN.known(tmp_path / "site-packages", "registered"):
        plain = registry.family("rowgain")
        registry.unregister("rowgain")
        tuner = Tuner("ROWGAIN", read, lambda parts: {"base": "e"})
        with registry.FAMILIES.added(replace(plain, parts={"kohya": part, "peft": part}, tuner=tuner)):
            folder, back = tmp_path / "folder", tmp_path / "back.safetensors"
            code, text = run(capsys, "convert", gains, "--to", "peft", "-o", folder)
            assert code == 0, text
            config = json.loads((folder / "adapter_config.json").read_text())
            assert config["peft_type"] == "ROWGAIN" and config["target_modules"] == [PATH]
            code, text = run(capsys, "convert", folder, "--to", "kohya", "-o", back)
            assert code == 0, text
            assert load(back).raw == load(gains).raw
            (folder / "adapter_config.json").write_text(json.dumps({**config, "base": "2"}))
            code, text = run(capsys, "inspect", folder)
            assert "these row gains are of another base" in text, text
            (folder / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
            code, text = run(capsys, "inspect", folder)
            assert code == 4 and "they are of different families" in text, text


@pytest.mark.usefixtures("known")
def test_a_damaged_file_is_refused_by_the_shared_checks(
    gains: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = next(iter(load(gains).tensors.values()))
    for tensors, said in (
        ({f"{STEM}.{ENDING}": values.reshape(1, -1)}, "2 dimensions, which no gains has"),
        ({f"{STEM}.{ENDING}": values[:0]}, "rank or size 0"),
        ({f"{STEM}.{ENDING}": values, f"{STEM}.dora_scale": values}, "several families"),
        ({f"{STEM}.{ENDING}": values, f"{STEM}.alpha": values[:1]}, "do not go with its family"),
    ):
        write_safetensors(gains, tensors, {})
        code, text = run(capsys, "convert", gains, "--to", "kohya", "-o", gains.with_name("not"))
        assert code == 4 and said in text, text


def test_without_the_package_it_is_unknown(gains: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "convert", gains, "--to", "kohya", "-o", gains.with_name("not"))
    assert code == 4 and "nothing in this file is known as an adapter" in text
    assert "rowgain" not in {family.key for family in registry.families()}


def test_a_process_that_starts_with_the_package_installed(gains: Path, tmp_path: Path) -> None:
    package = tmp_path / "site-packages"
    package.mkdir()
    ROWGAIN.write_package(package)
    script = (
        "import sys\nsys.path.append(sys.argv.pop(1))\n"
        "from paramerge.cli.main import main\nmain(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(package), "inspect", str(gains), "--json"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and json.loads(done.stdout)["family"] == "rowgain", done.stderr


RECORD = "from paramerge.adapters.family import Family, Form\nFAMILY = Family({})\n"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no licence')", "no licence"),
        ("OTHER = 1", "cannot be loaded"),
        ("FAMILY = 'rowgain'", "this is no family"),
        (RECORD.format("'lora', 'My LoRA'"), "there is a family lora already"),
        (RECORD.format("'mine', 'LoRA'"), "label LoRA"),
        (RECORD.format("'Row Gain', 'RowGain'"), "is small letters and digits"),
        (RECORD.format("'mine', 'Mine', (Form('Mine', {'diff': 'x'}, None),)"), "ending diff"),
        (RECORD.format("'mine', 'Mine', (Form('Mine', {'alpha': 'x'}, None),)"), "ending alpha"),
    ],
)
def test_a_package_that_offers_no_family_is_named(
    code: str, said: str, gains: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ROWGAIN.installed(tmp_path / "site-packages", code):
        exit_code, text = run(capsys, "inspect", gains)
        assert exit_code == 8 and "paramerge-rowgain" in text and "rowgain:FAMILY" in text and said in text, (
            text
        )
        with pytest.raises(PluginError):
            registry.families()
