"""``paramerge bake`` as a user types it: in a process of its own where that matters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from baking import load, lora_file, para_file, random_bases, random_factors, shapes_of, small_model

from paramerge.cli.main import COMMANDS, main
from paramerge.files.writer import write_safetensors


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two PaRas and a LoRA."""
    folder = tmp_path_factory.mktemp("files")
    base = small_model(folder / "base.safetensors")
    shapes = shapes_of(base)
    layers = [layer for layer in shapes if ".attn1." in layer]
    para_file(folder / "a.safetensors", random_bases(shapes, layers, 2, seed=0))
    para_file(folder / "a2.safetensors", random_bases(shapes, layers, 2, seed=1))
    lora_file(folder / "b.safetensors", random_factors(shapes, layers, 3))
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def call(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_the_sentence_people_type(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("bake", "--base", files / "base.safetensors", "--para", files / "a.safetensors",
                "--lora", f"{files / 'b.safetensors'}@0.8", "-o", "merged.safetensors") == 0  # fmt: skip
    text = capfd.readouterr().out
    assert "64 layers of base.safetensors changed, 128 directions removed" in text
    assert "merged.safetensors" in text
    assert len(load(Path("merged.safetensors")).tensors) == len(load(files / "base.safetensors").tensors)


def test_the_order_typed_is_the_order_applied(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, a, b = (files / f"{name}.safetensors" for name in ("base", "a", "b"))
    assert call("bake", "--base", base, "--lora", b, "--para", a, "-o", "1.safetensors") == 0
    assert "b.safetensors loses" in capfd.readouterr().err
    assert call("bake", "--base", base, f"--para={a}", f"--lora={b}", "-o", "2.safetensors") == 0
    assert "loses" not in capfd.readouterr().err
    kinds = [
        [
            step["kind"]
            for step in json.loads(load(Path(f"{i}.safetensors")).metadata["paramerge.recipe"])["steps"]
        ]
        for i in (1, 2)
    ]
    assert kinds == [["lora", "para"], ["para", "lora"]]


def test_default_output(files: Path) -> None:
    arguments = ["--para", files / "a.safetensors", "--lora", f"{files / 'b.safetensors'}@0.8"]
    assert call("bake", "--base", files / "base.safetensors", *arguments) == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["base+a+b@0.8.safetensors"]


def test_without_base(
    files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import hashlib

    from baking import name_of

    from paramerge.formats import write_para

    base = files / "base.safetensors"
    shapes = shapes_of(base)
    modules = {name_of(layer): np.eye(shapes[layer][0], 2) for layer in list(shapes)[:4]}
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    write_para("p.safetensors", modules, architecture="sd15", base_sha256=digest)
    assert call("bake", "--para", "p.safetensors") == 2
    assert "PARAMERGE_MODELS is not set" in capfd.readouterr().err
    monkeypatch.setenv("PARAMERGE_MODELS", str(files))
    assert call("bake", "--para", "p.safetensors", "--lora", files / "b.safetensors") == 0
    assert Path("base+p+b.safetensors").is_file()


def test_dry_run_writes_nothing_and_fits_the_terminal(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base", files / "base.safetensors", "--para", files / "a.safetensors",
                 "--para", f"{files / 'a2.safetensors'}@0.5", "--lora", files / "b.safetensors"]  # fmt: skip
    assert call("bake", *arguments, "--gamma", "1/10", "--dry-run") == 0
    text = capfd.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "sd15, single-file" in text and "unet 64" in text
    for part in (
        "686",
        "gamma 0.1",
        "memory   about ",
        " MB at the peak",
        "base+a+a2@0.5+b+gamma0.1.safetensors",
    ):
        assert part in text
    assert list(Path.cwd().iterdir()) == []


def test_dry_run_as_json(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base", files / "base.safetensors", "--para", files / "a.safetensors"]
    assert call("bake", *arguments, "--dry-run", "--json") == 0
    plan = json.loads(capfd.readouterr().out)["plan"]
    assert plan["architecture"] == "sd15"
    assert plan["steps"][0]["layers_by_component"] == {"unet": 64}
    assert {part["component"] for part in plan["components"]} == {"unet", "text_encoder", "vae", "other"}


def test_report_as_json(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base", files / "base.safetensors", "--para", files / "a.safetensors"]
    arguments += ["--para", files / "a2.safetensors", "--merge", "sequential", "-o", "out.safetensors"]
    assert call("bake", *arguments, "--json") == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    content = json.loads(captured.out)
    assert len(content["report"]["layers"]) == 64
    sequence = content["diagnosis"]["sequence"]
    assert len(sequence["layers"]) == 64
    assert 0 < sequence["mean"] <= sequence["largest"] <= 1
    # generic spans: only max(r1, r2) (T3r), and one more where fp16 cannot tell an angle from a right one
    assert 64 * 2 <= sequence["sequential_rank"] < 64 * 2 + 64 // 4
    assert sequence["joint_rank"] == 64 * 4
    assert sum(layer["removed"] for layer in content["report"]["layers"]) == 64 * 2


def test_sequential_tells_its_distance(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--base", files / "base.safetensors", "--para", files / "a.safetensors"]
    arguments += ["--para", files / "a2.safetensors", "--merge", "sequential", "-o", "out.safetensors"]
    assert call("bake", *arguments) == 0
    text = capfd.readouterr().err
    assert "sequential is off from joint by at most" in text
    assert "and 52 layers below that" in text
    assert call("bake", *arguments, "--layers", "--overwrite") == 0
    assert capfd.readouterr().err.count("unet.") == 64


def test_errors_have_parts_and_a_code(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, lora = files / "base.safetensors", files / "b.safetensors"
    for arguments, code, text in [
        ((), 2, "nothing to bake"),
        (("--lora", f"{lora}@much"), 2, "strength is not a number"),
        (("--lora", "missing.safetensors"), 3, "missing.safetensors"),
        (("--para", lora), 4, "LoRA"),
        (("--lora", files / "a.safetensors"), 4, "PaRa"),
        (("--lora", lora, "-o", base), 6, "one of the inputs"),
        (("--lora", lora, "--only", "vae"), 2, "nothing of this adapter is selected"),
        (("--lora", lora, "--gamma", "2"), 2, "gamma is out of range"),
        (("--lora", lora, "--gamma", "x"), 2, "gamma"),
        (("--lora", f"{lora}@nan"), 2, "finite"),
        (("--lora", lora, "--merge", "both"), 2, "both"),
    ]:
        assert call("bake", "--base", base, *arguments) == code, arguments
        captured = capfd.readouterr()
        assert text in captured.err, arguments
        assert captured.out == ""
    assert call("bake", "--base", "missing.safetensors", "--lora", lora) == 3
    assert call("bake", "--base", base, "--lora", lora, "-o", base, "--json") == 6
    error = json.loads(capfd.readouterr().out)["error"]
    assert error["kind"] == "OutputError"
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin"])
def test_pickles_are_refused_with_the_reason(
    files: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes(b"\x80\x02}q\x00.")
    assert call("bake", "--base", name, "--lora", files / "b.safetensors") == 3
    assert "pickle" in capfd.readouterr().err
    assert call("bake", "--base", files / "base.safetensors", "--lora", name) == 3
    assert "pickle" in capfd.readouterr().err


def test_an_index_that_points_outside_its_folder(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small_model(Path("base"), layout="diffusers-folder", max_shard_bytes=8_000_000)
    index = Path("base/unet/diffusion_pytorch_model.safetensors.index.json")
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    shutil.copyfile(files / "b.safetensors", "outside.safetensors")
    content["weight_map"][first] = "../../outside.safetensors"
    index.write_text(json.dumps(content))
    assert call("bake", "--base", "base", "--lora", files / "b.safetensors", "-o", "out") == 3
    assert "outside" in capfd.readouterr().err
    assert not Path("out").exists()


def test_control_characters_in_a_file_do_not_reach_the_terminal(
    files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tensors = {"\x1b[2Jlora_up.weight": np.ones((4, 2)), "\x1b[2Jlora_down.weight": np.ones((2, 4))}
    write_safetensors("l.safetensors", {**load(files / "b.safetensors").tensors, **tensors}, {})
    base = files / "base.safetensors"
    assert call("bake", "--base", base, "--lora", "l.safetensors", "-o", "o.safetensors") == 4
    text = capfd.readouterr().err
    assert "\x1b[2J" not in text
    assert "\\x1b[2J" in text
    assert call("bake", "--base", base, "--lora", "l.safetensors", "--allow-unmatched", "--dry-run") == 0
    assert "\x1b[2J" not in capfd.readouterr().out


def test_unmatched_keys(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stored = load(files / "b.safetensors")
    extra = {
        "lora_unet_nowhere.lora_up.weight": np.ones((4, 2)),
        "lora_unet_nowhere.lora_down.weight": np.ones((2, 4)),
    }
    write_safetensors("l.safetensors", {**stored.tensors, **extra}, {})
    base = files / "base.safetensors"
    assert call("bake", "--base", base, "--lora", "l.safetensors", "-o", "o.safetensors") == 4
    text = capfd.readouterr().err
    assert "lora_unet_nowhere.lora_up.weight" in text
    assert "--allow-unmatched" in text
    assert not Path("o.safetensors").exists()
    options = ["--allow-unmatched", "-o", "o.safetensors"]
    assert call("bake", "--base", base, "--lora", "l.safetensors", *options) == 0
    text = capfd.readouterr().out
    assert "2 keys of l.safetensors land nowhere" in text
    assert "lora_unet_nowhere.lora_up.weight" in text


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env={**os.environ, **environment}
    )


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it raises
from paramerge.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["bake", "--help"]])
def test_help_does_not_need_torch(command: list[str]) -> None:
    result = python("-c", WITHOUT_TORCH, *command)
    assert result.returncode == 0, result.stderr
    assert "paramerge" in result.stdout


def test_a_dry_run_does_not_need_torch(files: Path) -> None:
    arguments = ["--base", files / "base.safetensors", "--para", files / "a.safetensors", "--dry-run"]
    result = python("-c", WITHOUT_TORCH, "bake", *arguments)
    assert result.returncode == 0, result.stderr


def test_every_verb_has_help_with_an_example(capfd: pytest.CaptureFixture[str]) -> None:
    for verb in COMMANDS:
        assert call(verb, "--help") == 0
        assert f"paramerge {verb}" in capfd.readouterr().out.partition("Options:")[0].partition("\n")[2]


def test_a_reader_that_goes_away(files: Path) -> None:
    """``paramerge bake --help | head -1`` ends quietly."""
    script = f"{sys.executable} -m paramerge.cli bake --help | head -1"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in result.stderr
