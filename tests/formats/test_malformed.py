"""Adapters that are malformed: each is read as what it is or refused, by one check for all families."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import adapter_mutants
import numpy as np
import pytest
from adapter_files import Array, kohya_layer, save
from adapter_mutants import OTHER_LAYERS, Bench, Mutant, Tensor, check, mutant
from config_mutants import config_mutant, model_mutant
from contracts import LAYERS
from family_cases import CASES, Case
from safetensors.numpy import load_file

from paramerge.errors import AdapterError, NonFiniteError, ParamergeError, ShapeError
from paramerge.extract.from_lora import extract_para
from paramerge.files.dtypes import BITS
from paramerge.formats import open_adapter
from paramerge.formats.registry import place_of
from paramerge.inspect.inspection import AdapterFacts, inspect_path

STEM = "lora_unet_mid_block_attentions_0_proj_in"
SHAPES = ((), (1,), (7,), (2, 0), (0, 10**12), (1, 1), (2, 3, 4), (1, 2, 3, 3), (2, 1, 1, 1, 1), (1,) * 6)
MUTANTS = 300


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("seed", range(0, MUTANTS, 20))
def test_a_damaged_adapter_is_understood_or_refused_by_every_verb(seed: int, bench: Bench) -> None:
    findings = [
        str(found) for each in range(seed, seed + 20) for found in check(mutant(each), bench, verbs=1)
    ]
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("make", [config_mutant, model_mutant])
def test_a_damaged_configuration_is_understood_or_refused(
    make: Callable[[int], Mutant], bench: Bench
) -> None:
    findings = [str(found) for seed in range(60) for found in check(make(seed), bench)]
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("make", [mutant, config_mutant, model_mutant])
def test_a_mutant_is_that_of_its_seed(make: Callable[[int], Mutant]) -> None:
    assert make(7) == make(7) != make(8)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (None, {"RuntimeWarning", "NaN is no JSON", "the output holds"}),
        (AdapterError("x"), {"RuntimeWarning", "refused, and an output is there"}),
        (IndexError("x"), {"IndexError at", "refused, and an output is there"}),
    ],
)
def test_the_check_sees_what_it_looks_for(
    error: Exception | None, expected: set[str], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verbs(path: Path, base: Path, output: Path) -> Iterator[list[str]]:
        yield from (["inspect", str(path), "--json", "-o", str(output)],) * 3

    def broken(args: list[str], **_: object) -> None:
        np.float32(1e38) * np.float32(1e38)  # overflows, and warns
        print("NaN")
        save(bench.folder / "out.safetensors", {"x": np.array([np.nan])})
        if error is not None:
            raise error

    monkeypatch.setattr(adapter_mutants, "_verbs", verbs)
    monkeypatch.setattr(adapter_mutants.cli, "main", broken)
    said = [found.what for found in check(mutant(0), bench)]
    assert all(any(text in what for what in said) for text in expected), said


@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_shape_in_any_role_is_refused_or_can_be_used(case: Case, tmp_path: Path) -> None:
    layer, shape = next((layer, shape) for layer, shape in LAYERS.items() if case.suits(shape))
    path, stored = case.write(tmp_path / "a", {layer: shape})
    weights = path / "adapter_model.safetensors" if path.is_dir() else path
    healthy = load_file(weights)
    W = np.zeros((shape[0], math.prod(shape[1:])))
    for ending in stored[layer]:
        for wrong in SHAPES:
            save(weights, {**healthy, case.key(layer, ending): np.ones(wrong, np.float32)})
            try:
                adapter = open_adapter(path)
            except ParamergeError as error:
                assert error.where and error.found
                continue
            for module in adapter.modules.values():
                assert module.rank >= 1
                assert module.form is not None and module.scale is not False
                if module.fits(shape):
                    assert np.isfinite(module.transform(W)).all()
                module.norm()


@pytest.mark.parametrize(
    ("alpha", "error"),
    [
        (np.array(1 + 2j, np.complex64), AdapterError),
        (np.array(1, np.complex64), AdapterError),
        (np.array(True), AdapterError),
        (np.array([2.0, 2.0], np.float32), ShapeError),
        (np.array([], np.float32), ShapeError),
    ],
)
@pytest.mark.parametrize("family", ["lora", "loha", "oft"])
def test_an_alpha_is_one_real_number_in_every_family(
    family: str, alpha: Array, error: type[ParamergeError], tmp_path: Path
) -> None:
    case = next(case for case in CASES if case.name == family)
    layer, shape = next(iter(LAYERS.items()))
    path, _ = case.write(tmp_path / "a", {layer: shape})
    content = {**load_file(path), case.key(layer, "alpha"): alpha}
    with pytest.raises(error, match="an alpha is not"):
        open_adapter(save(path, content))


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, np.uint8])
def test_an_alpha_of_any_dtype_of_real_numbers_is_read(dtype: type, tmp_path: Path) -> None:
    up, down = np.ones((4, 2), np.float32), np.ones((2, 4), np.float32)
    tensors = {**kohya_layer(STEM, up, down), f"{STEM}.alpha": np.array([[3]], dtype)}
    (module,) = open_adapter(save(tmp_path / "a.safetensors", tensors)).modules.values()
    assert module.scale == 1.5


def test_two_kinds_of_magnitudes_in_a_layer_are_refused(tmp_path: Path) -> None:
    tensors: dict[str, Array] = kohya_layer(STEM, np.ones((4, 2), np.float32), np.ones((2, 4), np.float32))
    tensors[f"{STEM}.dora_scale"] = np.ones((4, 1), np.float32)
    open_adapter(save(tmp_path / "a.safetensors", tensors))
    tensors[f"{STEM}.lora_magnitude_vector"] = np.full(4, 2, np.float32)
    with pytest.raises(AdapterError, match="do not go with its family") as caught:
        open_adapter(save(tmp_path / "b.safetensors", tensors))
    assert "lora_magnitude_vector" in str(caught.value.found)


@pytest.mark.parametrize(
    "part", ["a", ".oft_R", "_deft_x.", "lora_A.", "control", "down_blocks_0_", "\n", ".0"]
)
def test_a_key_too_long_to_be_a_name_is_left_over(part: str, tmp_path: Path) -> None:
    long = f"{STEM}{part * (100_000 // len(part))}.lora_up.weight"
    tensors = {**kohya_layer(STEM, np.ones((4, 2), np.float32), np.ones((2, 4), np.float32))}
    adapter = open_adapter(save(tmp_path / "a.safetensors", {**tensors, long: np.ones(3, np.float32)}))
    assert len(adapter.modules) == 1
    assert [left.keys for left in adapter.leftovers] == [(long,)]
    with pytest.raises(ParamergeError) as caught:
        open_adapter(save(tmp_path / "b.safetensors", {long: np.ones(3, np.float32)}))
    assert len(str(caught.value)) < 2000


def test_a_stem_too_long_to_be_a_name_has_no_place() -> None:
    """Whatever it begins with: key maps look for a block's name at each of its dots."""
    stem = "unet.down_blocks.0.attentions.0"
    assert place_of(f"{stem}.proj_in") is not None
    assert place_of(stem + ".0" * 50_000) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("case", [case for case in CASES if not case.dependent], ids=str)
