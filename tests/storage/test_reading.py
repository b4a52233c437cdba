"""Every scheme's true values are those of the code that it comes from, to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from quantised_models import CASES, LAYERS, write_model

from paramerge.checkpoints.layout import open_base
from paramerge.resolve.weights import BaseWeights
from paramerge.storage.blocked import from_blocked, to_blocked

pytest.importorskip("comfy_kitchen")
pytest.importorskip("bitsandbytes")

EXACT = [name for name in CASES if name != "int8 ConvRot"]


@pytest.mark.parametrize("kind", ["random", "hard"])
@pytest.mark.parametrize("name", EXACT)
def test_values_are_the_references(name: str, kind: str, tmp_path: Path) -> None:
    folder, references = write_model(tmp_path / "base", CASES[name], kind)
    base = open_base(folder)
    (file,) = base.files
    for layer, reference in references.items():
        tensor = file.tensor(f"{layer}.weight")
        assert file.quantised[f"{layer}.weight"].scheme.name == CASES[name].scheme
        found = tensor.read_exact()
        wanted = reference
        if name == "fp4":  # whose table has one zero, and the kernel two
            found, wanted = found + 0.0, reference + 0.0
        assert found.astype(np.float32).tobytes() == wanted.astype(np.float32).tobytes()


@pytest.mark.parametrize("kind", ["random", "hard"])
def test_rotated_values_are_the_references_before_its_rounding(kind: str, tmp_path: Path) -> None:
    """The reference sums in float32, and paramerge exactly: they differ by what 64 roundings can be."""
    folder, references = write_model(tmp_path / "base", CASES["int8 ConvRot"], kind)
    (file,) = open_base(folder).files
    for layer, reference in references.items():
        found = file.tensor(f"{layer}.weight").read_exact()
        largest = np.abs(found).max(axis=1, keepdims=True) * 8  # before it was rotated
        assert np.all(np.abs(found - reference) <= 64 * 2.0**-24 * largest)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.mark])
def test_marks_in_the_metadata_mean_the_same(name: str, tmp_path: Path) -> None:
    one, _ = write_model(tmp_path / "tensor", CASES[name])
    other, _ = write_model(tmp_path / "metadata", CASES[name], marks="metadata")
    values = [
        [file.tensor(f"{layer}.weight").read_exact() for layer in LAYERS[:3]]
        for base in (one, other)
        for file in open_base(base).files
    ]
    assert np.array_equal(*map(np.stack, values))


@pytest.mark.parametrize("name", ["blocks", "mxfp8", "nvfp4", "int8 ConvRot", "rows", "bitsandbytes"])
def test_rows_can_be_read_in_any_runs(name: str, tmp_path: Path) -> None:
    import torch

    folder, _ = write_model(tmp_path / "base", CASES[name], "hard")
    (file,) = open_base(folder).files
    tensor = file.tensor(f"{LAYERS[0]}.weight")
    whole = tensor.read_exact()
    opened = file.quantised[f"{LAYERS[0]}.weight"].open()
    for start, stop in ((0, 1), (7, 20), (63, 64)):
        for dtype in (torch.float64, torch.float32):
            out = torch.empty((stop - start, whole.shape[1]), dtype=dtype)
            opened.read(start, stop, out)
            tolerance = 0 if dtype == torch.float64 else 2.0**-23
            assert np.allclose(out.double().numpy(), whole[start:stop], rtol=tolerance, atol=0)


def test_the_names_of_parts_are_no_layers(tmp_path: Path) -> None:
    folder, references = write_model(tmp_path / "base", CASES["rows"])
    base = open_base(folder)
    weights = BaseWeights(base)
    names = {name.path: name for file in base.files for name in file.targets}
    assert {name for name in names if "scale" in name} == set()
    layer = names[LAYERS[1]]
    assert np.array_equal(weights.matrix(layer), base.files[0].tensor(f"{LAYERS[1]}.weight").read_exact())
    assert np.allclose(weights.matrix(layer), references[LAYERS[1]], rtol=2.0**-23, atol=0)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (64, 4), (130, 7), (256, 8)])
def test_the_order_of_scales_is_that_of_comfy_kitchen(rows: int, columns: int) -> None:
    import comfy_kitchen
    import torch

    scales = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    stored = comfy_kitchen.to_blocked(torch.from_numpy(scales), flatten=False).numpy()
    assert np.array_equal(to_blocked(scales), stored)
    assert np.array_equal(from_blocked(stored, rows, columns), scales)


@pytest.mark.parametrize("compute", ["float32", "float64"])
@pytest.mark.parametrize(
    ("dtype", "name"), [("F8_E4M3", "float8_e4m3fn"), ("F8_E5M2", "float8_e5m2"), ("I8", "int8")]
)
def test_every_code_has_its_value(dtype: str, name: str, compute: str) -> None:
    import torch

    from paramerge.storage.codes import decode

    codes = torch.arange(256, dtype=torch.uint8)
    found = torch.empty(256, dtype=getattr(torch, compute))
    decode(codes, dtype, found)
    wanted = codes.view(getattr(torch, name)).to(found.dtype)
    assert found.numpy().tobytes() == wanted.numpy().tobytes() or torch.equal(
        found.nan_to_num(7777), wanted.nan_to_num(7777)
    )
    numbers = codes[~wanted.isnan()]
    few = torch.empty(len(numbers), dtype=found.dtype)
    decode(numbers, dtype, few)
    assert torch.equal(few, wanted[~wanted.isnan()])
    assert torch.equal(few.signbit(), wanted[~wanted.isnan()].signbit())
