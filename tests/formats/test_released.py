"""PaRas of the authors' released code: told from LoRAs by their numbers, never baked as such in silence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from baking import load, small_model
from safetensors.numpy import save_file

import paramerge as pm
from paramerge.cli.main import main
from paramerge.errors import FamilyError, UsageError

LAYERS = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
    "unet.down_blocks.1.resnets.0.conv1",
)
RANK = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "base.safetensors", dtype="F32")


def weights(base: Path) -> dict[str, np.ndarray]:
    """Each layer's weight in the file, by its diffusers name."""
    tensors = load(base).tensors
    targets = {str(name): target for name, target in pm.open_base(base).files[0].targets.items()}
    return {name: np.array(tensors[targets[name].key], np.float64) for name in LAYERS}


def released(path: Path, base: Path, *, moved: float = 0.1, light: bool = False, alpha: float = 1.0) -> dict:
    """A file as that code saves one: it begins at the first unit vectors and rows of W, and moves freely."""
    rng = np.random.default_rng(0)
    tensors, factors = {}, {}
    for name, W in weights(base).items():
        matrix = W.reshape(len(W), -1)
        up = np.eye(len(W), RANK) + moved * rng.uniform(-1, 1, (len(W), RANK))
        down = matrix[:RANK] + moved * rng.standard_normal((RANK, matrix.shape[1]))
        key = "lora_unet_" + name.removeprefix("unet.").replace(".", "_")
        kernel = W.shape[2:]
        up, down = up.astype(np.float32), down.astype(np.float32)
        tensors[f"{key}.lora_up.weight"] = up.reshape(*up.shape, *(1 for _ in kernel))
        if not light:
            tensors[f"{key}.lora_down.weight"] = down.reshape(RANK, *W.shape[1:])
        tensors[f"{key}.alpha"] = np.array(alpha, np.float32)
        factors[name] = (up.astype(np.float64), down.astype(np.float64))
    save_file(tensors, path)
    return factors


def check(base: Path, out: Path, expected: dict[str, np.ndarray]) -> None:
    after = weights(out)
    for name, W in weights(base).items():
        wanted = expected[name].reshape(W.shape)
        error = np.linalg.norm(after[name] - wanted) / np.linalg.norm(wanted)
        assert error <= 8 * np.finfo(np.float32).eps, name
        assert not np.array_equal(after[name], W)


def test_it_is_not_taken_for_a_lora_in_silence(base: Path, tmp_path: Path) -> None:
    released(tmp_path / "a.safetensors", base)
    with pytest.raises(FamilyError, match="released code, not a LoRA"):
        pm.bake(base, [pm.Adapter(tmp_path / "a.safetensors")], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_it_means(base: Path, tmp_path: Path) -> None:
    """``W - up down``, its alpha ignored, by the command line; the recipe keeps the decision."""
    factors = released(tmp_path / "a.safetensors", base)
    with pytest.raises(SystemExit) as caught:
        main([
            "bake", "--base", str(base), "--adapter", str(tmp_path / "a.safetensors"), "--released", "yes",
            "-o", str(tmp_path / "out.safetensors"),
        ])  # fmt: skip
    assert not caught.value.code
    expected = {
        name: W.reshape(len(W), -1) - factors[name][0] @ factors[name][1] for name, W in weights(base).items()
    }
    check(base, tmp_path / "out.safetensors", expected)
    recipe = json.loads(load(tmp_path / "out.safetensors").metadata["paramerge.recipe"])
    assert "released" in json.dumps(recipe)


def test_it_may_be_a_lora_after_all(base: Path, tmp_path: Path) -> None:
    factors = released(tmp_path / "a.safetensors", base)
    opened = pm.open_adapter(tmp_path / "a.safetensors", interpretation=pm.Interpretation(released="no"))
    pm.bake(base, [opened], tmp_path / "out.safetensors")
    expected = {
        name: W.reshape(len(W), -1) + factors[name][0] @ factors[name][1] / RANK
        for name, W in weights(base).items()
    }
    check(base, tmp_path / "out.safetensors", expected)


@pytest.mark.parametrize(("moved", "alpha"), [(3.0, 1.0), (0.1, 4.0)])
def test_loras_are_not_taken_for_it(base: Path, tmp_path: Path, moved: float, alpha: float) -> None:
    released(tmp_path / "a.safetensors", base, moved=moved, alpha=alpha)
    assert pm.open_adapter(tmp_path / "a.safetensors").family == "lora"


def test_a_light_file_is_a_span(base: Path, tmp_path: Path) -> None:
    """``lora_up`` alone: the directions that are gone, so the paper's PaRa."""
    factors = released(tmp_path / "a.safetensors", base, light=True)
    adapter = pm.open_adapter(tmp_path / "a.safetensors")
    assert adapter.family == "para" and len(adapter.modules) == len(LAYERS)
    pm.bake(base, [pm.Para(tmp_path / "a.safetensors")], tmp_path / "out.safetensors")
    expected = {}
    for name, W in weights(base).items():
        Q = np.linalg.qr(factors[name][0])[0]
        expected[name] = W.reshape(len(W), -1) - Q @ (Q.T @ W.reshape(len(W), -1))
    check(base, tmp_path / "out.safetensors", expected)


def test_inspect_names_it(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    released(tmp_path / "a.safetensors", base)
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "a.safetensors")])
    assert "released code" in capsys.readouterr().out


def test_other_decisions_are_refused() -> None:
    with pytest.raises(UsageError, match="no such choice"):
        pm.Interpretation(released="perhaps")
