"""``paramerge inspect``: what it says of adapters, other families, checkpoints, bakes and strangers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_files import REAL_LOKRS, REAL_LORAS, Array, factors, kohya_layer, product_norm, save
from blueprints import sd15, sdxl
from family_cases import CASES
from random_checkpoint import write_random_checkpoint
from safetensors.numpy import load_file

from paramerge.adapters import LoraModule
from paramerge.cli.main import main
from paramerge.cli.render import Lines
from paramerge.errors import ParamergeError
from paramerge.files.recipe_text import RECIPE_KEY
from paramerge.formats import open_adapter, write_para
from paramerge.inspect.training_notes import training_notes
from paramerge.models.names import ModuleName

TO_Q = ModuleName("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of this width; what a pipe gets is in ``test_help.py``."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(Lines, "is_terminal", True)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: Capture, *arguments: object, code: int = 0) -> str:
    """The output of ``paramerge inspect`` with these arguments, its exit code checked."""
    with pytest.raises(SystemExit) as exit_:
        main(["inspect", *map(str, arguments)])
    captured = capsys.readouterr()
    assert exit_.value.code == code, captured.err
    return captured.out if code == 0 else captured.err


def as_json(capsys: Capture, *arguments: object) -> dict[str, Any]:
    content = json.loads(run(capsys, *arguments, "--json"))
    assert isinstance(content, dict)
    return content


def joined(text: str) -> str:
    """The text without the line breaks and blanks that fitting it to a width put in."""
    return "".join(text.split())


@pytest.fixture(scope="module")
def small_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "small.safetensors"
    write_random_checkpoint(sd15(16, vocabulary=64), path, seed=0)
    return path


@pytest.mark.parametrize("name", REAL_LORAS)
def test_real_loras(name: str, shared_dir: Path, capsys: Capture) -> None:
    path = shared_dir / "fixtures" / "adapters" / name
    adapter = open_adapter(path)
    content = as_json(capsys, path)
    changes = {}
    for layer, module in adapter.modules.items():
        assert isinstance(module, LoraModule)
        changes[str(layer)] = product_norm(factors(module))
    found = {layer["layer"]: layer["norm"] for layer in content["layers"]}
    assert found == pytest.approx(changes, rel=1e-7)
    assert (content["what"], content["supported"], content["family"]) == ("adapter", True, "lora")
    assert content["dialect"] == adapter.dialect
    assert content["metadata"] == dict(adapter.metadata)
    assert sum(sum(kinds.values()) for kinds in content["components"].values()) == len(adapter.modules)
    text = run(capsys, path)
    largest = max(changes, key=changes.__getitem__)
    assert largest in joined(text)
    assert f"{changes[largest]:.4g}" in text
    assert f"{min(changes.values()):.3g} least, {np.median(list(changes.values())):.3g} median" in text


@pytest.mark.parametrize("name", [*REAL_LORAS, *REAL_LOKRS])
@pytest.mark.parametrize("options", [[], ["--layers"], ["--metadata"]])
def test_eighty_columns_hold_everything(
    name: str, options: list[str], shared_dir: Path, capsys: Capture
) -> None:
    path = shared_dir / "fixtures" / "adapters" / name
    text = run(capsys, path, *options)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    content = as_json(capsys, path)
    if options == ["--layers"] and content["supported"]:
        assert all(layer["layer"] in joined(text) for layer in content["layers"])
    if options == ["--metadata"]:
        assert all(joined(value) in joined(text) for value in content["metadata"].values() if len(value) < 40)


@pytest.mark.parametrize("name", REAL_LOKRS)
def test_a_lokr_is_described(name: str, shared_dir: Path, capsys: Capture) -> None:
    path = shared_dir / "fixtures" / "adapters" / name
    content = as_json(capsys, path)
    assert (content["supported"], content["family"], content["families"]) == (True, "lokr", {"LoKr": 350})
    assert {part: sum(kinds.values()) for part, kinds in content["components"].items()} == {
        "unet": 278,
        "text_encoder": 72,
    }
    rank = 16 if "_16" in name else 8
    assert {(layer["rank"], layer["alpha"], layer["scale"]) for layer in content["layers"]} == {
        (rank, rank, 1)
    }
    tensors = load_file(path)
    layer = next(layer for layer in content["layers"] if layer["layer"].endswith("mid_block.resnets.0.conv1"))
    stem = "lora_unet_mid_block_resnets_0_conv1.lokr_"
    w1, w2 = (tensors[f"{stem}w{i}_a"].astype(float) @ tensors[f"{stem}w{i}_b"].astype(float) for i in (1, 2))
    assert layer["norm"] == pytest.approx(np.linalg.norm(np.kron(w1, w2)), rel=1e-9)
    assert layer["form"] == (
        f"{w1.shape[0]} x {w1.shape[1]} of rank {rank} (x) {w2.shape[0]} x {w2.shape[1]} of rank {rank}"
    )
    assert content["training"]["comment"] == r"trigger word is smart falcon \(umamusume\)"
    text = run(capsys, path)
    assert f"forms rank {rank} (x) rank {rank}" in joined_words(text)
    assert "smart falcon" in text
    assert "self-attention" in text


def test_a_family_that_cannot_be_baked_is_described(tmp_path: Path, capsys: Capture) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    path = save(tmp_path / "t.safetensors", {f"{stem}.lambda_layer": np.ones((1, 4), np.float32)})
    content = as_json(capsys, path)
    assert (content["supported"], content["families"]) == (False, {"T-LoRA": 1})
    assert content["components"] == {"unet": {"transformer in/out": 1}}
    assert "T-LoRA cannot be baked by this version" in run(capsys, path)


def test_the_users_word_on_a_lokr(tmp_path: Path, capsys: Capture) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{stem}.lokr_w{i}": np.ones((2, 2), np.float32) for i in (1, 2)}
    path = save(tmp_path / "k.safetensors", {**tensors, f"{stem}.alpha": np.float32(1).reshape(())})
    assert as_json(capsys, path)["layers"][0]["scale"] == 1
    assert "1 as LyCORIS trains it" in joined_words(run(capsys, path))
    assert as_json(capsys, path, "--lokr-scale", "0.25")["layers"][0]["norm"] == 1.0
    assert "given by the user" in joined_words(run(capsys, path, "--lokr-scale", "0.25"))


def test_a_family_that_depends_on_the_weight(tmp_path: Path, capsys: Capture) -> None:
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    path = save(tmp_path / "o.safetensors", {f"{stem}.oft_blocks": np.zeros((4, 2, 2), np.float32)})
    (layer,) = as_json(capsys, path)["layers"]
    assert (layer["norm"], layer["shape"], layer["form"]) == (None, [8], "4 blocks on outputs")
    assert "1 layer acts on the weight as it is at its step" in joined_words(run(capsys, path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dora-out", ["DoRA, kohya", "ranks 3", "forms LoRA by rows", "2 layers act on the weight"]),
        ("ia3-in", ["numbers 32 (once), 48 (once)", "forms on inputs"]),
        ("oft-peft", ["block sizes 4", "blocks on inputs, 5 terms of the series"]),
        ("svdiff", ["singular values 32 (once), 48 (once)"]),
    ],
)
def test_words_of_families(name: str, words: list[str], tmp_path: Path, capsys: Capture) -> None:
    """What each counts under its own word; without norms nothing is called the largest."""
    shapes = {"unet.conv_in": (32, 32), "unet.mid_block.attentions.0.proj_in": (64, 48)}
    path, _ = next(case for case in CASES if case.name == name).write(tmp_path / "a", shapes)
    text = joined_words(run(capsys, path))
    assert [word for word in words if word not in text] == []
    assert "largest layers" not in text
    assert "mid_block.attentions.0.proj_in" in run(capsys, path, "--layers")


def test_several_families_in_one_file(tmp_path: Path, capsys: Capture) -> None:
    """What has no norm, scale or rank shows as a dash, behind what has."""
    tensors: dict[str, Array] = {}
    for place, name in enumerate(("lora", "full", "ia3-in")):
        here = {f"unet.mid_block.attentions.0.transformer_blocks.{place}.attn1.to_q": (32, 32)}
        path, _ = next(case for case in CASES if case.name == name).write(tmp_path / name, here)
        tensors |= load_file(path)
    save(tmp_path / "all.safetensors", tensors)
    text = joined_words(run(capsys, tmp_path / "all.safetensors"))
    assert "LoRA, full difference, IA3" in text
    assert "ranks 3 numbers 32" in text
    assert "- 32 - unet.mid_block.attentions.0.transformer_blocks.2.attn1.to_" in text  # folded at 80


def test_a_para(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "p.safetensors"
    B = np.random.default_rng(0).standard_normal((16, 3))
    B[:, 2] = B[:, 0]  # a column that adds no direction
    write_para(path, {TO_Q: B}, architecture="sdxl", base_sha256="a" * 64, gamma=0.025, dtype="F32")
    content = as_json(capsys, path)
    assert (content["family"], content["dialect"], content["architecture"]) == ("para", "paramerge", "sdxl")
    assert content["base_hashes"] == ["a" * 64]
    (layer,) = content["layers"]
    assert (layer["layer"], layer["rank"], layer["directions"], layer["shape"]) == (str(TO_Q), 3, 2, [16])
    text = run(capsys, path, "--layers")
    assert "2 in 1 layers (1 columns add none)" in text
    assert str(TO_Q) in joined(text)
    assert "a" * 64 in joined(text)
    assert "0.025" in text


def test_alphas_scales_and_what_changes_nothing(tmp_path: Path, capsys: Capture) -> None:
    up, down = np.ones((4, 2), np.float16), np.ones((2, 6), np.float16)
    tensors: dict[str, Array] = {
        **kohya_layer("lora_unet_mid_block_attentions_0_proj_in", up, down, 1.0),
        **kohya_layer("lora_te_text_model_encoder_layers_0_mlp_fc1", up, down),
        "lora_te_no_such_layer.alpha": np.array(1.0, np.float16),
    }
    path = save(tmp_path / "l.safetensors", tensors)
    content = as_json(capsys, path)
    assert [(layer["alpha"], layer["scale"], layer["norm"]) for layer in content["layers"]] == [
        (1.0, 0.5, pytest.approx(0.5 * 2 * 24**0.5)),
        (None, 1.0, pytest.approx(2 * 24**0.5)),
    ]
    assert list(content["leftovers"]) == ["lora_te_no_such_layer.alpha"]
    text = run(capsys, path)
    assert "1 key is not applied" in text
    assert "lora_te_no_such_layer.alpha" in text
    assert "= rank (once)" in text


def test_norms_that_are_not_finite(tmp_path: Path, capsys: Capture) -> None:
    up, down = np.full((4, 2), np.inf, np.float32), np.ones((2, 6), np.float32)
    path = save(tmp_path / "l.safetensors", kohya_layer("lora_unet_mid_block_attentions_0_proj_in", up, down))
    assert as_json(capsys, path)["layers"][0]["norm"] is None
    assert "1 layers hold NaN or Inf" in joined_words(run(capsys, path))


def joined_words(text: str) -> str:
    return " ".join(text.split())


# checkpoints


def test_a_single_file_checkpoint(small_sd15: Path, capsys: Capture) -> None:
    content = as_json(capsys, small_sd15)
    assert (content["what"], content["layout"], content["architecture"]) == (
        "checkpoint",
        "single-file",
        "sd15",
    )
    assert {name: part["tensors"] for name, part in content["components"].items()} == {
        "unet": 686,
        "text_encoder": 197,
        "vae": 248,
        "other": 12,
    }
    assert (content["components"]["unet"]["layers"], content["recipe"]) == (282, None)
    text = run(capsys, small_sd15)
    assert "checkpoint, single-file, sd15" in joined_words(text)
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_diffusers_folder(tmp_path: Path, capsys: Capture) -> None:
    write_random_checkpoint(sdxl(32, vocabulary=64), tmp_path / "folder", seed=0, layout="diffusers-folder")
    content = as_json(capsys, tmp_path / "folder")
    assert (content["layout"], content["architecture"]) == ("diffusers-folder", "sdxl")
    assert content["components"]["unet"]["tensors"] == 1680
    assert {"unet", "text_encoder", "text_encoder_2"} <= content["components"].keys()
    assert "diffusers-folder" in run(capsys, tmp_path / "folder")


RECIPE = {
    "recipe": 1,
    "versions": {"paramerge": "0.1.0"},
    "base": {"layout": "single-file", "architecture": "sd15", "files": [{"name": "b", "sha256": "b" * 64}]},
    "steps": [{"kind": "para", "strength": 0.5, "layers": 7, "files": [{"sha256": "c" * 64, "bytes": 1}]}],
    "options": {"merge": "joint", "gamma": None},
    "base_recipe": {"steps": [{"kind": "lora", "strength": 2, "files": [{"name": "old.safetensors"}]}]},
}


@pytest.mark.parametrize(
    "recipe",
    [json.dumps(RECIPE), "{", "[]", "null", '{"steps": {}, "base": 1, "base_recipe": "x"}', '{"steps": [1]}'],
)
def test_a_bake_shows_its_recipe(recipe: str, small_sd15: Path, tmp_path: Path, capsys: Capture) -> None:
    from safetensors.numpy import load_file

    path = save(tmp_path / "baked.safetensors", load_file(small_sd15), {RECIPE_KEY: recipe})
    text = joined_words(run(capsys, path))
    assert "baked checkpoint" in text
    if recipe != json.dumps(RECIPE):
        return
    assert as_json(capsys, path)["recipe"] == RECIPE
    assert "para @ 0.5, 7 layers; name left out (SHA-256" in text
    assert "c" * 64 in joined(text)
    assert "recipe of its base" in text
    assert "lora @ 2, ? layers; old.safetensors" in text


def test_the_recipe_is_found_where_bake_puts_it() -> None:
    from paramerge.bake import recipe

    assert recipe.RECIPE_KEY == RECIPE_KEY


# neither


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"encoder.conv_in.weight": (2, 2), "decoder.conv_in.weight": (2, 2)}, "it is a VAE"),
        ({"control_model.input_blocks.0.0.weight": (2, 2)}, "ControlNet"),
        ({"emb_params": (1, 768)}, "textual inversion"),
        ({"something": (2,)}, "not a checkpoint that paramerge knows"),
        ({}, "not a checkpoint that paramerge knows"),
    ],
)
def test_strangers_are_described(
    tensors: dict[str, tuple[int, ...]], named: str, tmp_path: Path, capsys: Capture
) -> None:
    content = {key: np.ones(shape, np.float32) for key, shape in tensors.items()}
    path = save(tmp_path / "f.safetensors", content)
    assert named in joined_words(run(capsys, path))
    assert as_json(capsys, path)["supported"] is False


@pytest.mark.parametrize("make", ["missing", "pickle", "truncated", "incomplete", "empty folder"])
def test_what_cannot_be_inspected_is_an_error(make: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "f.safetensors"
    if make == "pickle":
        path = tmp_path / "f.ckpt"
        path.write_bytes(b"\x80\x02")
    elif make == "truncated":
        save(path, {"a": np.ones(9, np.float32)})
        path.write_bytes(path.read_bytes()[:-1])
    elif make == "incomplete":
        save(path, {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": np.ones((2, 2), np.float32)})
    elif make == "empty folder":
        path.mkdir()
    code = 4 if make == "incomplete" else 3
    assert run(capsys, path, code=code).startswith("error: ")
    with pytest.raises(SystemExit):
        main(["inspect", str(path), "--json"])
    assert "what" in json.loads(capsys.readouterr().out)["error"]


def test_names_with_markup_are_printed_as_they_are(tmp_path: Path, capsys: Capture) -> None:
    up, down = np.ones((4, 2), np.float16), np.ones((2, 6), np.float16)
    tensors = {**kohya_layer("lora_unet_mid_block_attentions_0_proj_in", up, down), "[bold]odd[/bold]": up}
    path = save(tmp_path / "a [red]b.safetensors", tensors, {"ss_training_comment": "[/nothing] closes"})
    text = run(capsys, path, "--layers")
    assert "a [red]b.safetensors" in text
    assert "[bold]odd[/bold]" in text
    assert "[/nothing] closes" in text


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path, capsys: Capture) -> None:
    up, down = np.ones((4, 2), np.float16), np.ones((2, 6), np.float16)
    escape = "\x1b]0;title\x07"
    tensors = {**kohya_layer("lora_unet_mid_block_attentions_0_proj_in", up, down), f"odd{escape}": up}
    recipe = json.dumps({"base": {"layout": escape}, "steps": [{"kind": escape}]})
    metadata = {"ss_training_comment": f"a{escape}\rb", f"k{escape}": escape, RECIPE_KEY: recipe}
    path = save(tmp_path / "l.safetensors", tensors, metadata)
    for options in ([], ["--metadata", "--layers"]):
        text = run(capsys, path, *options)
        assert all(char.isprintable() or char == "\n" for char in text)
        assert r"\x1b]0;title\x07" in joined(text)


def test_torch_is_not_imported(small_sd15: Path, tmp_path: Path) -> None:
    para = tmp_path / "p.safetensors"
    write_para(para, {TO_Q: np.eye(8, 2)}, architecture="sd15")
    lora = save(
        tmp_path / "l.safetensors",
        kohya_layer(
            "lora_unet_mid_block_attentions_0_proj_in",
            np.ones((4, 2), np.float16),
            np.ones((2, 4), np.float16),
        ),
    )
    code = (
        "import sys\n"
        "from paramerge.cli.main import main\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        main(['inspect', path, '--layers'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0, path\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    arguments = [sys.executable, "-c", code, str(para), str(lora), str(small_sd15)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_notes_survive_any_text() -> None:
    hostile = {
        "ss_tag_frequency": "[1",
        "ss_dataset_dirs": '{"a": 1, "b": {"img_count": 3}}',
        "ss_training_finished_at": "1e300",
        "ss_output_name": "None",
        "modelspec.title": "",
    }
    assert training_notes(hostile) == [("folders", "a (images not counted), b (3 images)")]
    many = {"ss_tag_frequency": json.dumps({"d": {f"t{i:02}": i for i in range(15)}, "e": {"t00": 99}})}
    ((label, text),) = training_notes(many)
    assert (label, text[:15]) == ("tags", "t00 99, t14 14,")
    assert "and 3 more" in text


def test_the_error_tree_is_all_that_is_raised(tmp_path: Path) -> None:
    from paramerge.inspect.inspection import inspect_path

    with pytest.raises(ParamergeError):
        inspect_path(tmp_path / "none")


@pytest.mark.parametrize("option", [None, "--metadata", "--layers"])
def test_what_is_printed_is_bounded_whatever_the_file_holds(
    tmp_path: Path, capsys: Capture, option: str | None
) -> None:
    """Names and notes in a file may have 100 MB: a terminal gets the beginning and the end."""
    long, one = "k" * 10**6, np.ones(1, np.float32)
    notes = {"a": long, long: "b", **{f"n{i}": "" for i in range(3_000)}}
    for name, tensors in {
        "key": {long: one},
        "dots": {"k." * 10**6 + "lora_A.weight": one},
        "many": {f"t{i}": one for i in range(3_000)},
    }.items():
        path = tmp_path / f"{name}.safetensors"
        save(path, tensors, notes)
        shown = run(capsys, path, *([option] if option else []))
        assert len(shown) < (400_000 if option == "--metadata" else 10_000)