def test_finite_numbers_have_finite_norms(case: Case, dtype: type, tmp_path: Path) -> None:
    layer, shape = next((layer, shape) for layer, shape in LAYERS.items() if case.suits(shape))
    path, _ = case.write(tmp_path / "a", {layer: shape})
    weights = path / "adapter_model.safetensors" if path.is_dir() else path
    healthy = load_file(weights)
    info = np.finfo(dtype)
    # the product of up to six factors is to be within float64, too
    factors = 1 if case.name == "full" else 6
    for size in (float(info.max), float(info.smallest_subnormal)):
        if dtype is np.float64:
            size = 1e300 ** (1 / factors) if size > 1 else 1e-300 ** (1 / factors)  # noqa: PLW2901
        content = {
            key: value if key.endswith("alpha") else np.full(value.shape, size, dtype)
            for key, value in healthy.items()
        }
        facts = inspect_path(save(weights, content).parent if path.is_dir() else save(weights, content))
        assert isinstance(facts, AdapterFacts)
        norm = facts.layers[0].norm
        assert norm is not None and math.isfinite(norm) and norm > 0


def test_nan_is_said_alike_whatever_reads_it(bench: Bench) -> None:
    """One check of an adapter's numbers: every verb names the tensor in the same words."""
    rng = np.random.default_rng(0)
    up = rng.standard_normal((40, 2)).astype(np.float32)
    up[0, 0] = np.nan
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    content = kohya_layer(key, up, rng.standard_normal((2, 40)).astype(np.float32))
    made = Mutant(0, "nan", False, {k: Tensor("F32", v.shape, v.tobytes()) for k, v in content.items()})
    bench.clear()
    path, output = made.write(bench.folder), bench.folder / "out.safetensors"
    said = set()
    for arguments in adapter_mutants._verbs(path, bench.bases[False], output):
        if "--dry-run" in arguments:
            continue
        with pytest.raises(NonFiniteError) as caught:
            adapter_mutants.cli.main(args=arguments, standalone_mode=False)
        said.add(str(caught.value))
        assert not output.exists()
    assert said == {str(caught.value)}
    assert f"{key}.lora_up.weight" in said.pop()


