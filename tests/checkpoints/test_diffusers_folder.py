"""Diffusers folders: which weights are taken, what comes along, what stays behind, what is refused."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_files import blueprint, shapes_of, write_folder, write_holes, write_shards

from paramerge.checkpoints.layout import Base, open_base
from paramerge.errors import CheckpointError, FileFormatError, UnreadableError
from paramerge.files.folder_links import check_regular
from paramerge.models.names import ModuleName

STEMS = {"unet": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model"}


def reached(base: Base) -> Counter[str]:
    return Counter(name.component for file in base.files for name in file.targets)


VAE = "vae/diffusion_pytorch_model.safetensors"


def names(base: Base) -> list[str]:
    """The files that adapters reach; the VAE's is opened beside them."""
    return [str(file.relative) for file in base.files if file.component != "vae"]


def companions(base: Base) -> set[str]:
    return {str(path) for path in base.companions}


def left_out(base: Base) -> dict[str, str]:
    return {str(path): reason for path, reason in base.left_out}


def put(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("sd15", {"unet": 282, "text_encoder": 72}),
        ("sdxl", {"unet": 794, "text_encoder": 72, "text_encoder_2": 193}),
        ("sdxl-refiner", {"unet": 554, "text_encoder_2": 193}),
    ],
)
def test_a_plain_folder(architecture: str, layers: dict[str, int], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", architecture)
    base = open_base(folder)
    assert (base.layout, base.architecture) == ("diffusers-folder", architecture)
    assert reached(base) == layers
    assert names(base) == [f"{c}/{STEMS[c]}.safetensors" for c in layers]
    assert [file.component for file in base.files] == [*layers, "vae"]
    everything = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert companions(base) == everything - set(names(base)) - {VAE}
    assert not base.left_out
    assert not base.warnings


def test_every_file_of_a_folder_is_accounted_for_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    put(folder / "unet" / "diffusion_pytorch_model.bin")
    put(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    put(folder / "tokenizer" / "vocab.json")
    put(folder / "README.md")
    put(folder / "v1-5-pruned.ckpt")
    put(folder / "v1-5-pruned.safetensors")
    put(folder / ".git" / "config")
    put(folder / "unet" / ".cache" / "x.lock")
    put(folder / "text_encoder" / "model.onnx")
    base = open_base(folder)
    assert left_out(base) == {
        ".git": "version control, not part of the model",
        "text_encoder/model.onnx": "a copy, in another format, of weights that are changed",
        "unet/.cache": "a download cache, not part of the model",
        "unet/diffusion_pytorch_model.bin": "a pickled copy of weights that are changed",
        "unet/diffusion_pytorch_model.fp16.safetensors": "another variant of weights that are changed",
        "v1-5-pruned.ckpt": "weights of the whole model, which are not changed",
        "v1-5-pruned.safetensors": "weights of the whole model, which are not changed",
    }
    assert {"tokenizer/vocab.json", "README.md"} < companions(base)
    found = [*names(base), VAE, *companions(base)]
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    hidden = {
        path for path in there if any(path == out or path.startswith(f"{out}/") for out in left_out(base))
    }
    assert sorted(found) == sorted(there - hidden)


@pytest.mark.parametrize("prefix", [True, False])
def test_text_encoder_keys_may_lack_text_model(prefix: bool, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "sdxl")
    specs = blueprint("sdxl", 16).component("text_encoder", text_model_prefix=prefix)
    write_holes(folder / "text_encoder" / "model.safetensors", shapes_of(specs))
    assert any(spec.key.startswith("text_model.") for spec in specs) == prefix
    assert reached(open_base(folder)) == {"unet": 794, "text_encoder": 72, "text_encoder_2": 193}


def test_a_variant_is_taken_if_asked_for_or_if_it_is_the_only_one(tmp_path: Path) -> None:
    fp16 = {component: f"{stem}.fp16.safetensors" for component, stem in STEMS.items()}
    folder = write_folder(tmp_path / "model", "sdxl", **fp16)
    expected = [f"{component}/{name}" for component, name in fp16.items()]
    assert names(open_base(folder)) == expected
    assert names(open_base(folder, "fp16")) == expected
    with pytest.raises(CheckpointError, match="no 'bf16' variant") as caught:
        open_base(folder, "bf16")
    assert caught.value.found == "fp16"


def test_of_two_variants_the_plain_one_is_taken_unless_asked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    for component in ("unet", "text_encoder"):
        shapes = shapes_of(blueprint("sd15", 16).component(component))
        write_holes(folder / component / f"{STEMS[component]}.fp16.safetensors", shapes)
    plain, fp16 = open_base(folder), open_base(folder, "fp16")
    assert names(plain) == [f"{c}/{STEMS[c]}.safetensors" for c in ("unet", "text_encoder")]
    assert names(fp16) == [f"{c}/{STEMS[c]}.fp16.safetensors" for c in ("unet", "text_encoder")]
    assert set(left_out(plain)) == set(names(fp16))
    assert set(left_out(fp16)) == set(names(plain))


def test_components_take_the_variant_that_they_have_in_common(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", unet="diffusion_pytorch_model.fp16.safetensors")
    mixed = open_base(folder)
    assert [Path(name).name for name in names(mixed)] == [
        "diffusion_pytorch_model.fp16.safetensors",
        "model.safetensors",
    ]
    shapes = shapes_of(blueprint("sd15", 16).component("text_encoder"))
    write_holes(folder / "text_encoder" / "model.fp16.safetensors", shapes)
    assert all(name.endswith(".fp16.safetensors") for name in names(open_base(folder)))


def test_several_variants_without_a_plain_one_need_a_choice(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", unet="diffusion_pytorch_model.fp16.safetensors")
    shapes = shapes_of(blueprint("sd15", 16).component("unet"))
    write_holes(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors", shapes)
    with pytest.raises(CheckpointError, match="several variants") as caught:
        open_base(folder)
    assert caught.value.found == "fp16, non_ema"


def test_a_unet_folder_alone(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "sdxl")
    base = open_base(folder / "unet")
    assert (base.layout, base.architecture) == ("diffusers-folder", "sdxl")
    assert names(base) == ["diffusion_pytorch_model.safetensors"]
    assert companions(base) == {"config.json"}
    assert reached(base) == {"unet": 794}


def test_a_folder_without_model_index(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "sdxl")
    (folder / "model_index.json").unlink()
    assert reached(open_base(folder)) == {"unet": 794, "text_encoder": 72, "text_encoder_2": 193}


def test_a_component_that_the_index_sets_to_null_stays_behind(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    put(folder / "model_index.json", json.dumps(index | {"text_encoder": [None, None]}))
    base = open_base(folder)
    assert reached(base) == {"unet": 282}
    assert left_out(base) == {"text_encoder": "unchanged weights that model_index.json does not name"}


def test_an_ema_unet_beside_the_unet_stays_behind(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    put(folder / "unet_ema" / "diffusion_pytorch_model.safetensors")
    assert left_out(open_base(folder)) == {
        "unet_ema": "unchanged weights that model_index.json does not name"
    }


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_a_component_that_the_index_names_must_be_there(component: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    for path in (folder / component).iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="there are no weights"):
        open_base(folder)
    (folder / component).rmdir()
    with pytest.raises(CheckpointError, match=f"the folder of the {component} is missing"):
        open_base(folder)


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
@pytest.mark.parametrize(
    "pickle", ["diffusion_pytorch_model.bin", "pytorch_model.bin", "model.ckpt", "model.pt"]
)
def test_weights_as_pickles_alone_are_refused(component: str, pickle: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", skip=[component])
    put(folder / component / pickle)
    with pytest.raises(CheckpointError, match="pickles, which are never opened") as caught:
        open_base(folder)
    assert caught.value.found == pickle


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"_class_name": "AudioPipeline", "vocoder": ["transformers", "UnivNetModel"]}', "AudioPipe"),
        ('{"unet": [null, null]}', "which has no UNet"),
        ('{"unet": "somewhere/else"}', "which has no UNet"),
    ],
)
def test_a_model_index_that_names_no_unet_is_refused(index: str, reason: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    put(folder / "model_index.json", index)
    with pytest.raises(CheckpointError, match=reason):
        open_base(folder)


def with_t5(folder: Path) -> Path:
    write_folder(folder, skip=["text_encoder"])
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "T5EncoderModel"]
    put(folder / "model_index.json", json.dumps(index))
    return folder


def test_an_encoder_of_another_kind_is_reached_by_its_own_names(tmp_path: Path) -> None:
    folder = with_t5(tmp_path / "model")
    layer = "encoder.block.0.layer.0.SelfAttention"
    shapes = {f"{layer}.q.weight": (4, 4), f"{layer}.relative_attention_bias.weight": (8, 2)}
    write_holes(folder / "text_encoder" / "model.safetensors", shapes | {"shared.weight": (9, 4)})
    base = open_base(folder)
    assert reached(base) == {"unet": 282, "text_encoder": 1}
    assert ModuleName("text_encoder", f"{layer}.q") in base.files[1].targets


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.fp16.bin", "openvino_model.xml"])
def test_an_encoder_of_another_kind_comes_along_if_it_is_not_stored_in_safetensors(
    name: str, tmp_path: Path
) -> None:
    folder = with_t5(tmp_path / "model")
    put(folder / "text_encoder" / name, "weights")
    base = open_base(folder)
    assert reached(base) == {"unet": 282}
    assert f"text_encoder/{name}" in companions(base)


def test_folders_that_are_no_model_say_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model of diffusers"):
        open_base(tmp_path)
    put(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError) as caught:
        open_base(tmp_path)
    assert caught.value.hint == "give one of its files: a.safetensors"
    (tmp_path / "snapshots").mkdir()
    with pytest.raises(CheckpointError) as caught:
        open_base(tmp_path)
    assert "snapshots/" in str(caught.value.hint)


def test_an_adapter_folder_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "adapter_config.json", "{}")
    with pytest.raises(CheckpointError, match="this is an adapter"):
        open_base(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    path = folder / "text_encoder" / "model.safetensors"
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(FileFormatError, match="past the end"):
        open_base(folder)


# links ------------------------------------------------------------------------------------------------


def as_cache(folder: Path, cache: Path) -> Path:
    """Lay the folder out as the Hugging Face cache does: each file a link to a blob."""
    blobs, snapshot = cache / "models--a--b" / "blobs", cache / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in folder.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / f"{number:064x}")
        link.symlink_to(os.path.relpath(blobs / f"{number:064x}", link.parent))
    return snapshot


@pytest.mark.parametrize("sharded", [False, True])
def test_a_download_in_the_hugging_face_cache(sharded: bool, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "sdxl", skip=["unet"] if sharded else [])
    if sharded:
        write_shards(folder / "unet", shapes_of(blueprint("sdxl", 16).component("unet")))
    plain = open_base(folder)
    base = open_base(as_cache(folder, tmp_path / "hub"))
    assert names(base) == names(plain)
    assert base.companions == plain.companions
    assert reached(base) == reached(plain)


@pytest.mark.parametrize("store", ["models--a--b/other", "other/blobs", "models--a--b/blobs/deeper"])
def test_only_blobs_of_a_hugging_face_cache_are_trusted(store: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    target = put(tmp_path / store / "0123")
    (folder / "notes.txt").symlink_to(target)
    with pytest.raises(CheckpointError, match="leads out of it"):
        open_base(folder)


def test_an_index_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "model_index.json").rename(tmp_path / "model_index.json")
    (folder / "model_index.json").symlink_to(tmp_path / "model_index.json")
    with pytest.raises(CheckpointError, match="leads out of it"):
        open_base(folder)


def test_what_is_gone_is_said_to_be_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="leads nowhere") as caught:
        check_regular(tmp_path / "gone")
    assert caught.value.found == "nothing"
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(CheckpointError, match="leads nowhere") as caught:
        check_regular(tmp_path / "link")
    assert caught.value.found == "a link to gone"


def test_a_blob_that_is_missing_is_an_incomplete_download(tmp_path: Path) -> None:
    snapshot = as_cache(write_folder(tmp_path / "model"), tmp_path / "hub")
    for relative in ("unet/diffusion_pytorch_model.safetensors", "vae/config.json"):
        link = snapshot / relative
        target = link.resolve()
        target.rename(tmp_path / "away")
        with pytest.raises(CheckpointError, match="a link leads nowhere") as caught:
            open_base(snapshot)
        assert caught.value.where == str(link)
        (tmp_path / "away").rename(target)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_to_weights_elsewhere_is_refused(component: str, kind: str, tmp_path: Path) -> None:
    """One rule for all that would come along: weights of a stranger's choice are private files, too."""
    folder = write_folder(tmp_path / "model")
    (path,) = (folder / component).glob("*.safetensors")
    path = path if kind == "file" else path.parent
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="leads out of it") as caught:
        open_base(folder)
    assert str(tmp_path / "elsewhere") in str(caught.value.found)


@pytest.mark.parametrize("where", ["notes.txt", "vae/notes.txt", "unet/notes.txt", "scheduler"])
def test_a_link_that_would_bring_a_strange_file_along_is_refused(where: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    secret = put(tmp_path / "private" / "id_rsa")
    if where == "scheduler":
        (folder / where / "scheduler_config.json").unlink()
        (folder / where).rmdir()
        (folder / where).symlink_to(secret.parent)
    else:
        (folder / where).symlink_to(secret)
    with pytest.raises(CheckpointError, match="leads out of it") as caught:
        open_base(folder)
    assert str(secret.resolve()) in str(caught.value.found)


def test_links_within_the_folder_come_along(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "scheduler" / "copy.json").symlink_to("../unet/config.json")
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        assert "scheduler/copy.json" in companions(open_base(path))


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "vae" / "again").symlink_to(folder / "vae")
    with pytest.raises(CheckpointError, match="the same folder twice"):
        open_base(folder)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / "vae" / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="leads nowhere"):
        open_base(folder)


def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "model")
    read = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "vae":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UnreadableError, match="this folder may not be read") as caught:
        open_base(folder)
    assert caught.value.where == str(folder / "vae")


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    os.mkfifo(folder / "vae" / "pipe")
    assert left_out(open_base(folder)) == {"vae/pipe": "not a regular file"}
    os.mkfifo(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_base(folder)


def test_a_text_encoder_under_unknown_names_is_reported(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", skip=["text_encoder"])
    shapes = shapes_of(blueprint("sd15", 16).component("text_encoder"))
    path = folder / "text_encoder" / "model.safetensors"
    write_holes(path, {f"clip.{key}": shape for key, shape in shapes.items()})
    base = open_base(folder)
    assert reached(base) == {"unet": 282}
    (warning,) = base.warnings
    assert "look like a text encoder's" in warning
