"""``paramerge extract --from --base`` on checkpoints whose making is known, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baking import load, lora_file, para_file, plan_of, random_bases, random_factors, shapes_of, small_model
from lycoris.modules.lokr import LokrModule
from merging import relative
from scipy.linalg import subspace_angles

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import main
from paramerge.errors import ArchitectureError, FamilyError, OutputError, UsageError
from paramerge.extract.extract import ExtractionReport, extract
from paramerge.extract.families import ExtractOptions
from paramerge.files.hashing import file_sha256
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.models.names import ModuleName
from paramerge.resolve.weights import BaseWeights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base, and what a PaRa and a LoRA make of it, in F16; convolutions and text encoder, too."""
    folder = tmp_path_factory.mktemp("tuned")
    base = small_model(folder / "base.safetensors", "sd15")
    shapes = shapes_of(base)
    ends = (
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
        "mid_block.resnets.0.conv2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "encoder.layers.3.mlp.fc1",
    )
    layers = [layer for layer in shapes if layer.endswith(ends)]
    assert len(layers) == 4
    bases = random_bases(shapes, layers, 3)
    found: dict[str, Any] = {
        "base": base, "layers": layers, "bases": bases,
        "para": para_file(folder / "p.safetensors", bases),
        "lora": lora_file(folder / "l.safetensors", random_factors(shapes, layers, 3), 2.0),
    }  # fmt: skip
    for name in ("para", "lora"):
        tuned = found[f"tuned-{name}"] = folder / f"tuned-{name}.safetensors"
        bake(plan_of(base, Step("adapter", found[name])), tuned)
    return found


def run(files: dict[str, Any], tuned: str, output: Path, family: str, **options: Any) -> ExtractionReport:
    return extract(
        open_base(files[f"tuned-{tuned}"]),
        open_base(files["base"]),
        output,
        ExtractOptions(family, **options),
    )


def difference(files: dict[str, Any], tuned: str, layer: str) -> np.ndarray:
    name = ModuleName.parse(layer)
    one, other = (BaseWeights(open_base(files[key])).matrix(name) for key in (f"tuned-{tuned}", "base"))
    return one - other


def test_a_baked_para_is_recovered(files: dict[str, Any], tmp_path: Path) -> None:
    report = run(files, "para", tmp_path / "p.safetensors", "para")
    assert {str(layer.name) for layer in report.layers} == set(files["layers"])
    assert all(layer.exact and layer.rank == 3 for layer in report.layers) and not report.left_out
    stored = load(tmp_path / "p.safetensors").tensors
    for layer in files["layers"]:
        angle = np.max(subspace_angles(stored[f"{layer}.para_B"].astype(float), files["bases"][layer]))
        assert angle <= 20 * 2.0**-11
    adapter = open_adapter(tmp_path / "p.safetensors", family="para")
    assert adapter.base_hashes == (file_sha256(files["base"]),)
    # baked again, it gives the tuned checkpoint back, to two roundings of weights and basis
    bake(plan_of(files["base"], Step("para", tmp_path / "p.safetensors")), tmp_path / "again.safetensors")
    one, other = load(tmp_path / "again.safetensors").tensors, load(files["tuned-para"]).tensors
    for key, value in other.items():
        if value.dtype.kind == "f":
            assert np.linalg.norm(one[key].astype(float) - value) <= 4e-3 * np.linalg.norm(
                value.astype(float)
            )


def test_a_lora_is_no_para(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="no PaRa") as caught:
        run(files, "lora", tmp_path / "p.safetensors", "para")
    assert "mid_block" in str(caught.value) and not (tmp_path / "p.safetensors").exists()


def test_the_nearest_para_within_a_boundary(files: dict[str, Any], tmp_path: Path) -> None:
    report = run(files, "para", tmp_path / "p.safetensors", "para", rank=1)
    assert {layer.rank for layer in report.layers} == {1}
    assert all(not layer.exact and 0.5 < layer.error < 1 for layer in report.layers)
    bounded = run(files, "para", tmp_path / "g.safetensors", "para", gamma=1 / 40)
    ranks = {str(layer.name): layer.rank for layer in bounded.layers}
    shapes = shapes_of(files["base"])
    for layer, rank in ranks.items():
        full = min(shapes[layer][0], int(np.prod(shapes[layer][1:])))
        assert rank <= max(full / 40, 0)
    assert open_adapter(tmp_path / "g.safetensors").metadata["paramerge.gamma"] == repr(1 / 40)


