"""LoRA + LoRA: the dense sum in NumPy float64, PEFT's concatenation, and truncation by Eckart and Young."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from baking import load
from hypothesis import given
from hypothesis import strategies as st
from merging import (
    ATTENTION,
    CONV,
    CROSS,
    SHAPES,
    TEXT,
    as_stored,
    dense_deltas,
    draw_factors,
    merge,
    name_of,
    relative,
    rng_of,
    write_bases,
    write_factors,
)
from strategies import law

from paramerge.adapters import LoraModule
from paramerge.errors import ArchitectureError, NonFiniteError, ShapeError, UnmatchedError, UsageError
from paramerge.files.hashing import file_sha256
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.formats.layers import underscored
from paramerge.formats.lora_writer import LoraFactors, write_lora
from paramerge.merge.combine import MERGE_KEY
from paramerge.models.names import ModuleName

ROUNDING = 4 * 2.0**-24
"""Two factors rounded to float32: their product is off by about two roundings of each."""


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two LoRAs of different ranks and alphas; one layer is in the first alone, one in the second."""
    return [
        write_factors(tmp_path / "a.safetensors", draw_factors(0, 4, [ATTENTION, CONV, CROSS]), alpha=3.0),
        write_factors(tmp_path / "b.safetensors", draw_factors(1, 3, [ATTENTION, CONV, TEXT]), alpha=8.0),
    ]


def added(paths: list[Path], scales: list[float]) -> dict[str, np.ndarray]:
    """The dense sum of the files' changes."""
    total: dict[str, np.ndarray] = {}
    for path, scale in zip(paths, scales, strict=True):
        for layer, delta in dense_deltas(path).items():
            total[layer] = total.get(layer, 0.0) + scale * delta
    return total


@law
@given(
    ranks=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    scales=st.lists(st.sampled_from([1.0, 0.8, -0.3, 2.0, 1e-3, -40.0]), min_size=4, max_size=4),
    alphas=st.lists(st.sampled_from([1.0, 0.25, 4.0, 16.0]), min_size=4, max_size=4),
)
def test_the_sum_is_the_dense_sum(
    tmp_path_factory: pytest.TempPathFactory, ranks: list[int], scales: list[float], alphas: list[float]
) -> None:
    """Mixed ranks, alphas and scales, on a linear layer and a convolution."""
    folder = tmp_path_factory.mktemp("sum")
    paths = [
        write_factors(folder / f"{i}.safetensors", draw_factors(i, rank, [ATTENTION, CONV]), alphas[i])
        for i, rank in enumerate(ranks)
    ]
    used = scales[: len(ranks)]
    report = merge(folder / "out.safetensors", *(f"{p}@{s!r}" for p, s in zip(paths, used, strict=True)))
    found, expected = dense_deltas(report.output), added(paths, used)
    for layer in report.layers:
        name = str(layer.name)
        parts = sum(abs(s) * np.linalg.norm(dense_deltas(p)[name]) for p, s in zip(paths, used, strict=True))
        assert np.linalg.norm(found[name] - expected[name]) <= ROUNDING * parts
        assert layer.rank == layer.full_rank == sum(ranks)
        assert layer.norm == pytest.approx(np.linalg.norm(expected[name]), rel=1e-6)
    assert report.error == 0.0


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_one_adapter_at_scale_1_gives_itself_back(tmp_path: Path, dtype: str) -> None:
    path = write_factors(tmp_path / "a.safetensors", draw_factors(0, 5), alpha=3.0, dtype=dtype)
    report = merge(tmp_path / "out.safetensors", path, dtype=dtype)
    assert load(report.output).raw == load(path).raw
    assert report.rounding == report.error == 0.0


