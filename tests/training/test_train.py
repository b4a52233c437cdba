"""The trainer on tiny random pipelines: every method, and what its files mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baking import plan_of
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image
from rounding import dot_error, spectral_error
from safetensors.torch import load_file
from training_runs import OPTIONS, same, settings, tensors_of

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import main
from paramerge.errors import FamilyError
from paramerge.formats import open_adapter
from paramerge.generation.loading import load_pipeline
from paramerge.training import loop
from paramerge.training.config import METHODS, TrainConfig
from paramerge.training.config_file import config_from_toml
from paramerge.training.loop import train
from paramerge.training.methods.svdiff import SpectralShift
from paramerge.training.state import latest_checkpoint


def test_a_para_from_a_folder_of_pictures(sd: Path, dog: Path, tmp_path: Path) -> None:
    """The loss falls; the file is what bake reads; the log, plot and pictures are there."""
    seen = []
    config = settings(
        sd,
        dog,
        tmp_path,
        steps=20,
        learning_rate=5e-2,
        subset="fmt",
        validation_prompts=("a noto dog", "a cat"),
        validation_every=15,
        validation_steps=1,
        save_every=5,
    )
    result = train(config, report=lambda *progress: seen.append(progress))
    assert [done for done, _, _ in seen] == list(range(1, 21))
    still = train(replace(config, output=tmp_path / "still", learning_rate=1e-9, validation_prompts=()))
    # on the same draws; a random model has more to unlearn than a PaRa can take away
    assert result.losses[0] == still.losses[0]
    assert np.mean(result.losses[10:]) < np.mean(still.losses[10:])
    adapter = open_adapter(result.adapter[0])
    assert (adapter.family, adapter.architecture) == ("para", open_base(sd).architecture)
    assert {module.rank for module in adapter.modules.values()} == {2}
    assert adapter.metadata["training.data_sha256"] == result.data_sha256
    assert adapter.metadata["training.config_sha256"] == result.config_sha256
    assert str(tmp_path.parent) not in json.dumps(dict(adapter.metadata))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == list(result.losses)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "step-00000015.png",
        "step-00000020.png",
    ]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000010.safetensors",  # one beyond the limit
        "step-00000015.safetensors",
        "step-00000020.safetensors",
    ]
    with Image.open(tmp_path / "loss.png") as image:
        assert image.width > 300
    assert config_from_toml(tmp_path / "config.toml") == config


NAMED = {
    "para": "PaRa",
    "lora": "LoRA",
    "dora": "DoRA",
    "oft": "OFT",
    "boft": "BOFT",
    "loha": "LoHa",
    "lokr": "LoKr",
    "krona": "DiffuseKronA",
    "svdiff": "SVDiff",
    "dreambooth": "checkpoint",
    "textual-inversion": "textual inversion",
}
"""What ``inspect`` calls each method's file."""


def watched(seen: dict[str, Any]) -> Callable[[Any, TrainConfig], Any]:
    """What attaches a method, and keeps the UNet that it trains."""
    original = loop.attach

    def attach(pipeline: Any, config: TrainConfig) -> Any:
        seen["unet"] = pipeline.unet
        return original(pipeline, config)

    return attach


def trained_weights(unet: Any) -> dict[str, torch.Tensor]:
    """The weights of all layers as the trained model has them, by PEFT's own merging where it trains."""
    for module in unet.modules():
        if isinstance(module, BaseTunerLayer):
            module.merge()
    return {
        f"{name.removesuffix('.base_layer')}.weight": module.weight.detach()
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not is_part_of_an_adapter(name)
    }


def spectral_shifts(unet: Any) -> dict[str, SpectralShift]:
    """SVDiff's parametrizations, by the weight that they change."""
    return {
        f"{name.removesuffix('.parametrizations.weight.0')}.weight": module
        for name, module in unet.named_modules()
        if isinstance(module, SpectralShift)
    }


def shift_error(W: torch.Tensor, shift: SpectralShift) -> float:
    """How far a shift of singular values in float32 may be from that of the exact ones."""
    f = torch.relu(shift.s + shift.delta) - shift.s
    return spectral_error(W, shift.U, shift.s, shift.Vh, f.detach())


