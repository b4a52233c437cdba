"""The user's word where trainers disagree, in a merge: ``--lokr-scale`` and ``--krona``, as in a bake."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from baking import Array, load, shapes_of, small_model
from blueprints import sd15
from family_cases import CASES, KRONA_CASES
from random_checkpoint import write_random_checkpoint

from paramerge.cli.main import main

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    one = small_model(folder / "one.safetensors", dtype="F32")
    write_random_checkpoint(sd15(8, vocabulary=64), folder / "two.safetensors", seed=2, dtype="F32")
    shapes = {LAYER: shapes_of(one)[LAYER]}
    cases = {case.name: case for case in (*CASES, *KRONA_CASES)}
    found = {"one": one, "two": folder / "two.safetensors"}
    for name in ("lokr-whole", "krona-32-16"):
        found[name] = cases[name].write(folder / name, shapes)[0]
    return found


def merged(files: dict[str, Path], output: Path, *words: str | Path) -> dict[str, Array]:
    with pytest.raises(SystemExit) as stop:
        main([*map(os.fspath, ("merge", files["one"], files["two"], *words, "-o", output))])
    assert not stop.value.code
    return dict(load(output).tensors)


def same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return all(np.array_equal(value, other[key]) for key, value in one.items())


def test_lokr_scale(files: dict[str, Path], tmp_path: Path) -> None:
    path = files["lokr-whole"]
    usual = merged(files, tmp_path / "1.safetensors", "--adapter", path)
    scaled = merged(files, tmp_path / "2.safetensors", "--adapter", path, "--lokr-scale", "0.5")
    half = merged(files, tmp_path / "3.safetensors", "--adapter", f"{path}@0.5")
    assert same(scaled, half) and not same(scaled, usual)


def test_krona(files: dict[str, Path], tmp_path: Path) -> None:
    path = files["krona-32-16"]
    code = merged(files, tmp_path / "1.safetensors", "--adapter", path, "--krona", "code")
    usual = merged(files, tmp_path / "2.safetensors", "--adapter", path)
    paper = merged(files, tmp_path / "3.safetensors", "--adapter", path, "--krona", "paper")
    assert same(code, usual) and not same(code, paper)
    (key,) = [key for key in code if not np.array_equal(code[key], paper[key])]
    before = merged(files, tmp_path / "4.safetensors")[key].astype(np.float64)
    # the same rows of the change, in another order
    rows = [sorted(map(tuple, (found[key] - before).round(4).tolist())) for found in (code, paper)]
    assert rows[0] == rows[1]