@pytest.mark.parametrize("tuned", ["lora", "para"])
def test_a_lora_is_the_truncated_svd(files: dict[str, Any], tmp_path: Path, tuned: str) -> None:
    report = run(files, tuned, tmp_path / "l.safetensors", "lora", rank=2, dtype="F32")
    adapter = open_adapter(tmp_path / "l.safetensors", family="lora")
    for layer in report.layers:
        D = difference(files, tuned, str(layer.name))
        s = np.linalg.svd(D, compute_uv=False)
        best = np.sqrt(np.sum(s[2:] ** 2)) / np.linalg.norm(s)
        error = relative(adapter.modules[layer.name].delta(D), D)
        assert layer.error == pytest.approx(error, abs=1e-7)
        assert error == pytest.approx(best, rel=1e-5)
        assert layer.norm == pytest.approx(np.linalg.norm(D))


def test_a_baked_lora_comes_back(files: dict[str, Any], tmp_path: Path) -> None:
    """What is missed is the rounding of the tuned weights, which is not of rank 3."""
    report = run(files, "lora", tmp_path / "l.safetensors", "lora", rank=3)
    found, given = (open_adapter(path).modules for path in (tmp_path / "l.safetensors", files["lora"]))
    for layer in report.layers:
        assert relative(found[layer.name].delta(np.zeros(1)), given[layer.name].delta(np.zeros(1))) < 2e-2
    assert report.error < 2e-2


def test_energy_decides_the_rank(files: dict[str, Any], tmp_path: Path) -> None:
    report = run(files, "lora", tmp_path / "l.safetensors", "lora", energy=0.8)
    for layer in report.layers:
        held = np.cumsum(np.linalg.svd(difference(files, "lora", str(layer.name)), compute_uv=False) ** 2)
        assert layer.rank == int(np.sum(held < 0.8 * held[-1])) + 1
        assert layer.error <= np.sqrt(0.2) + 1e-3


@pytest.mark.parametrize("rank", [None, 2])
def test_lokr_reads_as_lycoris_reads_it(files: dict[str, Any], tmp_path: Path, rank: int | None) -> None:
    report = run(files, "lora", tmp_path / "k.safetensors", "lokr", rank=rank, dtype="F32")
    modules, content = (
        open_adapter(tmp_path / "k.safetensors").modules,
        load(tmp_path / "k.safetensors").tensors,
    )
    for layer in report.layers:
        module = modules[layer.name]
        D = difference(files, "lora", str(layer.name))
        assert module.family == "lokr"
        assert layer.error == pytest.approx(relative(module.delta(D), D), abs=1e-6)
        shape = shapes_of(files["base"])[str(layer.name)]
        weights = {key.rpartition(".")[2]: torch.tensor(content[key]) for key in module.keys}
        kind = torch.nn.Conv2d if len(shape) == 4 else torch.nn.Linear
        options = {"kernel_size": shape[2:], "padding": 1} if len(shape) == 4 else {}
        names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
        with torch.no_grad():
            theirs = LokrModule.make_module_from_state_dict(
                "x", kind(shape[1], shape[0], **options), *(weights.get(n) for n in names), None,
                weights.get("lokr_t2"), weights["alpha"], None,
            )  # fmt: skip
            found = theirs.get_weight(theirs.shape).detach().double().numpy().reshape(D.shape)
        assert relative(found, module.delta(D)) < 1e-6


def test_krona_has_the_published_codes_form(files: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="add partial"):
        run(files, "lora", tmp_path / "k.safetensors", "krona", kronecker=(8, 4))
    report = run(
        files, "lora", tmp_path / "k.safetensors", "krona", kronecker=(8, 4), partial=True, dtype="F32"
    )
    assert len(report.layers) == 2 and len(report.left_out) == 2
    content = load(tmp_path / "k.safetensors").tensors
    assert all(key.endswith((".down.weight", ".up.weight")) and ".processor." in key for key in content)
    modules = open_adapter(tmp_path / "k.safetensors", family="krona").modules
    for layer in report.layers:
        D = difference(files, "lora", str(layer.name))
        assert layer.error == pytest.approx(relative(modules[layer.name].delta(D), D), abs=1e-6)


