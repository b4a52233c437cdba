"""``paramerge extract``: a PaRa from a LoRA's leading output directions, on real LoRAs and bad input."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import REAL_LORAS, factors, kohya_layer, save
from strategies import norm2, projector

from paramerge.adapters import LoraModule, ParaModule
from paramerge.algebra import orthonormalise
from paramerge.cli.main import main
from paramerge.cli.render import Lines
from paramerge.formats import open_adapter, write_para
from paramerge.models.names import ModuleName

STEM = "lora_unet_mid_block_attentions_0_proj_in"
OTHER = "lora_unet_mid_block_attentions_0_proj_out"
Capture = pytest.CaptureFixture[str]
Svd = tuple[np.ndarray, np.ndarray]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(Lines, "is_terminal", True)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def extract(*arguments: object) -> int:
    """The exit code of ``paramerge extract`` with these arguments."""
    with pytest.raises(SystemExit) as exit_:
        main(["extract", *map(str, arguments)])
    code = exit_.value.code
    assert isinstance(code, int)
    return code


def as_json(capsys: Capture) -> dict[str, Any]:
    content = json.loads(capsys.readouterr().out)
    assert isinstance(content, dict)
    return content


def bases(path: Path) -> dict[str, np.ndarray]:
    found = {}
    for name, module in open_adapter(path, family="para").modules.items():
        assert isinstance(module, ParaModule)
        found[str(name)] = module.basis.read_exact().astype(np.float64)
    return found


@pytest.fixture(scope="module", params=REAL_LORAS)
def decomposed(request: pytest.FixtureRequest, shared_dir: Path) -> tuple[Path, dict[str, Svd]]:
    """A real LoRA and NumPy's float64 SVD of a few of its changes, formed whole."""
    source = shared_dir / "fixtures" / "adapters" / request.param
    # NumPy takes seconds for the widest layers: five of the narrower ones stand for all
    modules = [module for module in open_adapter(source).modules.values() if isinstance(module, LoraModule)]
    narrow = [module for module in modules if max(module.out_features, module.in_features) <= 768]
    references = {}
    for module in narrow[:: len(narrow) // 5][:5]:
        B, A = factors(module)
        references[str(module.name)] = np.linalg.svd(B @ A, full_matrices=False)[:2]
    return source, references


@pytest.mark.parametrize("choice", [("--rank", 1), ("--rank", 3), ("--energy", 0.9)])
def test_directions_are_the_leading_left_singular_vectors(
    choice: tuple[str, float], decomposed: tuple[Path, dict[str, Svd]], tmp_path: Path, capsys: Capture
) -> None:
    source, references = decomposed
    output = tmp_path / "p.safetensors"
    arguments = ("--from-lora", source, "-o", output, *choice, "--dtype", "fp32", "--json")
    assert extract(*arguments, "--allow-unmatched") == 0  # one has token embeddings, too
    report = as_json(capsys)
    entries = {entry["layer"]: entry for entry in report["layers"]}
    found = bases(output)
    assert found.keys() == entries.keys() == {str(name) for name in open_adapter(source).modules}
    assert len(references) == 5
    for layer, (U, s) in references.items():
        rank = found[layer].shape[1]
        energy = np.cumsum(s**2) / np.sum(s**2)
        if choice[0] == "--rank":
            assert rank == min(int(choice[1]), int(np.sum(s > 1e-7 * s[0])))
        else:
            assert energy[rank - 1] >= 0.9 - 1e-9
            assert rank == 1 or energy[rank - 2] < 0.9
        assert entries[layer]["rank"] == rank
        assert entries[layer]["captured_energy"] == pytest.approx(float(energy[rank - 1]), abs=1e-6)
        assert entries[layer]["norm"] == pytest.approx(float(np.linalg.norm(s)), rel=1e-6)
        # rounded to float32; the span is as well determined as the gap after it is wide
        gap = s[rank - 1] - s[rank]
        allowed = 64 * 2.0**-24 * (np.sqrt(rank) + s[0] / gap)
        assert allowed < 0.1
        assert norm2(projector(U[:, :rank]) - projector(orthonormalise(found[layer]).Q)) < allowed
    total = sum(entry["norm"] ** 2 for entry in entries.values())
    held = sum(entry["captured_energy"] * entry["norm"] ** 2 for entry in entries.values())
    assert report["captured_energy"] == pytest.approx(held / total)


def test_metadata_say_where_it_comes_from(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "fixtures" / "adapters" / "diffusers_old_catundchat_sd15.safetensors"
    output = tmp_path / "p.safetensors"
    assert extract("--from-lora", source, "-o", output, "--rank", 2) == 0
    adapter = open_adapter(output)
    assert adapter.architecture == "sd15"
    assert adapter.metadata["extraction.rule"] == "rank=2"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert adapter.metadata["extraction.source_sha256"] == digest
    assert str(source.parent) not in json.dumps(dict(adapter.metadata)), "no paths"


@pytest.mark.parametrize("options", [[], ["--layers"]])
def test_the_table_fits_eighty_columns(
    options: list[str], shared_dir: Path, tmp_path: Path, capsys: Capture
) -> None:
    source = shared_dir / "fixtures" / "adapters" / "cloneofsimo_lora_disney.safetensors"
    arguments = ("--from-lora", source, "-o", tmp_path / "p.safetensors", "--energy", 0.5, *options)
    assert extract(*arguments) == 4
    assert "2 keys of this adapter are not understood" in capsys.readouterr().err
    assert extract(*arguments, "--allow-unmatched") == 0
    text, warned = capsys.readouterr()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    assert "2 keys" in warned
    assert "100.0% of the LoRA's energy" in " ".join(text.split())
    assert ("unet.mid_block" in text) == bool(options)


def lora(path: Path, *, zero: bool = False, broken: bool = False, base: str = "") -> Path:
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((8, 4)).astype(np.float32), rng.standard_normal((4, 6)).astype(np.float32)
    tensors = kohya_layer(STEM, 0 * up if zero else up, down, 2.0) | kohya_layer(OTHER, up, down, 2.0)
    if zero:
        tensors |= kohya_layer(OTHER, up, 0 * down)
    if broken:
        tensors[f"{STEM}.lora_up.weight"][0, 0] = np.nan
    return save(path, tensors, {"ss_new_sd_model_hash": base} if base else {})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return lora(tmp_path / "l.safetensors")


@pytest.mark.parametrize(
    ("choice", "code"),
    [
        ([], 2),
        (["--rank", 2, "--energy", 0.5], 2),
        (["--rank", 0], 2),
        (["--rank", -1], 2),
        (["--rank", "x"], 2),
        (["--energy", 0], 2),
        (["--energy", 1.5], 2),
        (["--energy", "nan"], 2),
    ],
)
def test_a_choice_that_makes_no_sense(choice: list[object], code: int, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "p.safetensors"
    assert extract("--from-lora", source, "-o", output, *choice) == code
    assert not output.exists()


def test_a_rank_beyond_the_loras_takes_what_there_is(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "p.safetensors"
    assert extract("--from-lora", source, "-o", output, "--rank", 99) == 0
    assert {B.shape for B in bases(output).values()} == {(8, 4)}


def test_inputs_are_never_overwritten(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    soft, hard = tmp_path / "soft.safetensors", tmp_path / "hard.safetensors"
    soft.symlink_to(source)
    os.link(source, hard)
    detour = tmp_path / "folder" / ".." / "l.safetensors"
    (tmp_path / "folder").mkdir()
    for output in (source, soft, hard, detour):
        assert extract("--from-lora", source, "-o", output, "--rank", 1) == 6
    assert extract("--from-lora", soft, "-o", source, "--rank", 1) == 6
    assert source.read_bytes() == before
    assert soft.is_symlink()


def test_another_file_is_replaced_whole(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "p.safetensors"
    output.write_text("the old output")
    assert extract("--from-lora", source, "-o", output, "--rank", 1, "--overwrite") == 0
    assert len(bases(output)) == 2


@pytest.mark.parametrize("kind", ["para", "checkpoint", "zero", "broken", "missing"])
def test_an_input_that_has_no_directions(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    if kind == "para":
        name = ModuleName("unet", "mid_block.attentions.0.proj_in")
        write_para(path, {name: np.eye(4, 2)}, architecture="sd15")
    elif kind == "checkpoint":
        save(path, {"model.diffusion_model.input_blocks.0.0.weight": np.ones((2, 2), np.float32)})
    elif kind in ("zero", "broken"):
        lora(path, zero=kind == "zero", broken=kind == "broken")
    output = tmp_path / "p.safetensors"
    output.write_text("the old output")
    code = {"para": 4, "checkpoint": 4, "zero": 2, "broken": 5, "missing": 3}[kind]
    assert extract("--from-lora", path, "-o", output, "--rank", 1, "--overwrite") == code
    assert output.read_text() == "the old output"


@pytest.mark.parametrize("name", ["p.bin", "p.st", "missing/p.safetensors"])
def test_an_output_that_cannot_be(name: str, source: Path, tmp_path: Path) -> None:
    assert extract("--from-lora", source, "-o", tmp_path / name, "--rank", 1) == 6
    assert [path.name for path in tmp_path.iterdir()] == [source.name]


def test_a_layer_of_zeros_is_left_out_and_said(tmp_path: Path, capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((8, 4)).astype(np.float32), rng.standard_normal((4, 6)).astype(np.float32)
    tensors = kohya_layer(STEM, up, down) | kohya_layer(OTHER, 0 * up, down)
    path, output = save(tmp_path / "l.safetensors", tensors), tmp_path / "p.safetensors"
    assert extract("--from-lora", path, "-o", output, "--rank", 1, "--json") == 0
    report = as_json(capsys)
    assert report["empty"] == ["unet.mid_block.attentions.0.proj_out"]
    assert len(bases(output)) == 1
    assert extract("--from-lora", path, "-o", output, "--rank", 1, "--overwrite") == 0
    assert "1 layers of the LoRA are zero" in capsys.readouterr().out


def test_the_bases_hash_comes_along(tmp_path: Path) -> None:
    path, output = lora(tmp_path / "l.safetensors", base="0x" + "ab" * 32), tmp_path / "p.safetensors"
    assert extract("--from-lora", path, "-o", output, "--rank", 1) == 0
    assert open_adapter(output).base_hashes == ("ab" * 32,)


def test_the_same_input_gives_the_same_file(source: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    for output in outputs:
        assert extract("--from-lora", source, "-o", output, "--energy", 0.7) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
