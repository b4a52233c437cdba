"""Opening bases that are one file: what is reached, what stays, and what is refused with its reason."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from checkpoint_files import Shape, blueprint, shapes_of, write_holes
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import law

from paramerge.checkpoints.layout import Base, open_base
from paramerge.errors import CheckpointError, FileFormatError, ParamergeError
from paramerge.models.names import ModuleName

UNET = "model.diffusion_model."
CLIP_L = "conditioner.embedders.0.transformer."


def single(architecture: str = "sd15") -> dict[str, Shape]:
    return shapes_of(blueprint(architecture, 16).single_file())


def renamed(shapes: dict[str, Shape], old: str, new: str) -> dict[str, Shape]:
    """The shapes with the prefix ``old`` of their keys replaced."""
    return {(new + k.removeprefix(old) if k.startswith(old) else k): v for k, v in shapes.items()}


def opened(tmp_path: Path, shapes: dict[str, Shape], name: str = "base.safetensors") -> Base:
    return open_base(write_holes(tmp_path / name, shapes))


def reached(base: Base) -> Counter[str]:
    return Counter(name.component for file in base.files for name in file.targets)


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("sd15", {"unet": 282, "text_encoder": 72}),
        ("sdxl", {"unet": 794, "text_encoder": 72, "text_encoder_2": 193}),
        ("sd2", {"unet": 282, "text_encoder": 145}),
        ("sdxl-refiner", {"unet": 554, "text_encoder_2": 193}),
    ],
)
def test_a_single_file(architecture: str, layers: dict[str, int], tmp_path: Path) -> None:
    base = opened(tmp_path, single(architecture))
    assert base.layout == "single-file"
    assert base.architecture == architecture
    assert reached(base) == layers
    (file,) = base.files
    assert (str(file.relative), file.component) == ("base.safetensors", None)
    assert file.components.keys() == file.header.tensors.keys()
    assert not base.companions
    assert not base.left_out
    assert not base.warnings


def test_every_tensor_of_a_single_file_has_a_component(tmp_path: Path) -> None:
    counts = Counter(opened(tmp_path, single()).files[0].components.values())
    assert counts == {"unet": 686, "text_encoder": 197, "vae": 248, "other": 12}


def test_unknown_tensors_are_kept_and_reached_by_nothing(tmp_path: Path) -> None:
    (file,) = opened(tmp_path, single() | {"my.own.weight": (4, 4), f"{UNET}extra.weight": (4, 4)}).files
    assert file.components["my.own.weight"] == "other"
    assert file.components[f"{UNET}extra.weight"] == "unet"
    assert {"my.own.weight", f"{UNET}extra.weight"}.isdisjoint(t.key for t in file.targets.values())


@pytest.mark.parametrize("prefix", [UNET, "diffusion_model.", "", "unet."])
@pytest.mark.parametrize("naming", ["ldm", "diffusers"])
def test_a_bare_unet(prefix: str, naming: str, tmp_path: Path) -> None:
    shapes = {k.removeprefix(UNET): v for k, v in single("sdxl").items() if k.startswith(UNET)}
    if naming == "diffusers":
        shapes = shapes_of(blueprint("sdxl", 16).component("unet"))
    base = opened(tmp_path, {prefix + key: shape for key, shape in shapes.items()})
    assert (base.layout, base.architecture) == ("unet-file", "sdxl")
    assert reached(base) == {"unet": 794}


@pytest.mark.parametrize("naming", ["ldm", "diffusers"])
def test_a_unet_without_prefix_owns_its_own_keys_alone(naming: str, tmp_path: Path) -> None:
    shapes = {k.removeprefix(UNET): v for k, v in single().items()}
    if naming == "diffusers":
        rest = {k: v for k, v in single().items() if not k.startswith(UNET)}
        shapes = rest | shapes_of(blueprint("sd15", 16).component("unet"))
    base = opened(tmp_path, shapes)
    counts = Counter(base.files[0].components.values())
    assert base.layout == "single-file"
    assert counts == {"unet": 686, "text_encoder": 197, "vae": 248, "other": 12}


def test_a_single_file_with_the_names_of_diffusers(tmp_path: Path) -> None:
    plan = blueprint("sdxl", 16)
    shapes = {f"{c}.{s.key}": s.shape for c in plan.components for s in plan.component(c)}
    base = opened(tmp_path, shapes)
    assert (base.layout, base.architecture) == ("single-file", "sdxl")
    assert reached(base) == {"unet": 794, "text_encoder": 72, "text_encoder_2": 193}


@pytest.mark.parametrize(
    ("architecture", "prefix"), [("sd15", "cond_stage_model.transformer."), ("sdxl", CLIP_L)]
)
def test_text_encoder_keys_may_lack_text_model(architecture: str, prefix: str, tmp_path: Path) -> None:
    shapes = single(architecture)
    short = renamed(shapes, f"{prefix}text_model.", prefix)
    assert len(short.keys() - shapes.keys()) == 197
    with_prefix = opened(tmp_path, shapes, "a.safetensors")
    without = opened(tmp_path, short, "b.safetensors")
    assert {n: t.shape for n, t in without.files[0].targets.items()} == {
        n: t.shape for n, t in with_prefix.files[0].targets.items()
    }
    assert not without.warnings


@pytest.mark.parametrize("prefix", ["te_model.", "text_encoders.clip.transformer.", "te1.", "clip."])
def test_a_text_encoder_of_unknown_prefix_is_reported_and_not_reached(prefix: str, tmp_path: Path) -> None:
    base = opened(tmp_path, renamed(single("sdxl"), CLIP_L, prefix))
    assert reached(base) == {"unet": 794, "text_encoder_2": 193}
    (warning,) = base.warnings
    assert warning.startswith("144 tensors look like a text encoder's")
    assert prefix in warning


def test_a_vision_encoder_beside_the_model_is_no_text_encoder(tmp_path: Path) -> None:
    extra = {"embedder.model.visual.transformer.resblocks.0.mlp.c_fc.weight": (8, 4)}
    extra |= {"safety_checker.vision_model.encoder.layers.0.mlp.fc1.weight": (8, 4)}
    assert not opened(tmp_path, single() | extra).warnings


def test_ema_weights_are_reported_and_not_reached(tmp_path: Path) -> None:
    shapes = single()
    ema = {f"model_ema.{k.replace('.', '')}": v for k, v in shapes.items() if k.startswith(UNET)}
    base = opened(tmp_path, shapes | ema | {"model_ema.decay": (), "model_ema.num_updates": ()})
    assert reached(base) == {"unet": 282, "text_encoder": 72}
    assert Counter(base.files[0].components.values())["ema"] == 688
    (warning,) = base.warnings
    assert warning.startswith("688 EMA tensors")


def test_scaled_fp8_weights_are_marked(tmp_path: Path) -> None:
    shapes = single()
    weights = {key for key, shape in shapes.items() if key.startswith(UNET) and len(shape) == 2}
    scales = {key.removesuffix(".weight") + ".scale_weight": () for key in weights}
    scales[f"{UNET}scaled_fp8"] = (0,)
    dtypes = dict.fromkeys(weights, "F8_E4M3") | dict.fromkeys(scales, "F32")
    path = write_holes(tmp_path / "fp8.safetensors", shapes | scales, dtypes=dtypes)
    (file,) = open_base(path).files
    scaled = {target.key for target in file.targets.values() if target.key in file.quantised}
    assert scaled == weights
    assert scaled < {target.key for target in file.targets.values()}


def test_two_encoders_under_two_names_are_refused(tmp_path: Path) -> None:
    shapes = single("sdxl")
    twice = shapes | {k: v for k, v in renamed(shapes, CLIP_L, "text_encoder.").items() if k not in shapes}
    with pytest.raises(CheckpointError, match="same layer"):
        opened(tmp_path, twice)


def test_a_unet_with_a_gap_is_refused(tmp_path: Path) -> None:
    shapes = {k: v for k, v in single().items() if ".input_blocks.5." not in k}
    with pytest.raises(CheckpointError, match="incomplete") as caught:
        opened(tmp_path, shapes)
    assert caught.value.where == "input_blocks.5"


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".CKPT"])
def test_pickles_are_refused_with_the_reason(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FileFormatError, match="never opened"):
        open_base(path)


def test_a_pickle_by_another_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"PK\x03\x04" + b"archive/data.pkl" * 10)
    with pytest.raises(FileFormatError, match="zip archive, as pickles"):
        open_base(path)


@pytest.mark.parametrize("kind", ["missing", "dangling link"])
def test_nothing_there(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    if kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_base(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_base(path)


def test_a_file_through_links_keeps_the_name_it_was_given(tmp_path: Path) -> None:
    real = write_holes(tmp_path / "store" / "blob", single())
    link = tmp_path / "model.safetensors"
    link.symlink_to(real)
    (tmp_path / "folder-link").symlink_to(tmp_path)
    for path in (link, tmp_path / "folder-link" / "model.safetensors"):
        assert str(open_base(path).files[0].relative) == "model.safetensors"


def test_files_have_no_variants(tmp_path: Path) -> None:
    path = write_holes(tmp_path / "base.safetensors", single())
    with pytest.raises(CheckpointError, match="a variant was given for a single file"):
        open_base(path, "fp16")


def test_one_shard_of_several_is_refused_and_a_lone_one_is_not(tmp_path: Path) -> None:
    shapes = shapes_of(blueprint("sd15", 16).component("unet"))
    stem = "diffusion_pytorch_model"
    with pytest.raises(CheckpointError, match="one shard of a model") as caught:
        opened(tmp_path, shapes, f"{stem}-00001-of-00002.safetensors")
    assert str(tmp_path) in str(caught.value.hint)
    assert reached(opened(tmp_path, shapes, f"{stem}-00001-of-00001.safetensors")) == {"unet": 282}


def test_every_refusal_is_an_error_of_paramerge(tmp_path: Path) -> None:
    for error in (CheckpointError, FileFormatError):
        assert issubclass(error, ParamergeError)
        assert error.exit_code == 3
    with pytest.raises(CheckpointError, match="not a model of diffusers"):
        open_base(tmp_path)


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Shape]:
    """A checkpoint with tensors lost, renamed, doubled under another prefix, and of strange shapes."""
    architecture = draw(st.sampled_from(["sd15", "sdxl"]))
    shapes = single(architecture)
    if draw(st.booleans()):
        shapes = shapes_of(blueprint(architecture, 16).component("unet"))
    keys = list(shapes)
    for _ in range(draw(st.integers(0, 12))):
        key = draw(st.sampled_from(keys))
        match draw(st.sampled_from(["lose", "lose block", "rename", "double", "reshape"])):
            case "lose":
                shapes.pop(key, None)
            case "lose block":
                block = ".".join(key.split(".")[:4])
                shapes = {k: v for k, v in shapes.items() if not k.startswith(block)}
            case "rename":
                shape = shapes.pop(key, ())
                shapes[
                    draw(st.sampled_from(["", "unet.", "text_encoder.", "x."])) + key.partition(".")[2]
                ] = shape
            case "double":
                shapes[draw(st.sampled_from(["unet.", "text_encoder.", "vae.", "te."])) + key] = (2, 2)
            case "reshape":
                shapes[key] = tuple(draw(st.lists(st.integers(0, 7), max_size=5)))
    return shapes


@settings(law, max_examples=30)
@given(damaged())
def test_a_damaged_checkpoint_is_refused_or_told_truly(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, Shape]
) -> None:
    path = write_holes(tmp_path_factory.mktemp("damaged") / "a.safetensors", shapes)
    try:
        base = open_base(path)
    except ParamergeError:
        return
    (file,) = base.files
    assert file.components.keys() == shapes.keys()
    for target in file.targets.values():
        stored = shapes[target.key]
        start, stop = target.rows or (0, stored[0])
        assert target.shape == (stored[::-1] if target.transposed else (stop - start, *stored[1:]))
        assert 0 <= start <= stop <= stored[0]


def test_opening_does_not_import_torch(tmp_path: Path) -> None:
    path = write_holes(tmp_path / "base.safetensors", single())
    code = (
        "import sys; from paramerge.checkpoints.layout import open_base; open_base(sys.argv[1]); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == 0


def test_targets_name_keys_of_their_own_file(tmp_path: Path) -> None:
    (file,) = opened(tmp_path, single("sdxl")).files
    assert all(target.key in file.header.tensors for target in file.targets.values())
    assert all(name == target.module for name, target in file.targets.items())
    assert ModuleName("unet", "conv_in") in file.targets