def test_changed_norms_and_biases_are_not_lost_in_silence(files: dict[str, Any], tmp_path: Path) -> None:
    content = load(files["tuned-lora"])
    key = next(key for key in content.tensors if key.endswith(".out.0.weight"))
    tensors = {**content.tensors, key: content.tensors[key] + np.float16(1)}
    write_safetensors(tmp_path / "t.safetensors", tensors, {})
    tuned = {**files, "tuned-x": tmp_path / "t.safetensors"}
    with pytest.raises(FamilyError, match="add partial"):
        run(tuned, "x", tmp_path / "o.safetensors", "krona", kronecker=(8, 4))
    report = run(tuned, "x", tmp_path / "o.safetensors", "krona", kronecker=(8, 4), partial=True)
    assert "unet.conv_norm_out.weight" in report.left_out
    report = run(tuned, "x", tmp_path / "l.safetensors", "lora", rank=1)
    assert not report.left_out and report.whole == 1
    key = next(
        key for key in content.tensors if key.startswith("first_stage_model.") and key.endswith(".weight")
    )
    tensors = {**content.tensors, key: content.tensors[key] + np.float16(1)}
    write_safetensors(tmp_path / "v.safetensors", tensors, {})
    tuned["tuned-vae"] = tmp_path / "v.safetensors"
    with pytest.raises(FamilyError, match="no layer that adapters reach"):
        run(tuned, "vae", tmp_path / "v-o.safetensors", "lora", rank=1)
    report = run(tuned, "vae", tmp_path / "v-o.safetensors", "lora", rank=1, only=("text_encoder",))
    assert not report.left_out


def test_refusals(files: dict[str, Any], tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    wrong: list[dict[str, Any]] = [
        {"family": "lora"},
        {"family": "lora", "rank": 2, "energy": 0.5},
        {"family": "lora", "rank": 0},
        {"family": "lora", "energy": 1.5},
        {"family": "lora", "rank": 2, "gamma": 0.1},
        {"family": "krona", "rank": 2},
        {"family": "oft"},
    ]
    for options in wrong:
        with pytest.raises(UsageError):
            run(files, "lora", output, **options)
    with pytest.raises(UsageError, match="nothing to extract"):
        run({**files, "tuned-base": files["base"]}, "base", output, "lora", rank=2)
    with pytest.raises(OutputError):
        run(files, "lora", files["base"], "lora", rank=2)
    other = {**files, "tuned-xl": small_model(tmp_path / "xl.safetensors", "sdxl")}
    with pytest.raises(ArchitectureError):
        run(other, "xl", output, "lora", rank=2)
    assert not output.exists()


def test_only_and_the_same_bytes(files: dict[str, Any], tmp_path: Path) -> None:
    for name in ("1", "2"):
        report = run(files, "lora", tmp_path / f"{name}.safetensors", "lora", rank=2, only=("text_encoder",))
    assert [layer.name.component for layer in report.layers] == ["text_encoder"]
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


def test_the_command_line(files: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned, base, output = files["tuned-para"], files["base"], tmp_path / "o.safetensors"
    assert command("extract", "--from", tuned, "--base", base, "-o", output, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == "para" and all(layer["exact"] for layer in told["layers"])
    assert (
        command(
            "extract",
            "--from",
            tuned,
            "--base",
            base,
            "--family",
            "lora",
            "--rank",
            2,
            "-o",
            output,
            "--overwrite",
        )
        == 0
    )
    assert "lora, 4 layers" in capsys.readouterr().out
    assert command("resize", output, "--rank", 1, "-o", tmp_path / "r.safetensors", "--json") == 0
    assert {layer["rank"] for layer in json.loads(capsys.readouterr().out)["layers"]} == {1}
    assert command("convert", output, "--to", "diffusers", "-o", tmp_path / "d.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rounding_error"] == 0
    assert (
        command("convert", files["para"], "--to", "lycoris", "--base", base, "-o", tmp_path / "k.safetensors")
        == 0
    )
    assert "kohya, 4 layers" in capsys.readouterr().out
    assert command("extract", "--from", tuned, "-o", output) != 0
    assert command("extract", "-o", output) != 0
    assert command("extract", "--from-lora", files["lora"], "--only", "unet", "--rank", 1, "-o", output) != 0
