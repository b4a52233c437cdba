"""The trainer, on tiny random pipelines: every method, exact resumption, processes, and what goes wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_pipelines import sd_pipeline, sdxl_pipeline

from paramerge.checkpoints import writer
from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import main
from paramerge.errors import CheckpointError, FileFormatError, NonFiniteError, OutputError, UsageError
from paramerge.formats import open_adapter
from paramerge.generation.loading import load_pipeline
from paramerge.training import loop
from paramerge.training.chance import permutation
from paramerge.training.config import METHODS, TrainConfig, config_from_toml, config_to_toml
from paramerge.training.loop import train
from paramerge.training.state import latest_checkpoint


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_pipeline(tmp_path_factory.mktemp("sd"))[0]


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdxl_pipeline(tmp_path_factory.mktemp("xl"))[0]


@pytest.fixture(scope="module")
def dog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures: wide, tall, and with transparency."""
    folder = tmp_path_factory.mktemp("dog")
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (40, 60, 3), "b.jpg": (70, 50, 3), "c.png": (64, 64, 4)}.items():
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def settings(model: Path, pictures: Path, output: Path, **more: Any) -> TrainConfig:
    plain = {"instance_prompt": "a noto dog", "steps": 4, "rank": 2, "device": "cpu"}
    return TrainConfig(
        model=model, instance_folder=pictures, output=output, **{**plain, "learning_rate": 1e-2, **more}
    )


def tensors_of(adapter: Path) -> dict[str, torch.Tensor]:
    files = [adapter] if adapter.is_file() else sorted(adapter.rglob("*.safetensors"))
    return {f"{file.name} {key}": value for file in files for key, value in load_file(file).items()}


def same(a: Path, b: Path) -> bool:
    first, second = tensors_of(a), tensors_of(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


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
        "step-00000015.safetensors",
        "step-00000020.safetensors",
    ]
    with Image.open(tmp_path / "loss.png") as image:
        assert image.width > 300
    assert config_from_toml(tmp_path / "config.toml") == config


