"""Every format into every other that can hold it, and back: the same deltas, to rounding where needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from adapter_files import REAL_LOKRS, REAL_LORAS
from baking import load, name_of
from family_cases import CASES, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from merging import relative

from paramerge.convert.convert import ConversionReport, convert
from paramerge.convert.request import ConvertOptions
from paramerge.errors import FamilyError, OutputError, UnmatchedError, UsageError
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.merge.request import Input

ATTENTION = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0"
CROSS = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_k"
CONV = "unet.mid_block.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.3.mlp.fc1"
SHAPES = {ATTENTION: (24, 20), CROSS: (16, 768), CONV: (12, 8, 3, 3), TEXT: (30, 14)}
LORA_FORMATS = ("kohya", "kohya-sgm", "diffusers", "peft")
LORA, TUCKER = (next(case for case in CASES if case.name == name) for name in ("lora", "lora-tucker"))


def run(source: Path, to: str, output: Path, **options: object) -> ConversionReport:
    return convert([Input(source)], [open_adapter(source)], output, ConvertOptions(to, **options))  # type: ignore[arg-type]


def place(folder: Path, to: str) -> Path:
    return folder / (to if to in ("peft", "deft") else f"{to}.safetensors")


def deltas(*paths: Path) -> dict[str, np.ndarray]:
    """What an adapter (of several folders, all together) does to a fixed random weight."""
    found = {}
    for path in paths:
        for name, module in open_adapter(path).modules.items():
            shape = SHAPES[str(name).removesuffix(".weight")]
            W = np.random.default_rng(5).standard_normal((shape[0], int(np.prod(shape[1:]))))
            found[str(name)] = module.delta(W)
    return found


def parts(output: Path, to: str) -> list[Path]:
    """The adapters that were written: PEFT's are of one model each."""
    if to == "peft" and not (output / "adapter_config.json").is_file():
        return sorted(path for path in output.iterdir() if path.is_dir())
    return [output]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("to", LORA_FORMATS)
@pytest.mark.parametrize("start", LORA_FORMATS)
def test_there_and_back(tmp_path: Path, start: str, to: str, dtype: str) -> None:
    """kohya -> start -> to -> kohya. An alpha of 2 at rank 3 is no power of two: folding it rounds."""
    shapes = {layer: SHAPES[layer] for layer in (ATTENTION, CROSS, CONV)}
    source, _ = LORA.write(tmp_path / "in", shapes, dtype)
    first, second = place(tmp_path / "a", start), place(tmp_path / "b", to)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    reports = [
        run(source, start, first),
        run(first, to, second),
        run(second, "kohya", tmp_path / "k.safetensors"),
    ]
    wanted, found = deltas(source), deltas(tmp_path / "k.safetensors")
    unit = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}[dtype]
    folded = "diffusers" in (start, to)
    for layer, delta in wanted.items():
        # both factors may be rounded, to half a unit each
        assert relative(found[layer], delta) <= (unit if folded else 1e-15)
    assert any(report.notes for report in reports) == folded
    assert (max(report.rounding for report in reports) > 0) == folded


@pytest.mark.parametrize("to", LORA_FORMATS)
def test_several_models(tmp_path: Path, to: str) -> None:
    source, _ = LORA.write(tmp_path / "in", SHAPES)
    output = place(tmp_path, to)
    run(source, to, output)
    found = deltas(*parts(output, to))
    assert found.keys() == SHAPES.keys()
    for layer, delta in deltas(source).items():
        assert relative(found[layer], delta) <= 2.0**-23


@pytest.mark.parametrize("to", LORA_FORMATS)
def test_tucker_cores_are_kept_or_contracted(tmp_path: Path, to: str) -> None:
    source, _ = TUCKER.write(tmp_path / "in", {CONV: SHAPES[CONV]})
    output = place(tmp_path, to)
    report = convert(
        [Input(source)], [open_adapter(source)], output, ConvertOptions(to), None
    ) if to != "kohya-sgm" else run(with_cross(source), to, output)  # fmt: skip
    assert any("Tucker" in note for note in report.notes) == (not to.startswith("kohya"))
    assert relative(deltas(output)[CONV], deltas(source)[CONV]) <= 2.0**-23


def with_cross(source: Path) -> Path:
    """The same file, with metadata that tell its architecture."""
    told = source.with_name("told.safetensors")
    write_safetensors(told, load(source).tensors, {"ss_base_model_version": "sd_v1"})
    return told


