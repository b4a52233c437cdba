"""What a plan accepts, what it refuses, and that it tells the truth: all from headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from baking import (
    lora_file,
    para_file,
    plan_of,
    random_bases,
    random_factors,
    shapes_of,
    small_model,
)

from paramerge.apply.operations import LoraOp, ParaOp
from paramerge.apply.steps import BakeOptions, Step, parse_step
from paramerge.bake.summary import summarise
from paramerge.errors import (
    ArchitectureError,
    CheckpointError,
    FamilyError,
    ShapeError,
    UnmatchedError,
    UsageError,
)
from paramerge.files.writer import write_safetensors


@pytest.fixture
def base(models) -> Path:
    return models("sd15")


def layers_with(base: Path, part: str) -> list[str]:
    return [layer for layer in shapes_of(base) if part in layer]


def para_on(base: Path, path: Path, part: str = ".attn1.to_q", rank: int = 2, seed: int = 0) -> Path:
    return para_file(path, random_bases(shapes_of(base), layers_with(base, part), rank, seed))


def lora_on(base: Path, path: Path, part: str = ".attn1.to_q", rank: int = 3, **options: object) -> Path:
    factors = random_factors(shapes_of(base), layers_with(base, part), rank)
    return lora_file(path, factors, **options)  # type: ignore[arg-type]


def test_steps_keep_their_order(base: Path, tmp_path: Path) -> None:
    para, lora = para_on(base, tmp_path / "p.safetensors"), lora_on(base, tmp_path / "l.safetensors")
    plan = plan_of(base, Step("para", para), Step("lora", lora), Step("para", para), merge="joint")
    assert len(plan.edits) == 16
    for edit in plan.edits:
        assert [type(op) for op in edit.ops] == [ParaOp, LoraOp, ParaOp]
    assert "l.safetensors comes before the PaRa p.safetensors" in plan.order_warnings[0]
    assert summarise(plan).warnings == (
        *plan.order_warnings,
        "p.safetensors: the same adapter is given twice",
    )


def test_neighbouring_paras_join_and_sequential_ones_do_not(base: Path, tmp_path: Path) -> None:
    one, two = (para_on(base, tmp_path / f"{i}.safetensors", seed=i) for i in range(2))
    joint = plan_of(base, Step("para", one), Step("para", two))
    assert {tuple(len(op.parts) for op in edit.ops) for edit in joint.edits} == {(2,)}
    sequential = plan_of(base, Step("para", one), Step("para", two), merge="sequential")
    assert {tuple(len(op.parts) for op in edit.ops) for edit in sequential.edits} == {(1, 1)}
    assert joint.order_warnings == sequential.order_warnings == ()


def test_the_summary_counts_what_is_there(base: Path, tmp_path: Path) -> None:
    para = para_on(base, tmp_path / "p.safetensors", ".attn")
    lora = lora_on(base, tmp_path / "l.safetensors", ".mlp.fc1")
    summary = summarise(plan_of(base, Step("para", para), Step("lora", lora, 0.5)))
    parts = {part.component: part for part in summary.components}
    assert parts["unet"].tensors == 686
    assert parts["unet"].layers_by_step == (16 * 8, 0)
    assert parts["text_encoder"].layers_by_step == (0, 12)
    assert parts["unet"].largest_rank == 2
    assert parts["text_encoder"].largest_rank == 3
    assert summary.bytes_in == summary.bytes_out == sum(part.bytes_in for part in summary.components)
    assert base.stat().st_size - summary.bytes_in == 8 + int.from_bytes(base.read_bytes()[:8], "little")
    assert [step.ranks for step in summary.steps] == [{2: 128}, {3: 12}]


def test_strength_zero_and_gamma_leave_layers_alone_and_say_so(base: Path, tmp_path: Path) -> None:
    para = para_on(base, tmp_path / "p.safetensors")
    none = plan_of(base, Step("para", para, 0.0))
    assert not none.edits
    assert len(none.left_alone) == 16
    assert "16 layers are left alone" in none.warnings[0]
    # widths 40, 80 and 160: a fortieth of the rank is 1, 2 and 4 directions, of the 2 there are
    bounded = plan_of(base, Step("para", para), gamma=1 / 40)
    assert {op.limit for edit in bounded.edits for op in edit.ops} == {1, 2, 4}
    assert {op.rank for edit in bounded.edits for op in edit.ops} == {1, 2}
    tiny = plan_of(base, Step("para", para), gamma=1 / 100)
    assert len(tiny.left_alone) == 10
    assert "gamma 0.01" in tiny.warnings[0]


@pytest.mark.parametrize(
    ("only", "components"),
    [
        (("unet",), {"unet"}),
        (("text_encoder",), {"text_encoder"}),
        (("unet", "text_encoder"), {"unet", "text_encoder"}),
        (("*.attn1.*",), {"unet"}),
        (("text_encoder.*layers.3.*",), {"text_encoder"}),
    ],
)
def test_only(base: Path, tmp_path: Path, only: tuple[str, ...], components: set[str]) -> None:
    factors = random_factors(shapes_of(base), list(shapes_of(base)), 2)
    lora = lora_file(tmp_path / "l.safetensors", factors)
    plan = plan_of(base, Step("lora", lora), only=only)
    assert {edit.target.module.component for edit in plan.edits} == components
    (step,) = plan.steps
    assert len(step.matched) + len(step.excluded) == 354
    assert len(step.matched) == len(plan.edits)


def test_only_that_selects_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    lora = lora_on(base, tmp_path / "l.safetensors")
    with pytest.raises(UsageError, match="nothing of this adapter is selected"):
        plan_of(base, Step("lora", lora), only=("text_encoder_2",))


@pytest.mark.parametrize(("mine", "other"), [("sd15", "sdxl"), ("sdxl", "sd15")])
@pytest.mark.parametrize("family", ["para", "lora"])
def test_an_adapter_of_the_other_architecture_is_refused(
    models, tmp_path: Path, mine: str, other: str, family: str
) -> None:
    base, foreign = models(mine), models(other)
    layers = layers_with(foreign, ".attn2.to_k")
    path = tmp_path / "a.safetensors"
    if family == "para":
        para_file(path, random_bases(shapes_of(foreign), layers, 2), other)
    else:  # real widths, by which a LoRA is told
        width = {"sd15": 768, "sdxl": 2048}[other]
        shapes = {layer: (shapes_of(foreign)[layer][0], width) for layer in layers}
        lora_file(path, random_factors(shapes, layers, 2))
    with pytest.raises(ArchitectureError, match=f"made for {other}, the base is {mine}") as caught:
        plan_of(base, Step(family, path))  # type: ignore[arg-type]
    assert caught.value.exit_code == 4


def test_a_small_adapter_of_the_other_architecture_is_refused_by_its_layers(models, tmp_path: Path) -> None:
    """Widths that say nothing: the names of the layers do, and the rest is a matter of shapes."""
    foreign = models("sdxl")
    layers = [layer for layer in shapes_of(foreign) if "mid_block.attentions.0.transformer_blocks.7" in layer]
    lora = lora_file(tmp_path / "l.safetensors", random_factors(shapes_of(foreign), layers, 2))
    with pytest.raises((ArchitectureError, UnmatchedError)):
        plan_of(models("sd15"), Step("lora", lora))


def test_unmatched_keys_are_listed_with_a_reason_and_can_be_allowed(models, tmp_path: Path) -> None:
    base = models("sd15", layout="unet-file")
    whole = models("sd15")
    layers = [*layers_with(whole, ".attn1.to_q"), *layers_with(whole, ".mlp.fc1")]
    lora = lora_file(tmp_path / "l.safetensors", random_factors(shapes_of(whole), layers, 2))
    with pytest.raises(UnmatchedError) as caught:
        plan_of(base, Step("lora", lora))
    text = str(caught.value)
    assert "12 keys of this adapter land nowhere" in text
    assert "text_encoder.text_model.encoder.layers.0.mlp.fc1" in text
    assert "the base has no text_encoder" in text
    assert "allow_unmatched" in text
    plan = plan_of(base, Step("lora", lora), allow_unmatched=True)
    assert len(plan.steps[0].unmatched) == 12
    assert len(plan.edits) == 16
    assert len(summarise(plan).steps[0].unmatched) == 12
    # what the user excluded is not unmatched
    assert not plan_of(base, Step("lora", lora), only=("unet",)).steps[0].unmatched


def test_an_adapter_of_which_nothing_lands_is_refused_even_if_allowed(models, tmp_path: Path) -> None:
    whole = models("sd15")
    lora = lora_file(
        tmp_path / "l.safetensors", random_factors(shapes_of(whole), layers_with(whole, ".mlp.fc1"), 2)
    )
    with pytest.raises(UnmatchedError, match="nothing of this adapter lands"):
        plan_of(models("sd15", layout="unet-file"), Step("lora", lora), allow_unmatched=True)


@pytest.mark.parametrize("family", ["para", "lora"])
def test_shapes_that_do_not_fit_are_refused(base: Path, tmp_path: Path, family: str) -> None:
    layers = layers_with(base, ".attn1.to_q")
    shapes = dict.fromkeys(layers, (48, 48))
    path = tmp_path / "a.safetensors"
    if family == "para":
        para_file(path, random_bases(shapes, layers, 2))
    else:
        lora_file(path, random_factors(shapes, layers, 2))
    with pytest.raises(ShapeError, match="does not fit the base's weight") as caught:
        plan_of(base, Step(family, path))  # type: ignore[arg-type]
    assert "48" in str(caught.value)


def test_a_convolution_lora_on_another_kernel_is_refused(base: Path, tmp_path: Path) -> None:
    layer = "unet.down_blocks.0.resnets.0.conv1"
    (rows, columns, *_) = shapes_of(base)[layer]
    lora = lora_file(tmp_path / "l.safetensors", random_factors({layer: (rows, columns, 1, 1)}, [layer], 2))
    with pytest.raises(ShapeError):
        plan_of(base, Step("lora", lora))


def test_the_wrong_option_for_a_family_is_refused(base: Path, tmp_path: Path) -> None:
    para, lora = para_on(base, tmp_path / "p.safetensors"), lora_on(base, tmp_path / "l.safetensors")
    with pytest.raises(FamilyError, match="PaRa"):
        plan_of(base, Step("lora", para))
    with pytest.raises(FamilyError, match="LoRA"):
        plan_of(base, Step("para", lora))


def test_a_quantised_layer_that_cannot_be_read_is_refused(models, tmp_path: Path) -> None:
    """Two scales: the stored numbers are not the weight, and nothing says what is."""
    from baking import load

    stored = load(models(dtype="F8_E4M3")).tensors
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    scale = np.array(0.5, np.float32)
    tensors = {**stored, f"{key}.scale_weight": scale, f"{key}.weight_scale": scale}
    base = tmp_path / "base.safetensors"
    write_safetensors(base, tensors, {})
    with pytest.raises(CheckpointError, match="quantised"):
        plan_of(base, Step("para", para_on(models(), tmp_path / "p.safetensors")))


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_para_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(UsageError):
        Step("para", Path("p"), strength)


@pytest.mark.parametrize("gamma", [0.0, -1.0, 1.5, float("nan")])
def test_a_gamma_out_of_range_is_refused(gamma: float) -> None:
    with pytest.raises(UsageError):
        BakeOptions(gamma=gamma)


@pytest.mark.parametrize(
    ("text", "name", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors@0.8", "a.safetensors", 0.8),
        ("a.safetensors@-2", "a.safetensors", -2.0),
        ("a@b.safetensors@1e-1", "a@b.safetensors", 0.1),
    ],
)
def test_parsing_a_step(text: str, name: str, strength: float) -> None:
    assert parse_step("lora", text) == Step("lora", Path(name), strength)


def test_a_file_with_an_at_sign_in_its_name_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "style@0.5"
    path.write_bytes(b"")
    assert parse_step("lora", str(path)) == Step("lora", path)
    assert parse_step("lora", f"{path}@0.25") == Step("lora", path, 0.25)


@pytest.mark.parametrize("text", ["a.safetensors@strong", "a.safetensors@", "a.safetensors@1,5"])
def test_a_strength_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a number"):
        parse_step("lora", text)


def test_the_reader_of_headers_reads_nothing_else(tmp_path: Path) -> None:
    """The plan of a checkpoint whose weights are a hole in the file costs no reading of them."""
    base = small_model(tmp_path / "base.safetensors", zeros=True)
    assert base.stat().st_blocks * 512 < base.stat().st_size / 10
    assert plan_of(base, Step("para", para_on(base, tmp_path / "p.safetensors"))).output_bytes > 30_000_000