OPTIONS: dict[str, dict[str, Any]] = {
    "oft": {"subset": "sao", "rank": 4},
    "boft": {"subset": "sao", "rank": 4},
    "krona": {"krona_factors": (4, 2)},
    "textual-inversion": {"instance_prompt": "a <sks> dog", "initializer": "dog", "placeholder_vectors": 2},
}
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


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_saves(
    method: str, sd: Path, dog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = settings(sd, dog, tmp_path / "a", method=method, steps=2, **OPTIONS.get(method, {}))
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
    original = loop.attach

    def watched(pipeline: Any, config: TrainConfig) -> Any:
        seen["unet"] = pipeline.unet
        return original(pipeline, config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "attach", watched)
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
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        {
            "method": "para",
            "init": "orthonormal",
            "random_flip": True,
            "ema_decay": 0.5,
            "train_text_encoder": True,
        },
        {"method": "para", "init": "gate", "gate_steps": 3, "lr_scheduler": "cosine", "accumulation": 2},
        {"method": "lora", "min_snr_gamma": 5.0, "noise_offset": 0.1, "gradient_checkpointing": True},
    ],
    ids=["para-ema-text", "para-gate-cosine", "lora"],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    more: dict[str, Any], sd: Path, dog: Path, tmp_path: Path
) -> None:
    """Stopped at a random step by an error, resumed from the last checkpoint: the same bytes."""
    stop = int(np.random.default_rng().integers(2, 6))
    config = settings(sd, dog, tmp_path / "whole", steps=6, save_every=1, **more)
    whole = train(config)
    part = replace(config, output=tmp_path / "part")

    def interrupt(done: int, total: int, loss: float) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(part, report=interrupt)
    resumed = train(part, resume=True)
    assert resumed.losses == whole.losses, f"stopped at {stop}"
    assert resumed.adapter[0].read_bytes() == whole.adapter[0].read_bytes()
    assert (tmp_path / "part" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_what_cannot_be_resumed(sd: Path, dog: Path, tmp_path: Path) -> None:
    config = settings(sd, dog, tmp_path / "run", steps=1)
    train(config)
    with pytest.raises(UsageError, match="already"):
        train(config)
    with pytest.raises(CheckpointError, match="settings"):
        train(replace(config, rank=3, steps=2), resume=True)
    with pytest.raises(CheckpointError, match="whole batch"):
        train(replace(config, batch_size=3, steps=2), resume=True)
    other = tmp_path / "other"
    shutil.copytree(dog, other)
    (other / "a.png").unlink()
    with pytest.raises(CheckpointError, match="data"):
        train(replace(config, instance_folder=other, steps=2), resume=True)
    assert len(train(replace(config, steps=2), resume=True).losses) == 2
    newest = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert newest is not None
    newest.write_bytes(newest.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(replace(config, steps=3), resume=True)


SMOOTH = {"init": "orthonormal", "adam_epsilon": 1.0, "learning_rate": 1.0}
"""AdamW as plain descent: its first steps go by the signs of gradients, which rounding may turn."""


def test_accumulated_batches_are_one_batch(sd: Path, dog: Path, tmp_path: Path) -> None:
    once = train(settings(sd, dog, tmp_path / "a", batch_size=4, **SMOOTH))
    twice = train(settings(sd, dog, tmp_path / "b", batch_size=2, accumulation=2, **SMOOTH))
    np.testing.assert_allclose(twice.losses, once.losses, rtol=1e-5)


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


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_bad_pictures_and_empty_folders(sd: Path, dog: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        train(settings(sd, tmp_path / "nowhere", tmp_path / "o"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no picture"):
        train(settings(sd, tmp_path / "empty", tmp_path / "o"))
    bad = tmp_path / "bad"
    shutil.copytree(dog, bad)
    (bad / "b.jpg").write_bytes((bad / "b.jpg").read_bytes()[:200])
    with pytest.raises(FileFormatError, match="cannot be read") as caught:
        train(settings(sd, bad, tmp_path / "o"))
    assert "b.jpg" in str(caught.value)


def test_a_loss_that_is_nan_keeps_the_last_checkpoint(sd: Path, dog: Path, tmp_path: Path) -> None:
    original = loop.loss_of
    calls = []

    def broken(*arguments: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 3 else 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "loss_of", broken)
        with pytest.raises(NonFiniteError, match="step 3"):
            train(settings(sd, dog, tmp_path, save_every=1))
    assert (
        latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000002.safetensors"
    )
    assert not (tmp_path / "adapter.safetensors").exists()
    assert len(train(settings(sd, dog, tmp_path, save_every=1), resume=True).losses) == 4


def test_a_full_disk_keeps_the_last_checkpoint(sd: Path, dog: Path, tmp_path: Path) -> None:
    original = writer._write_all

    def full(descriptor: int, data: Any) -> None:
        if b'step\\": 3' in bytes(data[:20000]):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_write_all", full)
        with pytest.raises(OutputError, match="disk is full"):
            train(settings(sd, dog, tmp_path, save_every=1, checkpoints_limit=1))
    assert (
        latest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000002.safetensors"
    )
    whole = train(settings(sd, dog, tmp_path / "whole"))
    assert train(settings(sd, dog, tmp_path, checkpoints_limit=1), resume=True).losses == whole.losses


# --- the configuration and the command ----------------------------------------------------------------------


def test_toml_and_flags_are_the_same(tmp_path: Path) -> None:
    config = TrainConfig(
        model=Path("m"),
        instance_folder=Path("p"),
        instance_prompt='a "photo" of é',
        output=Path("o"),
        gamma=0.025,
        random_flip=True,
        krona_factors=(8, 2),
        validation_prompts=("a", "b"),
    )
    file = tmp_path / "c.toml"
    file.write_text(config_to_toml(config))
    assert config_from_toml(file) == config
    assert config_from_toml(file, rank=7).rank == 7
    file.write_text("rnak = 3")
    with pytest.raises(UsageError, match="no such settings"):
        config_from_toml(file)
    file.write_text("rank = 3")
    with pytest.raises(UsageError, match="missing"):
        config_from_toml(file)
    file.write_text(config_to_toml(config).replace("rank = 4", 'rank = "4"'))
    with pytest.raises(UsageError, match="out of range"):
        config_from_toml(file)
    file.write_text("= =")
    with pytest.raises(UsageError, match="cannot be read"):
        config_from_toml(file)


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "magic"},
        {"rank": 0},
        {"steps": 0},
        {"ema_decay": 1.0},
        {"resolution": 30},
        {"learning_rate": -1.0},
        {"noise_offset": float("nan")},
        {"class_folder": Path("x")},
        {"init": "gate", "gate_steps": 10},
        {"method": "textual-inversion"},
    ],
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        settings(Path("m"), Path("p"), Path("o"), **wrong)


def test_the_command(sd: Path, dog: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('steps = 9\nrank = 2\ninstance_prompt = "a noto dog"\ndevice = "cpu"\n')
    flags = [
        "--model",
        sd,
        "--instance-folder",
        dog,
        "--output",
        tmp_path / "o",
        "--config",
        toml,
        "--steps",
        2,
    ]
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, flags), "--json"])
    assert caught.value.code == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["steps"] == 2
    assert Path(facts["adapter"][0]).is_file()
    with pytest.raises(SystemExit) as caught:
        main(["inspect", facts["adapter"][0]])
    assert "a noto dog" in capfd.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, flags)])
    assert caught.value.code == 2
    assert "already" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--min-snr-gamma" in capfd.readouterr().out


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from paramerge.cli.main import main\n"
        "main(['train', '--help'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--lr-scheduler" in done.stdout


@pytest.mark.slow  # three processes that each load torch; some 25 seconds of CPU
def test_two_processes_are_one_with_the_same_whole_batch(sd: Path, dog: Path, tmp_path: Path) -> None:
    """Equal to rounding, as sums are taken in another order."""
    flags = ["--model", sd, "--instance-folder", dog, "--instance-prompt", "a noto dog",
             "--steps", 3, "--rank", 2, "--device", "cpu", "--output", tmp_path / "two"]  # fmt: skip
    flags += [text for key, value in SMOOTH.items() for text in (f"--{key.replace('_', '-')}", value)]
    # what accelerate's launcher starts for many GPUs; for CPUs that one wants MPI
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["-m", "paramerge.training"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *map(str, flags)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(settings(sd, dog, tmp_path / "one", steps=3, batch_size=2, **SMOOTH))
    rows = [json.loads(line)["loss"] for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(rows, one.losses, rtol=1e-5)
    found = load_file(latest_checkpoint(tmp_path / "two" / "checkpoints"))  # type: ignore[arg-type]
    want = load_file(latest_checkpoint(tmp_path / "one" / "checkpoints"))  # type: ignore[arg-type]
    assert found.keys() == want.keys()
    for key, value in want.items():
        if key.startswith("parameter."):
            assert float((found[key] - value).norm() / value.norm()) < 2e-4, key


def test_the_order_of_pictures() -> None:
    order = [permutation(5, position, 3, "order") for position in range(15)]
    for epoch in range(3):
        assert sorted(order[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert order[:5] != order[5:10]
    maker: Callable[..., int] = permutation
    assert [maker(5, position, 4, "order") for position in range(15)] != order
