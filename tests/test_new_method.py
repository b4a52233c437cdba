"""A merge method that paramerge does not know, defined in one place: ``merge`` takes it, and ``replay``.

It is the one of ``docs/extending.md``, whose code is run as it stands there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from baking import load, rounded, small_model
from blueprints import sd15
from random_checkpoint import write_random_checkpoint
from toy_packages import HALFWAY, WAYS, run

import paramerge as pm
import paramerge.cli.merge  # before the method is known: its options are made when it is imported
from paramerge.errors import UsageError


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    second = folder / "two.safetensors"
    write_random_checkpoint(sd15(8, vocabulary=64), second, seed=2, dtype="F16")
    return [small_model(folder / "one.safetensors", dtype="F16"), second]


@pytest.fixture(params=WAYS)
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """The method, as an installed package adds it and as a call does."""
    with HALFWAY.known(tmp_path / "site-packages", request.param):
        yield


@pytest.mark.usefixtures("known")
def test_merge_and_replay(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, again = tmp_path / "mixed.safetensors", tmp_path / "again.safetensors"
    code, text = run(capsys, "merge", *models, "--method", "halfway", "-o", output)
    assert code == 0, text
    one, other = (load(path).tensors for path in models)
    for key, value in load(output).tensors.items():
        if value.dtype == np.float16:
            first, second = one[key].astype(np.float64), other[key].astype(np.float64)
            # float32 in between: a tie may be decided either way
            off = np.abs(value.astype(np.float64) - rounded(first + 0.5 * (second - first), "F16"))
            assert np.all(off <= np.spacing(np.abs(value)).astype(np.float64)), key
    code, text = run(capsys, "replay", output, "--models", models[0].parent, "-o", again)
    assert code == 0, text
    assert output.read_bytes() == again.read_bytes()


@pytest.mark.usefixtures("known")
def test_its_parameter(models: list[Path], tmp_path: Path) -> None:
    pm.merge(models, tmp_path / "0.safetensors", method="halfway", share=0)
    assert load(tmp_path / "0.safetensors").raw == load(models[0]).raw
    with pytest.raises(UsageError, match="out of range"):
        pm.merge(models, tmp_path / "2.safetensors", method="halfway", share=2)


@pytest.mark.usefixtures("known")
def test_help_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "merge", "--method", "help")
    assert code == 0
    assert "halfway" in text and "a + share (b - a), element by element." in text


def test_elsewhere_it_is_not_known(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, "merge", *models, "--method", "halfway", "-o", tmp_path / "o.safetensors")
    assert code != 0
    assert "halfway" in text
