"""Merging adapters that people trained, and PaRas extracted from them; dense answers from NumPy."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from baking import load
from merging import dense_deltas, merge, relative

from paramerge.adapters import LoraModule
from paramerge.extract.from_lora import extract_para
from paramerge.formats import open_adapter, write_para

LORAS = (
    "cloneofsimo_analog_svd_rank4.safetensors",
    "cloneofsimo_lora_disney.safetensors",
    "diffusers_old_catundchat_sd15.safetensors",
    "peft_sd15_text_encoder",
)
FP16 = 2e-3


@pytest.fixture(scope="module")
def loras(shared_dir: Path) -> dict[str, Path]:
    return {name: shared_dir / "fixtures" / "adapters" / name for name in LORAS}


@pytest.fixture(scope="module")
def paras(loras: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """PaRas of rank 4 from each of them."""
    folder = tmp_path_factory.mktemp("paras")
    paths = []
    for name, path in loras.items():
        adapter = open_adapter(path)
        extraction = extract_para(adapter, rank=4, allow_unmatched=True)
        paths.append(folder / f"{name}.para.safetensors")
        write_para(
            paths[-1],
            {layer.name: layer.directions for layer in extraction.layers},
            architecture=adapter.architecture,
        )
    return paths


def layers_of(path: Path) -> list[str]:
    return [str(name) for name in open_adapter(path).modules]


def changes(path: Path, layers: Collection[str]) -> dict[str, np.ndarray]:
    """Dense changes of some layers of a LoRA of any dialect."""
    found = {}
    for name, module in open_adapter(path).modules.items():
        if str(name) in layers:
            assert isinstance(module, LoraModule)
            up, down = (factor.astype(np.float64) for factor in module.factors())
            found[str(name)] = module.scale * (up @ down)
    return found


def spans(path: Path) -> dict[str, np.ndarray]:
    """Orthonormal bases of a PaRa, by NumPy's QR."""
    content = load(path).tensors
    bases = {key.removesuffix(".para_B"): basis.astype(np.float64) for key, basis in content.items()}
    return {layer: np.linalg.qr(basis)[0] for layer, basis in bases.items()}


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Sine of the largest angle, at least, between spans of one rank."""
    assert one.shape == other.shape
    return float(np.linalg.norm(one - other @ (other.T @ one)))


def test_each_lora_comes_back_in_kohyas_dialect(loras: dict[str, Path], tmp_path: Path) -> None:
    """From three dialects, in float32: the same changes, to nothing but the rounding of a product."""
    for name, path in loras.items():
        report = merge(tmp_path / f"{Path(name).stem}.safetensors", path, allow_unmatched=True)
        names = layers_of(path)
        assert [str(layer.name) for layer in report.layers] == sorted(names, key=lambda n: (n[0] == "t", n))
        found, expected = dense_deltas(report.output, names[::16]), changes(path, names[::16])
        assert found.keys() == expected.keys() and len(found) >= 2
        assert all(relative(found[layer], expected[layer]) <= 1e-6 for layer in expected)
        assert report.rounding == 0.0


def test_all_of_them_add_up(loras: dict[str, Path], tmp_path: Path) -> None:
    scales = [0.8, 1.0, -0.5, 0.3]
    inputs = [f"{path}@{scale}" for path, scale in zip(loras.values(), scales, strict=True)]
    report = merge(tmp_path / "all.safetensors", *inputs, dtype="F16", allow_unmatched=True)
    assert {str(layer.name) for layer in report.layers} == {
        n for path in loras.values() for n in layers_of(path)
    }
    some = [str(layer.name) for layer in report.layers][::16]
    expected: dict[str, np.ndarray] = {}
    for path, scale in zip(loras.values(), scales, strict=True):
        for layer, change in changes(path, some).items():
            expected[layer] = expected.get(layer, 0.0) + scale * change
    found = dense_deltas(report.output, some)
    for layer in report.layers:
        if str(layer.name) in some:
            off = relative(found[str(layer.name)], expected[str(layer.name)])
            assert off == pytest.approx(layer.rounding, rel=0.01) and off <= FP16


def test_paras_from_them_merge_with_themselves_to_themselves(paras: list[Path], tmp_path: Path) -> None:
    for path in paras:
        report = merge(tmp_path / "same.safetensors", path, path, dtype="F16")
        before, after = spans(path), spans(report.output)
        assert before.keys() == after.keys()
        assert all(layer.rank == layer.ranks[0] for layer in report.layers)
        assert all(distance(before[layer], after[layer]) <= 2 * FP16 for layer in before)


def test_paras_from_them_merge_jointly(paras: list[Path], tmp_path: Path) -> None:
    """Unrelated styles share no direction, so the ranks add up; and the order changes nothing."""
    report = merge(tmp_path / "ab.safetensors", *paras[:3])
    assert all(layer.rank == sum(layer.ranks) for layer in report.layers)
    other = spans(merge(tmp_path / "ba.safetensors", *paras[2::-1]).output)
    for layer, Q in spans(report.output).items():
        assert distance(Q, other[layer]) <= 1e-5
    bounded = merge(tmp_path / "bounded.safetensors", *paras[:3], gamma=1 / 80)
    assert {layer.limit for layer in bounded.layers} == {4, 8, 16, 9}
    assert all(layer.rank == min(layer.full_rank, layer.limit or 0) for layer in bounded.layers)
