"""Outputs held against their recipes: identical, other, damaged, and what is said without the inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baking import DTYPES, load
from random_recipes import write_inputs

import paramerge as pm
from paramerge.bake import recipe as recipe_module
from paramerge.bake import stream, tasks
from paramerge.cli.main import main
from paramerge.errors import CheckpointError, FileFormatError, UsageError
from paramerge.files.content_hash import HEADER_KEY, ZEROS, sealed_header
from paramerge.files.header import encode_header
from paramerge.files.writer import write_safetensors

KEY = "paramerge.recipe"


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "inputs"
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def original(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PaRa and a LoRA in a model, in a folder of its own."""
    output = tmp_path_factory.mktemp("out") / "baked.safetensors"
    steps = [pm.Para(inputs / "p.safetensors", 0.5), pm.Lora(inputs / "l.safetensors", 0.8)]
    pm.bake(inputs / "one.safetensors", steps, output)
    return output


@pytest.fixture
def baked(original: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copyfile(original, tmp_path / "baked.safetensors"))


@pytest.fixture(scope="module")
def original_folder(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "folder"
    (inputs / "tree" / "scheduler").mkdir(exist_ok=True)
    (inputs / "tree" / "scheduler" / "scheduler_config.json").write_text("{}\n")
    pm.bake(inputs / "tree", [pm.Lora(inputs / "l.safetensors")], output)
    return output


@pytest.fixture
def folder(original_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original_folder, tmp_path / "folder"))


