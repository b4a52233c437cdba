"""The hashes of an output in itself, computed again as docs/recipe.md says it, by nothing of paramerge."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from baking import lora_file, plan_of, random_factors, shapes_of
from random_recipes import LAYERS, write_inputs

import paramerge as pm
from paramerge.apply.steps import Step
from paramerge.bake import plan as plan_module
from paramerge.bake import stream, tasks
from paramerge.bake.bake import bake

KEY = "paramerge.recipe"


def parts(path: Path) -> tuple[bytes, dict[str, list[object]], dict[str, str]]:
    """The header as it is, the content hash's line of each tensor, and the metadata."""
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8:start])
    metadata = entries.pop("__metadata__", {})
    lines = {}
    for key, entry in entries.items():
        begin, end = entry["data_offsets"]
        digest = hashlib.sha256(data[start + begin : start + end]).hexdigest()
        lines[key] = [key, entry["dtype"], entry["shape"], digest]
    return data[:start], lines, metadata


def hashed(lines: dict[str, list[object]]) -> str:
    text = "".join(json.dumps(line) + "\n" for _, line in sorted(lines.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def header_is_as_stated(header: bytes, metadata: dict[str, str]) -> bool:
    stated = metadata["paramerge.header_sha256"]
    return hashlib.sha256(header.replace(stated.encode(), b"0" * 64)).hexdigest() == stated


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("content") / "inputs"
    write_inputs(folder)
    return folder


@pytest.mark.parametrize("buffer", [None, 20_000])
@pytest.mark.parametrize("dtype", ["keep", "bf16"])
def test_a_file(
    buffer: int | None, dtype: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if buffer:  # tensors in several pieces
        monkeypatch.setattr(tasks, "BUFFER_BYTES", buffer)
        monkeypatch.setattr(stream, "BUFFER_BYTES", buffer)
    base = inputs / "one.safetensors"
    lora = lora_file(tmp_path / "l.safetensors", random_factors(shapes_of(base), LAYERS, 2))
    bake(plan_of(base, Step("lora", lora), dtype=dtype), tmp_path / "out.safetensors")
    header, lines, metadata = parts(tmp_path / "out.safetensors")
    assert json.loads(metadata[KEY])["content"] == {"sha256": hashed(lines)}
    assert header_is_as_stated(header, metadata)
    bake(plan_of(tmp_path / "out.safetensors", Step("lora", lora, 0.5)), tmp_path / "again.safetensors")
    header, lines, metadata = parts(tmp_path / "again.safetensors")
    recipe = json.loads(metadata[KEY])
    assert header_is_as_stated(header, metadata)
    assert recipe["content"]["sha256"] == hashed(lines) != recipe["base_recipe"]["content"]["sha256"]


def test_a_folder_and_a_merge(inputs: Path, tmp_path: Path) -> None:
    pm.merge(
        [inputs / "tree", inputs / "two.safetensors"],
        tmp_path / "out",
        adapters=[pm.Lora(inputs / "l.safetensors")],
        only=["unet"],
    )
    recipe = json.loads((tmp_path / "out" / "paramerge_recipe.json").read_text())
    found = {}
    for path in sorted((tmp_path / "out").rglob("*.safetensors")):
        header, lines, metadata = parts(path)
        name = path.relative_to(tmp_path / "out").as_posix()
        found[name] = hashed(lines)
        if KEY in metadata:
            assert header_is_as_stated(header, metadata)
            assert json.loads(metadata[KEY])["content"] == recipe["content"]
        else:
            assert path.read_bytes() == (inputs / "tree" / name).read_bytes()
    assert recipe["content"]["files"] == [{"name": n, "sha256": d} for n, d in sorted(found.items())]
    text = "".join(json.dumps([name, digest]) + "\n" for name, digest in sorted(found.items()))
    assert recipe["content"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_it_is_asked_for_where_outputs_are_large(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, lora, out = inputs / "one.safetensors", inputs / "l.safetensors", tmp_path / "out.safetensors"
    for limit, wanted, expected in [
        (64 << 20, None, True),
        (64 << 20, False, False),
        (1, None, False),
        (1, True, True),
    ]:
        monkeypatch.setattr(plan_module, "ALWAYS_HASHED_BYTES", limit)
        pm.bake(base, [lora], out, content_hash=wanted, overwrite=True)
        assert ("content" in json.loads(parts(out)[2][KEY])) is expected
        monkeypatch.setattr(plan_module, "ALWAYS_HASHED_BYTES", 64 << 20)
        pm.replay(out, tmp_path / "again.safetensors", models=[inputs], overwrite=True)
        assert (tmp_path / "again.safetensors").read_bytes() == out.read_bytes()