@pytest.mark.parametrize("largest", [1e160, 1e300])
def test_factors_whose_product_is_beyond_float64_are_named(largest: float, bench: Bench) -> None:
    """Each factor is finite, so only what multiplies them can see it: no verb ends in LAPACK's words."""
    rng = np.random.default_rng(0)
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    up, down = rng.standard_normal((40, 3)) * largest, rng.standard_normal((3, 40)) * largest
    content = kohya_layer(key, up, down)
    made = Mutant(0, "huge", False, {k: Tensor("F64", v.shape, v.tobytes()) for k, v in content.items()})
    bench.clear()
    path, output = made.write(bench.folder), bench.folder / "out.safetensors"
    for arguments in adapter_mutants._verbs(path, bench.bases[False], output):
        if "convert" in arguments or "--dry-run" in arguments:
            continue  # nothing is multiplied
        with pytest.raises(NonFiniteError):
            adapter_mutants.cli.main(args=arguments, standalone_mode=False)
        assert not output.exists()


@pytest.mark.parametrize("dtype", ["C64", "BOOL", "I64", "F8_E5M2"])
def test_an_alpha_of_any_dtype_is_looked_at_without_a_word(dtype: str, bench: Bench) -> None:
    """Of a file that is not understood, too: its alphas are listed where they are numbers."""
    stem = "transformer.transformer_blocks.0.attn1.to_k"
    basis = np.ones((10, 2), np.float32)
    alpha = Tensor(dtype, (), b"\1" * (BITS[dtype] // 8))
    tensors = {f"{stem}.para_B": Tensor("F32", basis.shape, basis.tobytes()), f"{stem}.alpha": alpha}
    metadata = {"paramerge.format": "para", "paramerge.format_version": "1.0"}
    for seed in range(4):
        assert not list(check(Mutant(seed, "odd", True, tensors, metadata), bench))


def test_rotations_that_lose_the_identity_are_not_finite(bench: Bench) -> None:
    """``I - Q`` has an inverse for every skew Q, but not where floats no longer hold the I."""
    case = next(case for case in CASES if str(case) == "oft-peft-exact")
    layer = "unet.transformer_blocks.0.conv1"
    tensors = {
        case.key(layer, ending): Tensor("F32", value.shape, (value * 2.0**99).astype(np.float32).tobytes())
        for ending, value in case.make(np.random.default_rng(0), OTHER_LAYERS[layer]).items()
    }
    made = Mutant(0, "huge", True, tensors, config=case.config)
    assert not list(check(made, bench, verbs=16))


def test_a_layer_that_is_switched_off_gives_no_direction(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [f"lora_unet_mid_block_resnets_{i}_time_emb_proj" for i in range(2)]
    tensors: dict[str, Array] = {}
    for layer, alpha in zip(layers, (0.0, 1.0), strict=True):
        up, down = rng.standard_normal((8, 2)).astype(np.float32), np.ones((2, 4), np.float32)
        tensors |= kohya_layer(layer, up, down, alpha)
    path = save(tmp_path / "a.safetensors", tensors)
    extraction = extract_para(open_adapter(path), rank=1)
    assert [len(extraction.layers), len(extraction.empty)] == [1, 1]
    output = str(tmp_path / "o.safetensors")
    adapter_mutants.cli.main(
        ["extract", "--from-lora", str(path), "--rank", "1", "-o", output], standalone_mode=False
    )
    faint = {key: value * 1e-30 if "up" in key else value for key, value in tensors.items()}
    faint = {key: value * 1e-30 if "down" in key else value for key, value in faint.items()}
    assert 0 < extract_para(open_adapter(save(tmp_path / "b.safetensors", faint)), rank=1).captured <= 1
