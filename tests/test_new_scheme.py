"""A storage scheme that paramerge does not know, defined in one place: every verb reads its layers.

It is the one of ``docs/extending.md``, whose code is run as it stands there.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from baking import load, lora_file, random_factors, shapes_of, small_model
from toy_packages import LOG8, WAYS, run

import paramerge as pm
from paramerge.errors import CheckpointError
from paramerge.files.writer import write_safetensors

KEY = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model with one layer of logarithms, and the plain one of its values."""
    folder = tmp_path_factory.mktemp("models")
    tensors = load(small_model(folder / "model.safetensors", dtype="F16")).tensors
    shape = tensors[f"{KEY}.weight"].shape
    rng = np.random.default_rng(0)
    codes, step = rng.integers(0, 256, shape).astype(np.uint8), np.full(shape[0], 0.125, np.float32)
    values = np.where(codes < 128, 1, -1) * np.exp2(-0.125 * (codes & 127))
    stored = tensors | {f"{KEY}.weight": codes, f"{KEY}.log_step": step}
    write_safetensors(folder / "stored.safetensors", stored, {})
    plain = tensors | {f"{KEY}.weight": values.astype(np.float64)}
    write_safetensors(folder / "plain.safetensors", plain, {})
    return folder / "stored.safetensors", folder / "plain.safetensors"


@pytest.fixture(params=WAYS)
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """The scheme, as an installed package adds it and as a call does."""
    with LOG8.known(tmp_path / "site-packages", request.param):
        yield


def lora_on(model: Path, path: Path) -> Path:
    return lora_file(path, random_factors(shapes_of(model), [LAYER], 4))


@pytest.mark.usefixtures("known")
def test_verbs_read_its_values(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = lora_on(models[1], tmp_path / "lora.safetensors")
    for model, name in zip(models, ("stored", "plain"), strict=True):
        code, text = run(
            capsys, "bake", "--base", model, "--lora", lora, "-o", tmp_path / f"{name}.safetensors"
        )
        assert code == 0, text
        pm.extract(
            tmp_path / f"{name}.safetensors",
            model,
            tmp_path / f"{name}-lora.safetensors",
            family="lora",
            rank=4,
        )
    stored, plain = (load(tmp_path / f"{name}.safetensors") for name in ("stored", "plain"))
    weight = stored.tensors[f"{KEY}.weight"]
    assert weight.dtype == ml_dtypes.bfloat16
    assert f"{KEY}.log_step" not in stored.raw
    exact = plain.tensors[f"{KEY}.weight"]
    assert np.mean(weight != exact.astype(np.float32).astype(ml_dtypes.bfloat16)) <= 0.0005
    assert (
        load(tmp_path / "stored-lora.safetensors").raw.keys()
        == load(tmp_path / "plain-lora.safetensors").raw.keys()
    )


@pytest.mark.usefixtures("known")
def test_it_is_read_and_not_written(models: tuple[Path, Path], tmp_path: Path) -> None:
    lora = lora_on(models[1], tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="read and not written"):
        pm.bake(models[0], [lora], tmp_path / "out.safetensors", requantise=True)


def test_without_the_package_it_is_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    lora = lora_on(models[1], tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="U8 with log_step"):
        pm.bake(models[0], [lora], tmp_path / "out.safetensors")