def test_equal_factors_are_put_together_bit_for_bit(tmp_path: Path) -> None:
    """The same alpha / rank and the same scale: no number of either file changes."""
    paths = [
        write_factors(
            tmp_path / f"{i}.safetensors", draw_factors(i, rank, [ATTENTION]), alpha=rank / 8, dtype="F16"
        )
        for i, rank in enumerate((2, 3))
    ]
    report = merge(tmp_path / "out.safetensors", *(f"{path}@0.5" for path in paths), dtype="F16")
    module = open_adapter(report.output).modules[name_of(ATTENTION)]
    assert isinstance(module, LoraModule)
    up, down = module.factors()
    given_ = [open_adapter(path).modules[name_of(ATTENTION)].factors() for path in paths]  # type: ignore[union-attr]
    np.testing.assert_array_equal(up, np.concatenate([one[0] for one in given_], axis=1))
    np.testing.assert_array_equal(down, np.concatenate([one[1] for one in given_], axis=0))
    assert module.scale == 0.5 / 8
    assert report.rounding == 0.0


def test_a_scale_alone_goes_into_alpha(tmp_path: Path) -> None:
    path = write_factors(tmp_path / "a.safetensors", draw_factors(0, 4, [ATTENTION]), alpha=2.0, dtype="F16")
    report = merge(tmp_path / "out.safetensors", f"{path}@0.5", dtype="F16")
    module = open_adapter(report.output).modules[name_of(ATTENTION)]
    assert isinstance(module, LoraModule) and module.alpha == 1.0
    assert load(report.output).raw[module.down.key] == load(path).raw[module.down.key]


def test_small_scales_keep_their_accuracy_in_float16(tmp_path: Path) -> None:
    """alpha 1 at rank 64 and scale 0.01: spread over both factors, or they would sink below the range."""
    rng = rng_of(0)
    factors = {ATTENTION: (rng.standard_normal((24, 64)) * 1e-3, rng.standard_normal((64, 20)) * 0.03)}
    small = write_factors(tmp_path / "a.safetensors", factors, alpha=1.0)
    large = write_factors(tmp_path / "b.safetensors", draw_factors(1, 4, [ATTENTION]), alpha=4.0)
    report = merge(tmp_path / "out.safetensors", f"{small}@0.01", large, dtype="F16")
    module = open_adapter(report.output).modules[name_of(ATTENTION)]
    assert isinstance(module, LoraModule)
    up, down = (factor.astype(np.float64) for factor in module.factors())
    found = module.scale * up[:, :64] @ down[:64]
    assert relative(found, 0.01 * dense_deltas(small)[ATTENTION]) <= 2e-3


def test_the_rounding_that_is_printed_is_the_rounding_there_is(tmp_path: Path, two: list[Path]) -> None:
    report = merge(tmp_path / "out.safetensors", f"{two[0]}@0.7", two[1], dtype="BF16")
    found, expected = dense_deltas(report.output), added(two, [0.7, 1.0])
    for layer in report.layers:
        name = str(layer.name)
        assert layer.rounding == pytest.approx(relative(found[name], expected[name]), rel=1e-3, abs=1e-12)
    whole = [np.concatenate([d[n].ravel() for n in sorted(expected)]) for d in (found, expected)]
    assert report.rounding == pytest.approx(relative(*whole), rel=1e-3)
    assert 1e-4 < report.rounding < 1e-2


def test_layers_of_one_adapter_alone(tmp_path: Path, two: list[Path]) -> None:
    report = merge(tmp_path / "out.safetensors", *two)
    ranks = {str(layer.name): (layer.ranks, layer.rank) for layer in report.layers}
    assert ranks == {ATTENTION: ((4, 3), 7), CONV: ((4, 3), 7), CROSS: ((4, 0), 4), TEXT: ((0, 3), 3)}
    found, expected = dense_deltas(report.output), added(two, [1.0, 1.0])
    assert all(relative(found[layer], expected[layer]) <= ROUNDING for layer in SHAPES)


def test_layers_stand_in_the_order_of_their_names(tmp_path: Path, two: list[Path]) -> None:
    """UNet first, whatever the order of the inputs."""
    for order in (two, two[::-1]):
        report = merge(tmp_path / "out.safetensors", *order)
        assert [str(layer.name) for layer in report.layers] == [ATTENTION, CONV, CROSS, TEXT]
        ups = [key for key in load(report.output).tensors if key.endswith("lora_up.weight")]
        assert [underscored(key.partition(".")[0]).name for key in ups] == [  # type: ignore[union-attr]
            layer.name for layer in report.layers
        ]


