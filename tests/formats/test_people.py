"""Spellings and forms that people's files have: ComfyUI's extractions, OneTrainer's, layers switched off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_files import kohya_layer, random_factors, save
from baking import load, plan_of, shapes_of, small_model
from family_cases import CASES
from safetensors.numpy import load_file

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.convert.convert import convert
from paramerge.convert.request import ConvertOptions
from paramerge.errors import AdapterError
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.formats.registry import place_of
from paramerge.merge.combine import combine
from paramerge.merge.request import CombineOptions, Input
from paramerge.models.names import ModuleName

TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
LDM_Q = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
LDM_NORM = "input_blocks.1.0.in_layers.0"
NORM = "down_blocks.0.resnets.0.norm1"
MLP = "text_model.encoder.layers.3.mlp.fc1"


@pytest.mark.parametrize("prefix", ["unet.", "diffusion_model.", "model.diffusion_model.", ""])
@pytest.mark.parametrize(
    ("ldm", "path", "layer"),
    [
        (LDM_Q, TO_Q, True),
        ("middle_block.0.in_layers.2", "mid_block.resnets.0.conv1", True),
        ("output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv", True),
        (LDM_NORM, NORM, False),
        ("input_blocks.4.1.norm", "down_blocks.1.attentions.0.norm", False),
        (TO_Q, TO_Q, True),
        (NORM, NORM, False),
    ],
)
def test_ldms_names_behind_every_prefix(prefix: str, ldm: str, path: str, layer: bool) -> None:
    place = place_of(prefix + ldm)
    assert place is not None
    assert (place.name, place.layer) == (ModuleName("unet", path), layer)


@pytest.mark.parametrize("inner", ["transformer.", ""])
@pytest.mark.parametrize(
    ("encoder", "component"),
    [("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"), ("clip_h", "text_encoder")],
)
def test_text_encoders_as_comfyui_bundles_them(encoder: str, component: str, inner: str) -> None:
    for path, layer in ((MLP, True), ("text_model.final_layer_norm", False), ("text_projection", True)):
        place = place_of(f"text_encoders.{encoder}.{inner}{path}")
        assert place is not None
        assert (place.name, place.layer) == (ModuleName(component, path), layer)


@pytest.mark.parametrize(
    "path", ["time_embed.0", "out.2", "input_blocks.4.1.no_such", "input_block.4.1.proj_in"]
)
def test_bare_names_that_other_models_may_have_stay(path: str) -> None:
    place = place_of(path)
    assert place is not None and place.name == ModuleName("model", path)


def test_a_base_that_forge_saved(tmp_path: Path) -> None:
    """Text encoders under ``text_encoders.``, the VAE under ``vae.``: the same layers are reached."""
    plain = small_model(tmp_path / "plain.safetensors")
    renamed = {}
    for key, value in load(plain).tensors.items():
        new = key.replace("cond_stage_model.transformer.", "text_encoders.clip_l.transformer.")
        renamed[new.replace("first_stage_model.", "vae.")] = value
    write_safetensors(tmp_path / "forge.safetensors", renamed, {})
    one, other = (open_base(tmp_path / f"{name}.safetensors").files[0] for name in ("plain", "forge"))
    assert one.targets.keys() == other.targets.keys()
    assert one.parameters.keys() == other.parameters.keys()
    assert any(name.component == "text_encoder" for name in other.targets)
    assert "vae" in other.components.values() and "other" not in {
        other.components[key] for key in renamed if key.startswith(("vae.", "text_encoders."))
    }


def two_layers(tmp_path: Path, off: float = 0.0) -> tuple[Path, Path]:
    """A base, and a LoRA on two of its layers, the first with the alpha ``off``."""
    base = small_model(tmp_path / "base.safetensors")
    shapes = shapes_of(base)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, alpha in (("to_q", off), ("to_k", 2.0)):
        shape = shapes[f"unet.{TO_Q[:-4]}{name}"]
        up, down = random_factors(rng, shape[0], shape[1], 2)
        tensors |= kohya_layer(f"lora_unet_{TO_Q[:-4].replace('.', '_')}{name}", up, down, alpha)
    return base, save(tmp_path / "l.safetensors", tensors)


def test_a_layer_whose_alpha_is_0_is_left_alone_and_said(tmp_path: Path) -> None:
    base, lora = two_layers(tmp_path)
    plan = plan_of(base, Step("lora", lora))
    assert [str(name) for name in plan.left_alone] == [f"unet.{TO_Q}"]
    assert any("1 layers are left alone" in text and "alpha is 0" in text for text in plan.warnings)
    bake(plan, tmp_path / "out.safetensors")
    before, after = load(base).tensors, load(tmp_path / "out.safetensors").tensors
    changed = [key for key in before if not np.array_equal(before[key], after[key])]
    assert len(changed) == 1 and "attn1.to_k" in changed[0]


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_a_layer_that_is_off_stays_off_in_every_format(to: str, tmp_path: Path) -> None:
    _, lora = two_layers(tmp_path)
    output = tmp_path / ("out" if to == "peft" else "out.safetensors")
    convert([Input(lora)], [open_adapter(lora)], output, ConvertOptions(to))
    norms = {name.path: module.norm() for name, module in open_adapter(output).modules.items()}
    assert len(norms) == 2 and norms[TO_Q] == 0 < min(norms[path] or 0 for path in norms if path != TO_Q)


def test_a_layer_that_is_off_adds_nothing_to_a_merge(tmp_path: Path) -> None:
    _, lora = two_layers(tmp_path)
    out = tmp_path / "out.safetensors"
    combine([Input(lora)] * 2, [open_adapter(lora)] * 2, out, CombineOptions())
    assert [name.path for name in open_adapter(out).modules] == [TO_Q[:-4] + "to_k"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.family == "loha" and case.config is None], ids=str
)
def test_a_loha_with_four_axes_is_the_one_with_two(case: object, tmp_path: Path) -> None:
    path, _ = case.write(tmp_path / "f", {"unet.mid_block.resnets.0.conv1": (8, 6, 3, 3)})  # type: ignore[attr-defined]
    tensors = load_file(path)
    four = {k: v.reshape(*v.shape, 1, 1) if "hada_w" in k else v for k, v in tensors.items()}
    (two,), (other,) = (
        open_adapter(file).modules.values() for file in (path, save(tmp_path / "four.safetensors", four))
    )
    W = np.random.default_rng(0).standard_normal((8, 54))
    np.testing.assert_array_equal(other.delta(W), two.delta(W))


@pytest.mark.parametrize("shared", [False, True])
def test_onetrainers_oft_is_pefts_series(shared: bool, tmp_path: Path) -> None:
    """PEFT's tensors under kohya's names, without a configuration; five terms of the Cayley transform."""
    count = 1 if shared else 4
    vectors = np.random.default_rng(0).standard_normal((count, 6)).astype(np.float32) * 0.1
    stem = f"lora_unet_{TO_Q.replace('.', '_')}"
    adapter = open_adapter(save(tmp_path / "o.safetensors", {f"{stem}.oft_R.weight": vectors}))
    (module,) = adapter.modules.values()
    assert module.fits((5, 16)) and module.fits((5, 4, 2, 2)) and not module.fits((5, 18))
    Q = np.zeros((count, 4, 4))
    Q[:, *np.triu_indices(4, 1)] = vectors
    Q -= np.swapaxes(Q, 1, 2)
    R = np.eye(4) + 2 * Q + 2 * Q @ Q + 2 * Q @ Q @ Q + Q @ Q @ Q @ Q
    W = np.random.default_rng(1).standard_normal((5, 16))
    R = np.broadcast_to(R, (4, 4, 4))
    wanted = np.einsum("onk,nck->onc", W.reshape(5, 4, 4), R).reshape(5, 16)
    np.testing.assert_allclose(module.transform(W), wanted, rtol=0, atol=64 * 2.0**-52 * np.abs(W).max())


def test_pefts_own_oft_still_wants_its_configuration(tmp_path: Path) -> None:
    bare = {f"{p}.oft_R.weight": np.ones((4, 6), np.float32) for p in ("blocks.0.q",)}
    with pytest.raises(AdapterError, match="configuration"):
        open_adapter(save(tmp_path / "o.safetensors", bare))