def flip(path: Path, place: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


def rewritten(
    path: Path, change: Callable[[dict[str, Any]], object], metadata: dict[str, str] | None = None
) -> None:
    """Write the file again with changed tensors, its hashes as they were."""
    stored = load(path)
    tensors = dict(stored.tensors)
    change(tensors)
    write_safetensors(path, tensors, stored.metadata if metadata is None else metadata)


def resealed(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Write other metadata, with a header that has the hash of itself."""
    stored = load(path)
    metadata = dict(stored.metadata)
    change(metadata)
    metadata[HEADER_KEY] = ZEROS
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries = [(key, names[a.dtype], a.shape, a.nbytes) for key, a in stored.tensors.items()]
    path.write_bytes(sealed_header(encode_header(entries, metadata)) + b"".join(stored.raw.values()))


def test_exit_codes(baked: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("verify", baked, "--models", inputs) == 0
    assert "identical" in capsys.readouterr().out
    assert call("verify", baked) == 11
    assert "missing: one.safetensors" in capsys.readouterr().out
    flip(baked, -2)
    assert call("verify", baked, "--models", inputs, "--json") == 12
    said = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["exit_code"], len(said["differences"])) == ("damaged", 12, 1)
    assert call("verify", tmp_path / "missing.safetensors") == CheckpointError.exit_code


def test_the_environment_names_models(baked: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMERGE_MODELS", str(inputs))
    assert pm.verify(baked).verdict == "identical"


@pytest.mark.parametrize("buffer", [None, 3_000])
def test_how_far_a_tensor_is_off(
    buffer: int | None, baked: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against NumPy in float64, with tensors in one piece and in several."""
    if buffer:
        monkeypatch.setattr(tasks, "BUFFER_BYTES", buffer)
        monkeypatch.setattr(stream, "BUFFER_BYTES", buffer)
    made = dict(load(baked).tensors)
    rng = np.random.default_rng(0)
    keys = [key for key, value in made.items() if value.dtype == np.float16 and value.size > 600]
    changed = {}
    for key in keys[::40]:
        value = made[key].copy()
        places = rng.choice(value.size, 5, replace=False)
        value.reshape(-1)[places] = rng.standard_normal(5)
        changed[key] = value
    rewritten(baked, lambda tensors: tensors.update(changed))
    found = pm.verify(baked, models=[inputs])
    assert found.verdict == "damaged" and found.content is False
    assert [difference.key for difference in found.differences] == list(changed)
    for difference in found.differences:
        ours, theirs = made[difference.key].astype(float), changed[difference.key].astype(float)
        assert difference.elements == np.sum(ours != theirs) and difference.of == ours.size
        expected = np.linalg.norm(theirs - ours) / np.linalg.norm(ours)
        assert difference.relative_error == pytest.approx(expected, rel=1e-12)
        bits = [np.sort(np.unique(a)) for a in (made[difference.key], changed[difference.key])]
        assert difference.units is not None and difference.units > 100 and bits
        assert not difference.is_rounding


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_units_are_the_numbers_between(dtype: Any, tmp_path: Path) -> None:
    from paramerge.verify.difference import Difference, Sums

    name = {np.float16: "F16", np.float32: "F32"}[dtype]
    for start, count in [(1.0, 3), (-2.0, 5), (0.0, 2), (6e-8, 1)]:
        a = b = np.array([start, 1.0], dtype)
        for _ in range(count):
            b = np.array([np.nextafter(b[0], dtype(10)), 1.0], dtype)
        difference = Difference(name)
        difference.add(memoryview(b).cast("B"), memoryview(a).cast("B"))
        found = difference.result("f", "k", 2, Sums(1, 0.0))
        assert (found.elements, found.units) == (1, count)
        assert found.is_rounding == (count == 1)
    difference = Difference(name)
    a = np.array([-np.nextafter(dtype(0), dtype(1)), 1], dtype)
    difference.add(memoryview(-a).cast("B"), memoryview(a).cast("B"))
    smallest = int(np.array([1], dtype).view(f"u{a.itemsize}")[0])
    assert difference.result("f", "k", 2, Sums(1, 0.0)).units == 2 * smallest


def test_an_output_that_is_whole_and_another(baked: Path, inputs: Path) -> None:
    """Its recipe tells of other strengths, and it has all its hashes."""

    def stronger(metadata: dict[str, str]) -> None:
        recipe = json.loads(metadata[KEY])
        recipe["steps"][1]["strength"] = 0.7
        metadata[KEY] = json.dumps(recipe, separators=(",", ":"), sort_keys=True)

    resealed(baked, stronger)
    found = pm.verify(baked, models=[inputs])
    assert (found.verdict, found.exit_code, found.content) == ("differs", 10, True)
    assert len(found.differences) == 4  # the LoRA's layers
    assert {difference.file for difference in found.differences} == {baked.name}
    assert all(difference.relative_error > 1e-4 for difference in found.differences)  # type: ignore[operator]
    resealed(baked, lambda metadata: metadata.update({"modelspec.title": "mine"}))
    assert "metadata modelspec.title" in " ".join(pm.verify(baked, models=[inputs]).findings)


def test_other_instructions(baked: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit off in a few elements is rounding, where the recipe names another kernel; more is not."""
    key = next(key for key, value in load(baked).tensors.items() if key.endswith("attn1.to_q.weight"))

    def off(tensors: dict[str, Any]) -> None:
        value = tensors[key] = tensors[key].copy()
        value.reshape(-1)[:3] = np.nextafter(value.reshape(-1)[:3], np.float16(10))

    def rehashed(metadata: dict[str, str]) -> None:
        recipe = json.loads(metadata[KEY])
        del recipe["content"]
        recipe["survival"] = {}  # measured figures are rounded otherwise, too
        metadata[KEY] = json.dumps(recipe, separators=(",", ":"), sort_keys=True)

    rewritten(baked, off)
    resealed(baked, rehashed)
    found = pm.verify(baked, models=[inputs])
    assert (found.verdict, found.differences[0].units) == ("differs", 1)
    assert any("(survival)" in line for line in found.findings)
    now = recipe_module.versions()
    monkeypatch.setattr(recipe_module, "versions", lambda: {**now, "kernel": "SSE"})
    found = pm.verify(baked, models=[inputs])
    assert (found.verdict, found.exit_code) == ("cannot tell", 11), found.findings
    assert any("kernel was" in line for line in found.findings)
    assert any("within the rounding" in line for line in found.findings)
    rewritten(baked, lambda tensors: tensors.update({key: tensors[key] * np.float16(1.5)}))
    resealed(baked, lambda metadata: None)
    found = pm.verify(baked, models=[inputs])
    assert found.verdict == "differs" and any(key in line for line in found.findings)


def test_without_inputs(original: Path, folder: Path, tmp_path: Path) -> None:
    for path in (original, folder):
        found = pm.verify(path)
        assert (found.verdict, found.header, found.content) == ("cannot tell", True, True), found.findings
        assert len(found.missing) == (3 if path == original else 2)
        assert not found.is_made_again


def test_without_a_content_hash(inputs: Path, tmp_path: Path) -> None:
    output = tmp_path / "plain" / "plain.safetensors"
    output.parent.mkdir()
    pm.bake(inputs / "one.safetensors", [inputs / "l.safetensors"], output, content_hash=False)
    assert pm.verify(output, models=[inputs]).verdict == "identical"
    flip(output, -2)
    found = pm.verify(output, models=[inputs])
    assert (found.verdict, found.content, len(found.differences)) == ("differs", None, 1)
    found = pm.verify(output)
    assert found.verdict == "cannot tell" and any("no hash of the tensors" in line for line in found.findings)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a configuration": lambda folder: flip(folder / "scheduler" / "scheduler_config.json", 0),
    "another file": lambda folder: (folder / "mine.txt").write_text("mine"),
    "a missing file": lambda folder: next(folder.glob("vae/*.safetensors")).unlink(),
    "a missing configuration": lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(),
    "a component that is a copy": lambda folder: flip(next(folder.glob("vae/*.safetensors")), -1),
    "the recipe's text": lambda folder: (folder / "paramerge_recipe.json").write_text(
        (folder / "paramerge_recipe.json").read_text().replace("\n", "\n ", 1)
    ),
    "the recipe": lambda folder: (folder / "paramerge_recipe.json").write_text(
        (folder / "paramerge_recipe.json").read_text().replace('"strength": 1.0', '"strength": 0.5')
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_was_changed(damage: str, folder: Path, inputs: Path) -> None:
    assert pm.verify(folder, models=[inputs]).verdict == "identical"
    DAMAGES[damage](folder)
    for models in ([inputs], []):
        found = pm.verify(folder, models=models)
        assert found.verdict == "damaged", found.findings


def test_other_tensors(baked: Path, inputs: Path) -> None:
    kept = next(iter(load(baked).tensors))
    for change in (
        lambda tensors: tensors.pop(kept),
        lambda tensors: tensors.update({"mine": np.zeros(3, np.float16)}),
        lambda tensors: tensors.update({kept: tensors[kept].reshape(-1)}),
    ):
        path = baked.with_name("other.safetensors")
        shutil.copyfile(baked, path)
        rewritten(path, change)
        found = pm.verify(path, models=[inputs])
        assert found.verdict == "damaged" and found.content is False
        assert any("mine" in line or kept in line for line in found.findings)


def test_a_file_that_is_cut_off(baked: Path, inputs: Path) -> None:
    baked.write_bytes(baked.read_bytes()[:-1])
    assert pm.verify(baked, models=[inputs]).verdict == "damaged"


def test_numbers_that_are_not_finite(baked: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = next(key for key in load(baked).tensors if key.endswith("attn1.to_q.weight"))
    rewritten(baked, lambda tensors: tensors.update({key: np.full_like(tensors[key], np.nan)}))
    (difference,) = pm.verify(baked, models=[inputs]).differences
    assert difference.relative_error == np.inf and difference.units is None
    call("verify", baked, "--models", inputs, "--json")
    assert json.loads(capsys.readouterr().out)["differences"][0]["relative_error"] is None


def test_what_is_no_output_of_bake(inputs: Path, tmp_path: Path) -> None:
    for path in (inputs / "one.safetensors", inputs / "l.safetensors", inputs / "tree"):
        found = pm.verify(path)
        assert found.verdict == "cannot tell" and found.findings == ("there is no recipe here",)
    pm.convert([inputs / "l.safetensors"], tmp_path / "c.safetensors", to="diffusers")
    assert "convert wrote it" in pm.verify(tmp_path / "c.safetensors").findings[0]
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(UsageError, match="this is a recipe"):
        pm.verify(tmp_path / "recipe.json")
    (tmp_path / "x.ckpt").write_bytes(b"0" * 100)
    with pytest.raises(FileFormatError):
        pm.verify(tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError):
        pm.verify(tmp_path / "missing")


def test_nothing_is_written(baked: Path, inputs: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in baked.parent.rglob("*"))
    pm.verify(baked, models=[inputs])
    assert sorted((path, path.stat().st_mtime_ns) for path in baked.parent.rglob("*")) == before