def test_a_tucker_core_is_folded_in(tmp_path: Path) -> None:
    """LyCORIS's ``lora_mid``: the dense convolution by einsum, as LyCORIS rebuilds it."""
    rng = rng_of(0)
    up, mid, down = (rng.standard_normal(s) for s in ((12, 3, 1, 1), (3, 3, 3, 3), (3, 5, 1, 1)))
    stem = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{stem}.lora_{side}.weight": t.astype(np.float32)
        for side, t in (("up", up), ("mid", mid), ("down", down))
    }
    tensors[f"{stem}.alpha"] = np.array(1.5, np.float32)
    write_safetensors(tmp_path / "a.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
    plain = write_factors(tmp_path / "b.safetensors", draw_factors(1, 2, [CONV]), alpha=2.0)
    report = merge(tmp_path / "out.safetensors", f"{tmp_path / 'a.safetensors'}@2", plain)
    parts = [as_stored(part) for part in (up[:, :, 0, 0], mid, down[:, :, 0, 0])]
    dense = np.einsum("or,rshw,si->oihw", *parts).reshape(12, -1)
    expected = 2 * 0.5 * dense + dense_deltas(plain)[CONV]
    assert relative(dense_deltas(report.output)[CONV], expected) <= ROUNDING
    keys = load(report.output).tensors
    assert keys[f"{stem}.lora_down.weight"].shape == (5, 5, 3, 3) and keys[
        f"{stem}.lora_up.weight"
    ].shape == (12, 5, 1, 1)


def test_a_1x1_convolution_stored_as_a_matrix(tmp_path: Path) -> None:
    """Some trainers squeeze proj_in; the merge keeps the convolution's shape, in either order."""
    name = ModuleName("unet", "down_blocks.0.attentions.0.proj_in")
    rng = rng_of(0)
    paths = []
    for i, kernel in enumerate(((), (1, 1))):
        factors = LoraFactors(rng.standard_normal((6, 2)), rng.standard_normal((2, 5)), 2.0, kernel)
        write_lora(tmp_path / f"{i}.safetensors", {name: factors}, architecture="sd15", dtype="F32")
        paths.append(tmp_path / f"{i}.safetensors")
    for order in (paths, paths[::-1]):
        report = merge(tmp_path / "out.safetensors", *order)
        assert open_adapter(report.output).modules[name].kernel == (1, 1)  # type: ignore[union-attr]
        assert (
            relative(*(d[str(name)] for d in (dense_deltas(report.output), added(paths, [1, 1])))) <= ROUNDING
        )


# truncation


def test_truncation_is_eckart_youngs(tmp_path: Path, two: list[Path]) -> None:
    report = merge(tmp_path / "out.safetensors", f"{two[0]}@0.6", two[1], rank=2)
    found, expected = dense_deltas(report.output), added(two, [0.6, 1.0])
    lost = total = 0.0
    for layer in report.layers:
        D = expected[str(layer.name)]
        s = np.linalg.svd(D, compute_uv=False)
        tail = np.linalg.norm(s[2:]) / np.linalg.norm(s)
        assert layer.rank == 2
        assert layer.error == pytest.approx(tail, abs=1e-9)
        assert relative(found[str(layer.name)], D) == pytest.approx(tail, abs=1e-6)
        lost, total = lost + np.sum(s[2:] ** 2), total + np.sum(s**2)
    assert report.error == pytest.approx(np.sqrt(lost / total), rel=1e-9)


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_energy_keeps_the_fewest_directions(tmp_path: Path, two: list[Path], energy: float) -> None:
    report = merge(tmp_path / "out.safetensors", *two, energy=energy)
    expected = added(two, [1.0, 1.0])
    for layer in report.layers:
        shares = np.cumsum(np.linalg.svd(expected[str(layer.name)], compute_uv=False) ** 2)
        assert layer.rank == int(np.searchsorted(shares, energy * shares[-1])) + 1


def test_a_with_itself_truncates_to_its_own_rank_for_nothing(tmp_path: Path, two: list[Path]) -> None:
    report = merge(tmp_path / "out.safetensors", f"{two[0]}@0.5", f"{two[0]}@0.5", energy=1.0)
    assert {layer.rank for layer in report.layers} == {4}
    assert report.error <= 1e-12
    found, expected = dense_deltas(report.output), dense_deltas(two[0])
    assert all(relative(found[layer], expected[layer]) <= ROUNDING for layer in expected)


def test_a_rank_that_is_not_exceeded_changes_nothing(tmp_path: Path, two: list[Path]) -> None:
    whole = merge(tmp_path / "whole.safetensors", *two)
    capped = merge(tmp_path / "capped.safetensors", *two, rank=7)
    assert load(whole.output).raw == load(capped.output).raw


def test_a_minus_a_leaves_nothing(tmp_path: Path, two: list[Path]) -> None:
    with pytest.raises(UsageError, match="nothing is left"):
        merge(tmp_path / "out.safetensors", two[0], f"{two[0]}@-1", energy=0.99)
    with pytest.raises(UsageError, match="nothing is left"):
        merge(tmp_path / "out.safetensors", f"{two[0]}@0")
    kept = merge(tmp_path / "out.safetensors", f"{two[0]}@0", two[1])
    assert {str(name) for name in kept.left_out} == {CROSS}


# outside opinions


def test_peft_concatenates_to_the_same_change(tmp_path: Path) -> None:
    """PEFT's ``add_weighted_adapter(combination_type="cat")`` on a linear layer and a convolution."""
    import torch
    from peft import LoraConfig, get_peft_model

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q = torch.nn.Linear(20, 24, bias=False)
            self.conv1 = torch.nn.Conv2d(5, 12, 3, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.to_q(x)

    settings = {"a": (4, 3.0, 0.7), "b": (3, 8.0, -0.4)}
    targets = ["to_q", "conv1"]
    configs = {
        n: LoraConfig(r=r, lora_alpha=alpha, target_modules=targets) for n, (r, alpha, _) in settings.items()
    }
    model = get_peft_model(Model(), configs["a"], adapter_name="a")
    model.add_adapter("b", configs["b"])
    paths = []
    for seed, (name, (rank, alpha, _)) in enumerate(settings.items()):
        factors = draw_factors(seed, rank, [ATTENTION, CONV])
        for layer, module in ((ATTENTION, model.base_model.model.to_q), (CONV, model.base_model.model.conv1)):
            up, down = (torch.from_numpy(as_stored(factor)).float() for factor in factors[layer])
            module.lora_B[name].weight.data = up.reshape(module.lora_B[name].weight.shape)
            module.lora_A[name].weight.data = down.reshape(module.lora_A[name].weight.shape)
        paths.append(write_factors(tmp_path / f"{name}.safetensors", factors, alpha))
    scales = [scale for *_, scale in settings.values()]
    model.add_weighted_adapter(list(settings), scales, "both", combination_type="cat")
    report = merge(tmp_path / "out.safetensors", *(f"{p}@{s}" for p, s in zip(paths, scales, strict=True)))
    found = dense_deltas(report.output)
    for layer, module in ((ATTENTION, model.base_model.model.to_q), (CONV, model.base_model.model.conv1)):
        theirs = module.get_delta_weight("both").detach().double().numpy().reshape(found[layer].shape)
        assert relative(found[layer], theirs) <= 1e-6


def test_rank_stabilised_scaling_becomes_an_alpha(tmp_path: Path) -> None:
    """A PEFT folder with rsLoRA: alpha / sqrt(r) there, alpha' / r in kohya's dialect."""
    folder = tmp_path / "peft"
    folder.mkdir()
    up, down = draw_factors(0, 4, [ATTENTION])[ATTENTION]
    path = name_of(ATTENTION).path
    write_safetensors(
        folder / "adapter_model.safetensors",
        {
            f"base_model.model.{path}.lora_A.weight": down.astype(np.float32),
            f"base_model.model.{path}.lora_B.weight": up.astype(np.float32),
        },
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ["to_q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    report = merge(tmp_path / "out.safetensors", folder)
    expected = 6 / 2 * as_stored(up) @ as_stored(down)
    assert relative(dense_deltas(report.output)[ATTENTION], expected) <= ROUNDING


# what is said and refused


def test_the_file_says_what_it_was_made_of(tmp_path: Path, two: list[Path]) -> None:
    report = merge(tmp_path / "out.safetensors", f"{two[0]}@0.7", two[1], rank=5)
    metadata = open_adapter(report.output).metadata
    recipe = json.loads(metadata[MERGE_KEY])
    assert [entry["files"][0]["sha256"] for entry in recipe["inputs"]] == [file_sha256(path) for path in two]
    assert [entry["scale"] for entry in recipe["inputs"]] == [0.7, 1.0]
    assert metadata["ss_base_model_version"] == "sd_v1" and metadata["ss_network_dim"] == "Dynamic"
    again = merge(tmp_path / "again.safetensors", f"{two[0]}@0.7", two[1], rank=5)
    assert report.output.read_bytes() == again.output.read_bytes()


def test_shapes_and_architectures_that_conflict(tmp_path: Path, two: list[Path]) -> None:
    rng = rng_of(0)
    out = tmp_path / "out.safetensors"

    def one(
        name: str,
        layer: str,
        shape: tuple[int, int],
        kernel: tuple[int, ...] = (),
        architecture: str = "sd15",
    ) -> Path:
        factors = LoraFactors(
            rng.standard_normal((shape[0], 2)), rng.standard_normal((2, shape[1])), 2.0, kernel
        )
        write_lora(tmp_path / name, {name_of(layer): factors}, architecture=architecture)
        return tmp_path / name

    with pytest.raises(ShapeError, match="different sizes"):
        merge(out, two[0], one("c.safetensors", ATTENTION, (24, 21)))
    with pytest.raises(ShapeError, match="different shapes"):
        merge(out, two[0], one("d.safetensors", CONV, (12, 45), (1, 1)))
    with pytest.raises(ArchitectureError, match="different architectures"):
        merge(out, two[0], one("e.safetensors", CROSS, (16, 2048), architecture="sdxl"))
    assert not out.exists()


def test_damaged_numbers_and_options_that_do_not_fit(tmp_path: Path, two: list[Path]) -> None:
    out = tmp_path / "out.safetensors"
    stem = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {
        f"{stem}.lora_up.weight": np.full((12, 1, 1, 1), np.inf, np.float32),
        f"{stem}.lora_down.weight": np.ones((1, 5, 3, 3), np.float32),
    }
    write_safetensors(tmp_path / "inf.safetensors", tensors)
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        merge(out, two[0], tmp_path / "inf.safetensors")
    for options, word in (
        ({"gamma": 0.5}, "gamma does not apply"),
        ({"keep": "order"}, "keep does not apply"),
        ({"energy": 1.5}, "energy is out of range"),
    ):
        with pytest.raises(UsageError, match=word):
            merge(out, *two, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not a finite number"):
        merge(out, f"{two[0]}@nan")
    with pytest.raises(UsageError, match="nothing to merge"):
        merge(out)


def test_keys_that_land_nowhere_are_told(tmp_path: Path, two: list[Path]) -> None:
    content = load(two[0])
    extra = {**content.tensors, "emb_params": np.ones((1, 4), np.float32)}
    write_safetensors(tmp_path / "c.safetensors", extra, content.metadata)
    with pytest.raises(UnmatchedError, match="1 key of this adapter is not understood"):
        merge(tmp_path / "out.safetensors", tmp_path / "c.safetensors")
    report = merge(tmp_path / "out.safetensors", tmp_path / "c.safetensors", allow_unmatched=True)
    assert "1 keys are left out" in report.warnings[0] and "emb_params" in report.warnings[0]


def test_a_para_and_a_lora_need_a_base(tmp_path: Path, two: list[Path]) -> None:
    para = write_bases(tmp_path / "p.safetensors", {ATTENTION: np.ones((24, 1))})
    with pytest.raises(Exception, match="without a base") as caught:
        merge(tmp_path / "out.safetensors", para, two[0])
    assert "bake both" in str(caught.value)
