"""The modules of an adapter as data: exact factors, scales and norms, and extraction as a function."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from adapter_files import BF16, kohya_layer, save
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators, law, norm2, projector

from paramerge.adapters import LoraModule
from paramerge.errors import FamilyError, FileFormatError, UsageError
from paramerge.extract.from_lora import extract_para
from paramerge.formats import open_adapter, write_para
from paramerge.models.names import ModuleName

STEM = "lora_unet_mid_block_resnets_0_conv1"


def only_module(path: Path) -> LoraModule:
    (module,) = open_adapter(path).modules.values()
    assert isinstance(module, LoraModule)
    return module


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BF16])
def test_factors_are_the_stored_numbers(dtype: np.dtype, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((5, 3)).astype(dtype), rng.standard_normal((3, 4)).astype(dtype)
    module = only_module(save(tmp_path / "l.safetensors", kohya_layer(STEM, up, down)))
    B, A = module.factors()
    assert B.dtype == A.dtype == (np.float64 if dtype is np.float64 else np.float32)
    assert np.array_equal(B.astype(np.float64), up.astype(np.float64))
    assert np.array_equal(A.astype(np.float64), down.astype(np.float64))


@law
@given(
    rng=generators(),
    out=st.integers(1, 6),
    wide=st.integers(1, 6),
    rank=st.integers(1, 4),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 3)]),
    tucker=st.booleans(),
    alpha=st.none() | st.sampled_from([0.5, 1.0, 3.0, -2.0]),
)
def test_a_convolutions_change_is_the_composed_convolution(
    rng: np.random.Generator,
    out: int,
    wide: int,
    rank: int,
    kernel: tuple[int, int],
    tucker: bool,
    alpha: float | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Down, core and up applied one after the other to a patch give what ``scale * B A`` gives."""
    inner = (1, 1) if tucker else kernel
    up = rng.standard_normal((out, rank, 1, 1)).astype(np.float32)
    down = rng.standard_normal((rank, wide, *inner)).astype(np.float32)
    mid = rng.standard_normal((rank, rank, *kernel)).astype(np.float32) if tucker else None
    path = tmp_path_factory.getbasetemp() / "conv.safetensors"
    module = only_module(save(path, kohya_layer(STEM, up, down, alpha, mid)))
    patch = rng.standard_normal((wide, *kernel))
    if mid is None:
        hidden = np.tensordot(down.astype(np.float64), patch, axes=3)
    else:
        pixels = np.einsum("rc,chw->rhw", down[:, :, 0, 0].astype(np.float64), patch)
        hidden = np.tensordot(mid.astype(np.float64), pixels, axes=3)
    scale = 1.0 if alpha is None else alpha / rank
    expected = scale * (up[:, :, 0, 0].astype(np.float64) @ hidden)
    B, A = (factor.astype(np.float64) for factor in module.factors())
    found = module.scale * (B @ (A @ patch.reshape(-1)))
    size = abs(scale) * np.linalg.norm(B) * np.linalg.norm(A) * np.linalg.norm(patch)
    assert np.linalg.norm(found - expected) <= 64 * np.finfo(np.float64).eps * size
    assert (module.out_features, module.in_features) == (out, wide * math.prod(kernel))
    assert module.norm() == pytest.approx(abs(scale) * float(np.linalg.norm(B @ A)), rel=1e-6)


def test_rslora_divides_by_the_root(tmp_path: Path) -> None:
    up, down = np.ones((5, 4), np.float32), np.ones((4, 6), np.float32)
    module = only_module(save(tmp_path / "l.safetensors", kohya_layer(STEM, up, down)))
    assert LoraModule(module.name, module.up, module.down, None, 6.0, True).scale == 3.0
    assert LoraModule(module.name, module.up, module.down, None, 6.0).scale == 1.5


def test_the_norm_of_a_product_that_cancels_is_no_complex_number(tmp_path: Path) -> None:
    up = np.array([[1.0, -1.0]] * 3, np.float32)
    down = np.array([[1 / 3] * 5] * 2, np.float32)
    module = only_module(save(tmp_path / "l.safetensors", kohya_layer(STEM, up, down)))
    assert 0 <= module.norm() < 1e-6


def test_a_file_that_shrank_is_an_error_of_ours(tmp_path: Path) -> None:
    path = save(
        tmp_path / "l.safetensors",
        kohya_layer(STEM, np.ones((5, 4), np.float32), np.ones((4, 6), np.float32)),
    )
    module = only_module(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FileFormatError, match="became shorter"):
        module.factors()


@law
@given(rng=generators(), rank=st.integers(1, 4), asked=st.integers(1, 6))
def test_extracted_directions_hold_the_most_energy(
    rng: np.random.Generator, rank: int, asked: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    up, down = rng.standard_normal((9, rank)), rng.standard_normal((rank, 7))
    path = tmp_path_factory.getbasetemp() / "extract.safetensors"
    adapter = open_adapter(save(path, kohya_layer(STEM, up, down, 3.0)))
    (layer,) = extract_para(adapter, rank=asked).layers
    U, s, _ = np.linalg.svd(up @ down)
    kept = min(asked, rank)
    assert (layer.rank, layer.lora_rank) == (kept, rank)
    assert norm2(layer.directions.T @ layer.directions - np.eye(kept)) < 1e-12
    gap = s[kept - 1] - (s[kept] if kept < 7 else 0.0)
    assert norm2(projector(layer.directions) - projector(U[:, :kept])) < 1e-13 * s[0] / gap
    assert layer.captured == pytest.approx(float(np.sum(s[:kept] ** 2) / np.sum(s**2)), rel=1e-10)
    assert layer.norm == pytest.approx(3.0 / rank * float(np.linalg.norm(s)), rel=1e-9)


def test_extraction_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    write_para(path, {ModuleName("unet", "conv_in"): np.eye(4, 2)}, architecture=None)
    with pytest.raises(FamilyError, match="is no LoRA"):
        extract_para(open_adapter(path), rank=1)
    for choice in ({}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"energy": 0.0}, {"energy": math.nan}):
        with pytest.raises(UsageError):
            extract_para(open_adapter(path), **choice)  # type: ignore[arg-type]
