"""``paramerge generate`` as a user types it, on tiny random pipelines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from baking import lora_file, para_file, random_bases, random_factors, shapes_of, small_model
from PIL import Image
from tiny_pipelines import sd_pipeline, sdxl_pipeline

from paramerge.checkpoints.layout import open_base
from paramerge.cli.generate import _SAMPLERS
from paramerge.cli.main import main
from paramerge.generation import loading
from paramerge.generation.grid import Row, labelled_grid
from paramerge.generation.sampling import SCHEDULERS, set_scheduler

QUICK = ("--steps", 2, "-n", 2, "--prompt", "a noto dog")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline, its single file elsewhere, a PaRa and a LoRA."""
    folder = tmp_path_factory.mktemp("files")
    model, _ = sd_pipeline(folder)
    shapes, architecture = shapes_of(model), open_base(model).architecture
    layers = [name for name in shapes if "attn" in name]
    para_file(folder / "a.safetensors", random_bases(shapes, layers, 8), architecture)
    lora_file(folder / "b.safetensors", random_factors(shapes, layers, 2, size=0.5))
    return folder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def call(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["generate", *(str(argument) for argument in arguments)])
    return int(caught.value.code or 0)


def pixels(path: str = "grid.png") -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_the_sentence_people_type(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("--model", files / "model", "--para", f"{files / 'a.safetensors'}@0.5",
                "--lora", files / "b.safetensors", *QUICK, "--compare", "-o", "grid.png") == 0  # fmt: skip
    with Image.open("grid.png") as image:
        facts = json.loads(image.info["paramerge"])
    assert [entry["strength"] for entry in facts["adapters"]] == [0.5, 1.0]
    assert facts["layers"] > 10
    assert facts["seeds"] == [0, 1]
    assert "4 pictures" in capfd.readouterr().out


def test_adapters_change_the_pictures_and_the_seed_fixes_them(files: Path) -> None:
    model = ("--model", files / "model", *QUICK)
    assert call(*model, "-o", "base.png") == 0
    assert call(*model, "-o", "again.png") == 0
    assert call(*model, "--para", files / "a.safetensors", "-o", "para.png") == 0
    np.testing.assert_array_equal(pixels("base.png"), pixels("again.png"))
    top = 40  # below the labels, which differ
    assert (pixels("base.png")[top:] != pixels("para.png")[top:]).any()


def test_a_picture_depends_on_its_own_seed_alone(files: Path) -> None:
    model = ("--model", files / "model", "--steps", 2, "--prompt", "a noto dog")
    assert call(*model, "--seed", 4, "-n", 3, "-o", "three.png") == 0
    assert call(*model, "--seed", 6, "-n", 1, "-o", "one.png") == 0
    three, one = pixels("three.png"), pixels("one.png")
    side = one.shape[1] - 16
    assert (
        three[-side - 8 : -8, 8 : 8 + side] != one[-side - 8 : -8, 8 : 8 + side]
    ).any()  # seed 4 is another
    np.testing.assert_array_equal(three[-side - 8 : -8, -side - 8 : -8], one[-side - 8 : -8, -side - 8 : -8])


def test_what_generate_applies_is_what_bake_writes(files: Path) -> None:
    adapters = ("--para", files / "a.safetensors", "--lora", f"{files / 'b.safetensors'}@0.8")
    assert call("--model", files / "model", *adapters, *QUICK, "-o", "applied.png") == 0
    with pytest.raises(SystemExit):
        main(["bake", "--base", str(files / "model"), *map(str, adapters), "-o", "baked"])
    assert call("--model", "baked", *QUICK, "-o", "baked.png") == 0
    applied, baked = pixels("applied.png"), pixels("baked.png")
    # one row of square pictures at the bottom; the labels above differ
    side = (applied.shape[1] - 3 * 8) // 2
    gap = np.abs(applied[-side:].astype(int) - baked[-side:].astype(int))
    assert gap.max() <= 1


def test_a_single_file_takes_its_configuration_from_a_folder(
    files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    single = files / "other" / "model.safetensors"
    assert call("--model", single, *QUICK) == 3
    assert "--config" in capfd.readouterr().err
    assert call("--model", single, "--config", files / "model", *QUICK, "-o", "single.png") == 0
    assert call("--model", files / "model", *QUICK, "-o", "folder.png") == 0
    np.testing.assert_array_equal(pixels("single.png"), pixels("folder.png"))


def test_the_folder_beside_a_single_file_is_its_configuration(files: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(files / "model")
    (tmp_path / "model.safetensors").symlink_to(files / "other" / "model.safetensors")
    assert call("--model", "model.safetensors", *QUICK) == 0


def test_sdxl_with_an_adapter_on_both_encoders(tmp_path: Path) -> None:
    model, single = sdxl_pipeline(tmp_path)
    shapes = shapes_of(model)
    layers = [name for name in shapes if name.startswith("text_encoder")]
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes, layers, 2), "sdxl")
    size = ("--width", 64, "--height", 64)
    options = ("--para", para, "--prompt", "a dog", "-n", 1, "--steps", 1, *size)
    assert call("--model", model, *options, "-o", "folder.png") == 0
    assert call("--model", single, "--config", model, *options, "-o", "single.png") == 0
    np.testing.assert_array_equal(pixels("folder.png"), pixels("single.png"))


def test_json_is_all_that_is_printed(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("--model", files / "model", *QUICK, "--negative", "blue", "--json") == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["output"] == "grid.png"
    assert facts["negative"] == "blue"


@pytest.mark.parametrize("sampler", _SAMPLERS)
def test_every_sampler_draws(files: Path, sampler: str) -> None:
    assert (
        call("--model", files / "model", "--steps", 3, "-n", 1, "--prompt", "x", "--scheduler", sampler) == 0
    )


def test_the_command_and_the_library_know_the_same_samplers() -> None:
    assert set(_SAMPLERS) == set(SCHEDULERS)


@pytest.mark.parametrize("sampler", [name for name in _SAMPLERS if name != "own"])
def test_samplers_keep_the_schedule_that_the_model_was_trained_with(files: Path, sampler: str) -> None:
    pipeline = loading.load_pipeline(open_base(files / "model"), torch.float32)
    trained = pipeline.scheduler.alphas_cumprod
    set_scheduler(pipeline, sampler)
    # the last is 0, which some samplers replace by something tiny to divide by it
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod[:-1], trained[:-1])
    assert pipeline.scheduler.alphas_cumprod[-1] < 1e-6
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.timestep_spacing == "trailing"


def test_long_prompts_are_warned_about(files: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("--model", files / "model", "--prompt", "dog " * 40, "-n", 1, "--steps", 1) == 0
    assert "reads 24 of 42 tokens" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--width", 65), 2, "multiple of 8"),
        (("--device", "nowhere"), 2, "device cannot be used"),
        (("-o", "missing/grid.png"), 6, "does not exist"),
        (("-o", "."), 6, "a folder"),
        (("--para", "nothing.safetensors"), 3, "nothing.safetensors"),
        (("--variant", "fp8"), 3, "fp8"),
        (("--steps", 0), 2, "--steps"),
        (("--compare",), 2, "nothing to compare"),
    ],
)
def test_errors_say_what_is_wrong(
    files: Path, options: tuple[object, ...], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("--model", files / "model", *QUICK, *options) == code
    assert said in capfd.readouterr().err
    assert not Path("grid.png").exists()


def test_a_model_that_cannot_draw_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    unet = small_model(tmp_path / "unet.safetensors", layout="unet-file")
    assert call("--model", unet, *QUICK) == 3
    assert "UNet alone" in capfd.readouterr().err
    folder = small_model(tmp_path / "folder", layout="diffusers-folder")
    assert call("--model", folder, *QUICK) == 3  # it has no tokenizer
    assert "diffusers cannot load this checkpoint" in capfd.readouterr().err
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    assert call("--model", folder, *QUICK) == 3
    assert "FluxPipeline" in capfd.readouterr().err


def test_missing_packages_are_named(
    files: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loading._PACKAGES, "no_such_module", "no-such-package")
    assert call("--model", files / "model", *QUICK) == 2
    assert "pip install no-such-package" in capfd.readouterr().err


def test_a_grid_holds_every_picture_where_its_labels_say() -> None:
    rng = np.random.default_rng(0)
    rows = [
        Row(f"row {i}", [rng.integers(0, 256, (8, 16, 3), dtype=np.uint8) for _ in range(3)])
        for i in range(2)
    ]
    grid = np.asarray(labelled_grid(rows, ["x", "y", "z"]))
    cell = (8 * 10, 16 * 10)  # enlarged to 160 pixels across
    assert grid.shape[1] == 8 + 3 * (cell[1] + 8)
    bottom = grid.shape[0] - 8
    for row, top in ((rows[1], bottom - cell[0]), (rows[0], bottom - 2 * cell[0] - 8 - 18)):
        for column, picture in enumerate(row.pictures):
            left = 8 + column * (cell[1] + 8)
            found = grid[top : top + cell[0], left : left + cell[1]]
            np.testing.assert_array_equal(found, picture.repeat(10, axis=0).repeat(10, axis=1))


def test_half_precision_that_overflows_is_not_shown_as_black(
    files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    load = loading.load_pipeline

    def broken(*arguments: object) -> object:
        pipeline = load(*arguments)  # type: ignore[arg-type]
        with torch.no_grad():
            pipeline.vae.post_quant_conv.bias.fill_(float("nan"))
        return pipeline

    monkeypatch.setattr(loading, "load_pipeline", broken)
    assert call("--model", files / "model", *QUICK) == 5
    assert "--dtype fp32" in capfd.readouterr().err