def test_rank_stabilised_scales_become_alphas(tmp_path: Path) -> None:
    source, _ = LORA.write(tmp_path / "in", {ATTENTION: SHAPES[ATTENTION]})
    run(source, "peft", tmp_path / "p")
    config = json.loads((tmp_path / "p/adapter_config.json").read_text())
    (tmp_path / "p/adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    report = run(tmp_path / "p", "kohya", tmp_path / "k.safetensors")
    assert any("rank-stabilised" in note for note in report.notes)
    found, wanted = deltas(tmp_path / "k.safetensors"), deltas(source)
    assert relative(found[ATTENTION], np.sqrt(3) * wanted[ATTENTION]) <= 2.0**-23  # the alpha is F32


@pytest.mark.parametrize("case", [c for c in CASES if c.config is None and c.name != "svdiff"], ids=str)
def test_every_lycoris_family_changes_its_spelling_bit_for_bit(tmp_path: Path, case: Case) -> None:
    shapes = {layer: SHAPES[layer] for layer in (ATTENTION, CONV) if case.suits(SHAPES[layer])}
    source, _ = case.write(tmp_path / "in", shapes, "F16")
    run(with_cross(source), "kohya-sgm", tmp_path / "sgm.safetensors")
    report = run(tmp_path / "sgm.safetensors", "kohya", tmp_path / "k.safetensors")
    assert open_adapter(tmp_path / "sgm.safetensors").dialect == "kohya-sgm"
    before, after = load(source).raw, load(tmp_path / "k.safetensors").raw
    assert before == after
    assert report.rounding == 0 and not report.notes


@pytest.mark.parametrize(
    "name",
    ["loha", "loha-tucker", "lokr-whole", "lokr-peft", "dora-out", "dora-peft"],
)
def test_peft_and_kohya_share_families(tmp_path: Path, name: str) -> None:
    """There and back; PEFT scales whole LoKr factors and LyCORIS does not, DoRA's eps differ by 1e-7."""
    case = next(case for case in CASES if case.name == name)
    shapes = {layer: SHAPES[layer] for layer in (ATTENTION, CONV) if case.suits(SHAPES[layer])}
    source, _ = case.write(tmp_path / "in", shapes)
    run(source, "peft", tmp_path / "p")
    run(tmp_path / "p", "kohya", tmp_path / "k.safetensors")
    wanted, there, back = deltas(source), deltas(tmp_path / "p"), deltas(tmp_path / "k.safetensors")
    for layer, delta in wanted.items():
        assert relative(there[layer], delta) <= 4e-7
        assert relative(back[layer], delta) <= 4e-7


@pytest.mark.parametrize("name", ["lokr-w2-whole", "lokr-low-rank", "lokr-large-first"])
def test_a_lokr_that_peft_would_divide_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    source, _ = case.write(tmp_path / "in", {ATTENTION: SHAPES[ATTENTION]})
    with pytest.raises(FamilyError, match="other shapes"):
        run(source, "peft", tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_no_folder_is_written_where_another_models_part_is_refused(tmp_path: Path) -> None:
    """The UNet's LoRA could be held; the text encoder's LoHa and LoRA together could not."""
    one, _ = LORA.write(tmp_path / "a", SHAPES)
    loha = next(case for case in CASES if case.name == "loha")
    other, _ = loha.write(tmp_path / "b", {TEXT.replace("fc1", "fc2"): SHAPES[TEXT]})
    write_safetensors(tmp_path / "both.safetensors", {**load(one).tensors, **load(other).tensors})
    with pytest.raises(FamilyError, match="several families"):
        run(tmp_path / "both.safetensors", "peft", tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("name", REAL_LORAS)
def test_real_loras(shared_dir: Path, tmp_path: Path, name: str) -> None:
    source = shared_dir / "fixtures/adapters" / name
    wanted = open_adapter(source)
    for to in ("kohya", "diffusers", "peft"):
        output = place(tmp_path, to)
        run(source, to, output, partial=bool(wanted.leftovers))
        found = {k: m for path in parts(output, to) for k, m in open_adapter(path).modules.items()}
        assert found.keys() == wanted.modules.keys()
        for layer, module in list(wanted.modules.items())[::16]:
            assert relative(found[layer].delta(np.zeros(1)), module.delta(np.zeros(1))) <= 2.0**-10


@pytest.mark.parametrize("name", REAL_LOKRS)
def test_a_real_lokr_changes_its_spelling(shared_dir: Path, tmp_path: Path, name: str) -> None:
    source = shared_dir / "fixtures/adapters" / name
    run(source, "kohya-sgm", tmp_path / "sgm.safetensors")
    run(tmp_path / "sgm.safetensors", "kohya", tmp_path / "k.safetensors")
    assert load(tmp_path / "k.safetensors").raw == load(source).raw


@given(alpha=st.floats(-64, 64).filter(lambda a: abs(a) > 1e-3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_any_alpha_survives_folding(
    tmp_path_factory: pytest.TempPathFactory, alpha: float, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("alpha")
    rng = np.random.default_rng(seed)
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    up, down = rng.standard_normal((6, 2)), rng.standard_normal((2, 5))
    write_safetensors(
        folder / "a.safetensors",
        {f"{stem}.lora_up.weight": up.astype(np.float32), f"{stem}.lora_down.weight": down.astype(np.float32),
         f"{stem}.alpha": np.float32(alpha)},
    )  # fmt: skip
    run(folder / "a.safetensors", "diffusers", folder / "d.safetensors")
    (one,), (other,) = (open_adapter(folder / f"{n}.safetensors").modules.values() for n in ("a", "d"))
    assert relative(other.delta(np.zeros(1)), one.delta(np.zeros(1))) <= 2.0**-23


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    source, _ = LORA.write(tmp_path / "in", SHAPES)
    for name in ("1", "2"):
        run(source, "diffusers", tmp_path / f"{name}.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("name", "to"),
    [("loha", "diffusers"), ("oft", "peft"), ("full", "peft"), ("dora-in", "peft"), ("svdiff", "kohya"),
     ("lora", "para"), ("lora", "deft"), ("lokr-tucker", "diffusers"), ("ia3-out", "peft")],
)  # fmt: skip
def test_what_a_format_cannot_hold_is_refused_by_name(tmp_path: Path, name: str, to: str) -> None:
    case = next(case for case in CASES if case.name == name)
    shapes = {CONV: SHAPES[CONV]} if not case.suits(SHAPES[ATTENTION]) else {ATTENTION: SHAPES[ATTENTION]}
    source, _ = case.write(tmp_path / "in", shapes)
    with pytest.raises(FamilyError) as caught:
        run(source, to, place(tmp_path, to))
    assert to in str(caught.value) and next(iter(shapes)) in str(caught.value)
    assert not place(tmp_path, to).exists()


def test_keys_that_are_no_layers_are_never_lost_in_silence(tmp_path: Path) -> None:
    source, _ = LORA.write(tmp_path / "in", {ATTENTION: SHAPES[ATTENTION], CROSS: SHAPES[CROSS]})
    stem, zeros = "lora_unet_mid_block_nonsense", np.zeros((2, 2), np.float32)
    more = {**load(source).tensors, f"{stem}.lora_up.weight": zeros, f"{stem}.lora_down.weight": zeros}
    write_safetensors(tmp_path / "more.safetensors", more)
    with pytest.raises(UnmatchedError):
        run(tmp_path / "more.safetensors", "diffusers", tmp_path / "o.safetensors")
    report = run(tmp_path / "more.safetensors", "diffusers", tmp_path / "o.safetensors", partial=True)
    assert len(report.left_out) == 2 and len(report.layers) == 2


def test_bad_requests(tmp_path: Path) -> None:
    source, _ = LORA.write(tmp_path / "in", {ATTENTION: SHAPES[ATTENTION]})
    adapter = open_adapter(source)
    with pytest.raises(UsageError):
        ConvertOptions("gguf")
    with pytest.raises(UsageError, match="merge"):
        convert([Input(source)] * 2, [adapter] * 2, tmp_path / "o.safetensors", ConvertOptions("kohya"))
    with pytest.raises(UsageError, match="strength"):
        convert([Input(source, 0.5)], [adapter], tmp_path / "o.safetensors", ConvertOptions("kohya"))
    with pytest.raises(OutputError):
        run(source, "kohya", source)
    with pytest.raises(OutputError):
        run(source, "peft", tmp_path / "o.safetensors")
    run(source, "peft", tmp_path / "p")
    with pytest.raises(OutputError):
        run(tmp_path / "p", "peft", tmp_path / "p")
    with pytest.raises(UsageError, match="numbering"):
        run(source, "kohya-sgm", tmp_path / "o.safetensors")


def test_other_models_need_their_base_for_kohya_names(tmp_path: Path) -> None:
    stem = "lora_unet_stages_0_mix_attn_q"  # of no model that is known by both of its namings
    tensors = {f"{stem}.lora_up.weight": np.ones((4, 1), np.float32)}
    write_safetensors(
        tmp_path / "w.safetensors", {**tensors, f"{stem}.lora_down.weight": np.ones((1, 4), np.float32)}
    )
    with pytest.raises(UsageError, match="base"):
        run(tmp_path / "w.safetensors", "diffusers", tmp_path / "o.safetensors")
    assert name_of(ATTENTION).component == "unet"