def is_part_of_an_adapter(name: str) -> bool:
    return any(part in name for part in (".lora_", ".hada_", ".lokr_", ".oft_", ".boft_", ".para_"))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_saves(
    method: str, sd: Path, dog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Twice the same; ``inspect`` names the file, and it bakes to the weights of the trained model."""
    config = settings(sd, dog, tmp_path / "a", method=method, steps=2, **OPTIONS.get(method, {}))
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "attach", watched(seen))
        result = train(config)
    assert len(result.losses) == 2
    saved = tensors_of(result.adapter[0])
    assert saved
    assert all(bool(torch.isfinite(value).all()) for value in saved.values())
    checkpoint = load_file(latest_checkpoint(tmp_path / "a" / "checkpoints"))  # type: ignore[arg-type]
    moments = [float(value.norm()) for key, value in checkpoint.items() if "exp_avg." in key]
    assert sum(norm > 0 for norm in moments) > 0.4 * len(moments) > 0
    again = train(replace(config, output=tmp_path / "b"))
    assert same(result.adapter[0], again.adapter[0])
    assert result.losses == again.losses
    with pytest.raises(SystemExit):
        main(["inspect", str(result.adapter[0])])
    assert NAMED[method].lower() in "".join(capfd.readouterr()).lower()
    if method == "textual-inversion":
        with pytest.raises(FamilyError, match="cannot be baked"):
            open_adapter(result.adapter[0])
        return
    baked = result.adapter[0]  # DreamBooth's is a model already
    if method != "dreambooth":
        baked = tmp_path / "baked"
        bake(plan_of(sd, Step("adapter", result.adapter[0])), baked)
    found, before = (load_file(next((model / "unet").glob("*.safetensors"))) for model in (baked, sd))
    # what is added is stored as factors, of 11 bits in float16; a PaRa's directions see the whole weight
    stored = 2.0**-11 if any(value.dtype == torch.float16 for value in saved.values()) else 2.0**-24
    shifts = spectral_shifts(seen["unet"])
    changed = 0
    for key, weight in trained_weights(seen["unet"]).items():
        wanted, W = weight.double(), before[key].double()
        gap = torch.linalg.norm(found[key].double() - wanted)
        change = torch.linalg.norm(wanted - W)
        seen_by = torch.linalg.matrix_norm(W.flatten(1), 2) if method == "para" else change
        allowed = dot_error(W[0].numel() + 8) * torch.linalg.norm(wanted) + 4 * stored * seen_by
        if key in shifts:
            allowed += shift_error(W, shifts[key])
        assert gap <= allowed, key
        changed += bool(change > 50 * allowed)
    assert changed > 5


def test_a_trained_lora_does_in_diffusers_what_it_did_in_training(
    sd: Path, dog: Path, tmp_path: Path
) -> None:
    config = settings(sd, dog, tmp_path, method="lora", alpha=2.0, train_text_encoder=True, subset="fmt")
    adapter = train(config).adapter[0]
    pipeline = load_pipeline(open_base(sd), torch.float32)
    pipeline.load_lora_weights(adapter)
    assert open_adapter(adapter).dialect == "kohya"
    state = load_file(latest_checkpoint(tmp_path / "checkpoints"))  # type: ignore[arg-type]
    layer = pipeline.unet.mid_block.resnets[0].conv1
    stored = state["parameter.unet.mid_block.resnets.0.conv1.lora_B.default.weight"]
    torch.testing.assert_close(layer.lora_B["default_0"].weight, stored, atol=1e-3, rtol=1e-3)
    assert any("lora" in name for name, _ in pipeline.text_encoder.named_parameters())


def test_krona_and_svdiff_files_mean_what_was_trained(sd: Path, dog: Path, tmp_path: Path) -> None:
    """The formulas of their public code, on the saved files, give the trained model's weights."""
    base = load_pipeline(open_base(sd), torch.float32).unet
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    W = base.get_submodule(name).weight.detach()
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "attach", watched(seen))
        file = train(settings(sd, dog, tmp_path / "k", method="krona", krona_factors=(4, 2))).adapter[0]
        state = load_file(file)
        key = f"unet.{name.replace('.to_q', '.processor.to_q_lora')}"
        up, down = state[f"{key}.up.weight"], state[f"{key}.down.weight"]
        change = torch.zeros_like(W)
        for p in range(up.shape[0]):
            for i in range(down.shape[0]):
                for q in range(down.shape[1]):
                    for j in range(up.shape[1]):
                        change[p * down.shape[1] + q, i * up.shape[1] + j] = up[p, j] * down[i, q]
        assert float(change.norm()) > 0
        torch.testing.assert_close(seen["unet"].get_submodule(name).weight.detach(), W + change)
        file = train(settings(sd, dog, tmp_path / "s", method="svdiff", subset="cao")).adapter[0]
        delta = load_file(file)[f"{name}.delta"]
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        want = U @ torch.diag(torch.relu(s + delta)) @ Vh
        assert float(delta.norm()) > 0
        found = seen["unet"].get_submodule(name).weight.detach()
        shift = spectral_shifts(seen["unet"])[f"{name}.weight"]
        # both are SVDs in float32, of which each may be off by that much, and two products of p terms
        allowed = 2 * shift_error(W, shift) + 2 * dot_error(len(s) + 8) * float(s.sum())
        assert float((found - want).norm()) <= allowed < 1e-2 * float((want - W).norm())


