"""Random bakes and merges are verified, and one byte of any of their files is noticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from random_recipes import commands, write_inputs

import paramerge as pm
from paramerge.cli.main import main


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes") / "inputs"
    write_inputs(folder)
    return folder


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_random_outputs_are_identical_and_one_byte_is_noticed(
    count: int, inputs: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(count)
    done = folders = merges = 0
    for number, words in enumerate(commands(inputs, count, seed=count)):
        output = tmp_path / str(number) / "out"
        output.parent.mkdir()
        is_folder = (words[2] if words[0] == "bake" else words[1]).endswith("tree")
        if not is_folder:
            output = output.with_suffix(".safetensors")
        if call(*words, "-o", output):
            continue  # a rank boundary or block that does not suit it
        found = pm.verify(output, models=[inputs])
        assert (found.verdict, found.findings, found.differences) == ("identical", (), ()), words
        assert found.header and found.content and found.is_made_again
        files = [output] if output.is_file() else sorted(p for p in output.rglob("*") if p.is_file())
        path = files[rng.integers(len(files))]
        flip(path, int(rng.integers(path.stat().st_size)), 1 << int(rng.integers(8)))
        for models in ([], [inputs]) if number % 5 == 0 else ([],):
            assert pm.verify(output, models=models).verdict == "damaged", (words, path)
        done, folders, merges = done + 1, folders + is_folder, merges + (words[0] == "merge")
        shutil.rmtree(output.parent)
    assert done > 0.7 * count
    assert folders and merges
