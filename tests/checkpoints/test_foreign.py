"""What is no Stable Diffusion base is refused by name, never taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import Shape, blueprint, shapes_of, write_folder, write_holes

from paramerge.adapters import registry
from paramerge.adapters.endings import without_name
from paramerge.checkpoints.layout import open_base
from paramerge.errors import CheckpointError

NO_UNET = [
    ("a ControlNet", "control_model.input_blocks.0.0.weight"),
    ("a ControlNet", "controlnet_cond_embedding.conv_in.weight"),
    ("an AnimateDiff motion module", "up_blocks.0.motion_modules.0.temporal_transformer.norm.weight"),
    ("an AnimateDiff motion module", "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"),
    ("an IP-Adapter", "image_proj.proj.weight"),
    ("a T2I-Adapter", "adapter.body.0.in_conv.weight"),
    ("a textual inversion embedding", "emb_params"),
    ("a textual inversion embedding", "clip_g"),
    ("a VAE", "decoder.conv_in.weight"),
    ("a VAE", "decoder.mid_block.resnets.0.conv1.weight"),
    ("a VAE", "first_stage_model.encoder.mid.block_1.conv1.weight"),
    ("an upscaler", "conv_first.weight"),
    ("EMA weights alone", "model_ema.diffusion_modelinput_blocks00weight"),
]
BY_THEMSELVES = [
    ("model", "encoder.block.0.layer.0.SelfAttention.q.weight"),
    ("model", "vision_model.encoder.layers.0.mlp.fc1.weight"),
    ("model", "stages.3.mixer.weight"),
    ("model", "net.stages.3.mixer.weight"),
    ("model", "model.diffusion_model.stages.3.mixer.weight"),
    ("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj.weight"),
    ("text_encoder", "encoder.layers.0.self_attn.q_proj.weight"),
]
"""Files of one model, of which no architecture is known, with the component that they are opened as."""

ADAPTERS = [
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
    "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
    "base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_B.weight",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k.lora.up.weight",
    "lycoris_down_blocks_0_resnets_0_conv1.hada_w1_a",
    "x.lokr_w1",
    "unet:0:up",
    "text_encoder:3:down",
    "a.oft_blocks",
    "a.dora_scale",
    "a.para_B",
]
QUANTISED = [
    ("bitsandbytes", "down_blocks.1.attentions.0.proj_in.weight.absmax"),
    ("bitsandbytes", "mid_block.attentions.0.proj_in.weight.quant_state.bitsandbytes__nf4"),
    ("GPTQ or AWQ", "mid_block.attentions.0.proj_in.qweight"),
]


_LAYERS = ("down_blocks.0", "mid_block", "up_blocks.1")
ENDINGS = sorted(
    {without_name(ending) for family in registry.families() for ending in family.endings}
    | {"lambda_layer", "vera_lambda_b", "lora_E", "set_weight", "oft_diag", "hra_u", "deft_P"}
)
STEMS = {
    "dotted": "unet.{}.attentions.0.transformer_blocks.0.attn1.to_q.",
    "bare": "{}.attentions.0.transformer_blocks.0.attn1.to_q.",
    "ComfyUI's": "diffusion_model.{}.attentions.0.transformer_blocks.0.attn1.to_q.",
    "PEFT's": "base_model.model.{}.attentions.0.transformer_blocks.0.attn1.to_q.",
    "another model's": "diffusion_model.double_blocks.0.{}.img_attn.qkv.",
}


def refusal(tmp_path: Path, shapes: dict[str, Shape]) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_base(write_holes(tmp_path / "file.safetensors", shapes))
    return caught.value


@pytest.mark.parametrize(("component", "key"), BY_THEMSELVES)
def test_files_of_one_unknown_model_are_bases_name_for_name(component: str, key: str, tmp_path: Path) -> None:
    base = open_base(write_holes(tmp_path / "file.safetensors", {key: (4, 2), "norm.weight": (4,)}))
    path = key.removesuffix(".weight")
    if component == "text_encoder":
        path = path if path.startswith("text_model.") else f"text_model.{path}"
    assert (base.architecture, base.layout) == ("unknown", "model-file")
    assert [str(name) for name in base.files[0].targets] == [f"{component}.{path}"]
    alone = open_base(write_holes(tmp_path / "alone.safetensors", {key: (4, 2)}))
    stripped = [key.removeprefix(start) for start in ("net.", "model.diffusion_model.")]
    assert [name.path for name in alone.files[0].targets] == [
        min((*stripped, key), key=len).removesuffix(".weight") if component == "model" else path
    ]


@pytest.mark.parametrize(("name", "key"), NO_UNET)
def test_files_without_a_unet_are_named(name: str, key: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, {key: (2, 2)})
    assert error.what == f"there is no UNet in this file: it is {name}"
    assert error.found == key


@pytest.mark.parametrize("key", ADAPTERS)
def test_adapters_are_refused_as_a_base(key: str, tmp_path: Path) -> None:
    error = refusal(tmp_path, {key: (2, 2)})
    assert "this is an adapter" in error.what
    assert "paramerge.Lora" in str(error.hint)


def test_real_adapters_are_refused_as_a_base(shared_dir: Path) -> None:
    files = sorted((shared_dir / "fixtures" / "adapters").glob("**/*.safetensors"))
    assert len(files) == 6
    for path in [*files, shared_dir / "fixtures" / "adapters" / "peft_sd15_text_encoder"]:
        with pytest.raises(CheckpointError, match="this is an adapter"):
            open_base(path)


@pytest.mark.parametrize(("name", "key"), QUANTISED)
def test_quantised_unets_are_refused(name: str, key: str, tmp_path: Path) -> None:
    shapes = shapes_of(blueprint("sdxl", 16).component("unet"))
    assert name in refusal(tmp_path, shapes | {key: (4,)}).what


def test_a_quantised_text_encoder_does_not_stand_in_the_way_of_the_unet(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", skip=["text_encoder"])
    shapes = shapes_of(blueprint("sd15", 16).component("text_encoder"))
    key = next(key for key in shapes if key.endswith("mlp.fc1.weight"))
    path = folder / "text_encoder" / "model.safetensors"
    write_holes(path, shapes | {f"{key}.absmax": (4,), f"{key}.quant_map": (16,)})
    assert [file.component for file in open_base(folder).files] == ["unet", "text_encoder", "vae"]


def test_a_checkpoint_with_adapter_layers_left_in_is_refused(tmp_path: Path) -> None:
    shapes = shapes_of(blueprint("sd15", 16).component("unet"))
    key = "mid_block.attentions.0.proj_in"
    shapes[f"{key}.base_layer.weight"] = shapes.pop(f"{key}.weight")
    shapes |= {f"{key}.lora_A.default.weight": (4, 80), f"{key}.lora_B.default.weight": (80, 4)}
    error = refusal(tmp_path, shapes)
    assert "adapter layers around its weights" in error.what
    assert "fuse_lora" in str(error.hint)


WRAPPERS = ["_orig_mod.", "module.", "_forward_module.", "_fsdp_wrapped_module.", "module._orig_mod."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_unet_saved_from_a_wrapper_is_refused(wrapper: str, tmp_path: Path) -> None:
    shapes = shapes_of(blueprint("sd15", 16).component("unet"))
    error = refusal(tmp_path, {wrapper + key: shape for key, shape in shapes.items()})
    assert "wrapped model" in error.what
    assert wrapper.split(".", maxsplit=1)[0] in error.what


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_component_saved_from_a_wrapper_is_refused(component: str, wrapper: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", skip=[component])
    shapes = shapes_of(blueprint("sd15", 16).component(component))
    stem = "model" if component == "text_encoder" else "diffusion_pytorch_model"
    path = folder / component / f"{stem}.safetensors"
    write_holes(path, {wrapper + key: shape for key, shape in shapes.items()})
    with pytest.raises(CheckpointError, match="wrapped model") as caught:
        open_base(folder)
    assert caught.value.where == str(path)


def test_a_block_compiled_alone_is_refused(tmp_path: Path) -> None:
    shapes = shapes_of(blueprint("sd15", 16).single_file())
    start = "model.diffusion_model.middle_block."
    shapes = {k.replace(start, f"{start}_orig_mod."): v for k, v in shapes.items()}
    assert "'_orig_mod'" in refusal(tmp_path, shapes).what


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_a_unet_under_an_unknown_prefix_is_not_taken_for_a_text_encoder(
    architecture: str, tmp_path: Path
) -> None:
    shapes = shapes_of(blueprint(architecture, 16).single_file())
    error = refusal(tmp_path, {f"state_dict.{key}": shape for key, shape in shapes.items()})
    assert error.what == "there is a UNet, but not a whole one under names that paramerge knows"
    assert str(error.found).startswith("state_dict.model.diffusion_model.output_blocks.")


@pytest.mark.parametrize("missing", ["conv_in.weight", "conv_out.weight"])
@pytest.mark.parametrize("folder", [True, False])
def test_a_unet_without_its_first_or_last_convolution_is_refused(
    missing: str, folder: bool, tmp_path: Path
) -> None:
    shapes = shapes_of(blueprint("sdxl", 16).component("unet"))
    del shapes[missing]
    path = write_holes(tmp_path / "diffusion_pytorch_model.safetensors", shapes)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a whole one"):
        open_base(tmp_path if folder else path)


@pytest.mark.parametrize("missing", ["input_blocks.0.0.weight", "out.2.weight"])
def test_a_single_file_without_its_first_or_last_convolution_is_refused(missing: str, tmp_path: Path) -> None:
    shapes = shapes_of(blueprint("sd15", 16).single_file())
    del shapes[f"model.diffusion_model.{missing}"]
    assert "not a whole one" in refusal(tmp_path, shapes).what


def test_what_is_not_known_is_shown(tmp_path: Path) -> None:
    error = refusal(tmp_path, {"a": (1,), "b": (1,), "c": (1,), "d": (1,)})
    assert "not a checkpoint that paramerge knows" in error.what
    assert error.found == "4 tensors: a, b, c ..."
    assert refusal(tmp_path, {}).found == "no tensors"


@pytest.mark.parametrize("architecture", ["sd15", "sd2", "sdxl", "sdxl-refiner"])
def test_no_pattern_of_another_architecture_matches_a_stable_diffusion(
    architecture: str, tmp_path: Path
) -> None:
    plan = blueprint(architecture, 16)
    assert open_base(write_holes(tmp_path / "a.safetensors", shapes_of(plan.single_file())))
    assert open_base(write_folder(tmp_path / "b", architecture))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("stem", STEMS.values(), ids=STEMS)
def test_an_adapter_of_any_family_is_no_base(stem: str, ending: str, tmp_path: Path) -> None:
    shapes: dict[str, Shape] = {stem.format(layer) + ending: (4, 4) for layer in _LAYERS}
    assert refusal(tmp_path, shapes).what == "this is an adapter, not a base checkpoint"