def test_prior_preservation(sd: Path, dog: Path, tmp_path: Path) -> None:
    """Missing pictures of the class are drawn by the model as it is; their loss counts with its weight."""
    more: dict[str, Any] = {"class_folder": tmp_path / "class", "class_prompt": "a dog", "class_images": 2}
    config = settings(sd, dog, tmp_path / "a", validation_steps=1, steps=2, **more)
    result = train(config)
    names = sorted(path.name for path in (tmp_path / "class").iterdir())
    assert names == ["class-0000.png", "class-0001.png"]
    kept = [path.read_bytes() for path in sorted((tmp_path / "class").iterdir())]
    again = train(replace(config, output=tmp_path / "b"))
    assert [path.read_bytes() for path in sorted((tmp_path / "class").iterdir())] == kept
    assert again.losses == result.losses
    alone = train(replace(config, output=tmp_path / "c", prior_weight=0.0, steps=1)).losses[0]
    double = train(replace(config, output=tmp_path / "d", prior_weight=2.0, steps=1)).losses[0]
    assert double - result.losses[0] == pytest.approx(result.losses[0] - alone, rel=1e-5)
    assert result.losses[0] > alone


def test_the_boundary_on_convolutions_and_cholesky(sd: Path, dog: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"steps": 1, "rank": 4, "gamma": 0.1, "subset": "ex-ca"}
    config = settings(sd, dog, tmp_path / "conv", gamma_on="conv", orthonormalise="cholesky", **more)
    seen: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "attach", watched(seen))
        ranks = {name: m.rank for name, m in open_adapter(train(config).adapter[0]).modules.items()}
    assert {rank for name, rank in ranks.items() if ".attn" in name.path} == {4}
    assert max(rank for name, rank in ranks.items() if ".conv" in name.path) < 4
    layer = seen["unet"].mid_block.resnets[0].conv1
    assert layer.para_method == {"para": "cholesky"}


@pytest.mark.parametrize("method", ["para", "lora"])
def test_adapters_are_put_on_by_peft_alone(
    method: str, sd: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers 5.24 demands a PEFT in its own ``add_adapter`` that there is not yet."""

    def refused(*arguments: object, **more: object) -> None:
        raise ImportError("a newer PEFT is needed")

    monkeypatch.setattr("transformers.integrations.peft.PeftAdapterMixin.add_adapter", refused)
    monkeypatch.setattr("diffusers.loaders.peft.PeftAdapterMixin.add_adapter", refused)
    more: dict[str, Any] = {"method": method, "train_text_encoder": True, "subset": "ex-ca-hl", "steps": 1}
    assert train(settings(sd, dog, tmp_path, **more)).adapter[0].is_file()


@pytest.mark.parametrize("method", ["para", "textual-inversion"])
def test_sdxl(method: str, sdxl: Path, dog: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = (
        {"instance_prompt": "a <sks> dog"} if method != "para" else {"train_text_encoder": True}
    )
    result = train(
        settings(sdxl, dog, tmp_path, method=method, steps=2, subset="ex-ca-hl", resolution=64, **more)
    )
    saved = tensors_of(result.adapter[0])
    if method == "para":
        adapter = open_adapter(result.adapter[0])
        assert adapter.architecture == "sdxl"
        assert {name.component for name in adapter.modules} == {"unet", "text_encoder", "text_encoder_2"}
    else:
        assert {key.split()[-1] for key in saved} == {"clip_l", "clip_g"}


def test_a_textual_inversion_is_read_by_diffusers(sd: Path, dog: Path, tmp_path: Path) -> None:
    more = {**OPTIONS["textual-inversion"], "method": "textual-inversion"}
    file = train(settings(sd, dog, tmp_path, **more)).adapter[0]
    pipeline = load_pipeline(open_base(sd), torch.float32)
    words = len(pipeline.tokenizer)
    pipeline.load_textual_inversion(file, token="<sks>")
    assert len(pipeline.tokenizer) == words + 2
    table = pipeline.text_encoder.get_input_embeddings().weight[words:]
    torch.testing.assert_close(table, load_file(file)["<sks>"])
