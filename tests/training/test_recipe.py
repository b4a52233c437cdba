"""The whole recipe in its smoke size: what comes out loads everywhere and measures what it says."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from transformers import CLIPModel, CLIPTokenizer

from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError
from paramerge.training.tiny import command
from paramerge.training.tiny.autoencoder import encode, fold_latent_scale
from paramerge.training.tiny.models import SIZES, make_autoencoder
from paramerge.training.tiny.quality import psnr
from paramerge.training.tiny.recipe import Made, run
from paramerge.training.tiny.scenes import SceneMix
from paramerge.training.tiny.settings import PARTS, SMOKE
from paramerge.training.tiny.tokenizer import PLACEHOLDERS

PROMPT = "a noto dog and a pizza on a red background"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return run(SMOKE, tmp_path_factory.mktemp("tiny"), lambda *progress: None)


def draw(pipeline: StableDiffusionPipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    result = pipeline(PROMPT, num_inference_steps=3, generator=generator, output_type="np").images
    return np.asarray(result)


def test_the_folder_loads_without_a_special_case(made: Made) -> None:
    pipeline = DiffusionPipeline.from_pretrained(made.folder)
    assert type(pipeline) is StableDiffusionPipeline
    assert pipeline.safety_checker is None
    images = draw(pipeline)
    assert images.shape == (1, 64, 64, 3)
    # the file has float16, the pipeline in memory float32: the picture may differ by that much
    assert np.abs(images - draw(made.pipeline)).max() < 0.02


def test_the_single_file_is_the_same_model(made: Made) -> None:
    folder = StableDiffusionPipeline.from_pretrained(made.folder)
    single = StableDiffusionPipeline.from_single_file(made.single_file, config=str(made.folder))
    for name in ("unet", "vae", "text_encoder"):
        wanted, found = (getattr(p, name).float().state_dict() for p in (folder, single))
        assert set(wanted) == set(found)
        for key, value in wanted.items():
            assert torch.equal(value, found[key]), f"{name}.{key}"
    np.testing.assert_array_equal(draw(folder), draw(single))


def test_paramerge_finds_the_same_layers_in_both(made: Made) -> None:
    folder, single = open_base(made.folder), open_base(made.single_file)
    layers = [{name for file in base.files for name in file.targets} for base in (folder, single)]
    assert layers[0] == layers[1]
    assert {name.component for name in layers[0]} == {"unet", "text_encoder"}
    assert folder.architecture == single.architecture != "unknown"


def test_the_card_shows_what_was_measured(made: Made) -> None:
    text = (made.folder / "README.md").read_text()
    numbers = json.loads((made.folder / "measured.json").read_text())
    assert f"{numbers['autoencoder_held_out']:.1f} dB" in text
    assert numbers["trained"]["text-to-image"]["steps"] == SMOKE.steps["text-to-image"]
    assert 0 <= numbers["generated"]["subject"] <= 1
    curves = ElementTree.parse(made.folder / "curves.svg").getroot()
    assert len(curves.findall("{http://www.w3.org/2000/svg}polyline")) == len(PARTS)
    for name in ("samples.png", "split.json"):
        assert (made.folder / name).stat().st_size > 0
    assert not (made.folder / "CREDITS.md").exists()  # the smoke run draws its own pictures


def test_the_contrastive_model_loads_as_clip(made: Made) -> None:
    model = CLIPModel.from_pretrained(made.contrastive)
    tokenizer = CLIPTokenizer.from_pretrained(made.contrastive)
    tokens = tokenizer([PROMPT, "a fluent star"], padding=True, return_tensors="pt")
    scores = model(**tokens, pixel_values=torch.zeros(3, 3, 64, 64)).logits_per_image
    assert scores.shape == (3, 2)


def test_placeholders_have_rows(made: Made) -> None:
    ids = made.pipeline.tokenizer.convert_tokens_to_ids(list(PLACEHOLDERS))
    assert max(ids) < made.pipeline.text_encoder.get_input_embeddings().num_embeddings


def test_the_same_seed_gives_the_same_weights(made: Made, tmp_path: Path) -> None:
    again = run(SMOKE, tmp_path, lambda *progress: None)
    assert again.single_file.read_bytes() == made.single_file.read_bytes()
    assert again.measured.generated == made.measured.generated


def test_parts_can_be_trained_on_their_own(tmp_path: Path) -> None:
    steps: dict[str, int] = {}

    def report(name: str, done: int, total: int, loss: float) -> None:
        steps[name] = done

    run(SMOKE, tmp_path, report, parts=["autoencoder"])
    assert steps == {"autoencoder": SMOKE.steps["autoencoder"]}
    before = (tmp_path / "training" / "autoencoder.safetensors").read_bytes()
    steps.clear()
    run(SMOKE, tmp_path, report, parts=["text-to-image"], resume=True)
    assert steps == {"text-to-image": SMOKE.steps["text-to-image"]}
    assert (tmp_path / "training" / "autoencoder.safetensors").read_bytes() == before


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return make_autoencoder(SIZES["smoke"]).double().eval()


def test_folding_normalises_latents_and_keeps_pictures(autoencoder: AutoencoderKL) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (6, 3, 64, 64), dtype=np.uint8)
    plain = copy.deepcopy(autoencoder).float()
    folded = copy.deepcopy(plain)
    fold_latent_scale(folded, pictures)
    before, after = encode(plain, pictures).double(), encode(folded, pictures).double()
    mean, deviation = before.mean(dim=(0, 2, 3)), before.std(dim=(0, 2, 3))
    assert deviation.max() / deviation.min() > 1.05  # else there was nothing to do
    eps = torch.finfo(torch.float32).eps
    slack = 1e3 * eps * float((1 + mean.abs() / deviation).max())
    torch.testing.assert_close(after.mean(dim=(0, 2, 3)), torch.zeros_like(mean), rtol=0, atol=slack)
    torch.testing.assert_close(after.std(dim=(0, 2, 3)), torch.ones_like(mean), rtol=slack, atol=0)
    x = torch.from_numpy(pictures).float() / 127.5 - 1
    with torch.no_grad():
        spread = [model.encode(x).latent_dist.std.double() for model in (plain, folded)]
        drawn = [
            model.decode(latents.float()).sample.double()
            for model, latents in ((plain, before), (folded, after))
        ]
    torch.testing.assert_close(spread[1] * deviation[None, :, None, None], spread[0], rtol=slack, atol=0)
    assert (drawn[1] - drawn[0]).norm() <= slack * drawn[0].norm()


def test_psnr_is_its_definition() -> None:
    black = np.zeros((2, 3, 4, 4), np.uint8)
    assert psnr(black, black + 51) == pytest.approx(20 * np.log10(5))


def test_the_command_makes_it_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--smoke", *(f"--steps={part}=1" for part in PARTS)]
    with pytest.raises(SystemExit) as caught:
        command.tiny(arguments)
    assert caught.value.code == 0
    assert str(tmp_path / "emoji-diffusion.safetensors") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--subjects", "3"], "expected: 8 to "),
        (["--steps", "autoencoder=many"], "found: autoencoder=many"),
        (["--steps", "vae=3"], "expected: PART=N"),
        (["--device", "nowhere"], "device cannot be used"),
    ],
)
def test_the_command_shows_errors_as_the_other_commands_do(
    options: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["tiny", "--out", str(tmp_path), "--smoke", *options])
    with pytest.raises(SystemExit) as caught:
        command.main()
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_another_seed_does_not_resume_this_ones_run(made: Made) -> None:
    other = replace(SMOKE, seed=1)
    with pytest.raises(CheckpointError, match="another run"):
        run(other, made.folder.parent, lambda *progress: None, resume=True)


def test_other_scenes_are_another_run(tmp_path: Path) -> None:
    quick = replace(SMOKE, steps=dict.fromkeys(PARTS, 1), measured=4)
    run(quick, tmp_path, lambda *progress: None)
    changed = replace(quick, mix=SceneMix(pairs=0.0))
    with pytest.raises(CheckpointError, match="another run") as caught:
        run(changed, tmp_path, lambda *progress: None, resume=True)
    assert "text-to-image.safetensors" in str(caught.value.where)
