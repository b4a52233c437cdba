"""Models other than Stable Diffusion on the command line: inspected, planned, baked, compared, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import model_zoo as zoo
import pytest
from safetensors.torch import save_file

from paramerge.cli.main import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("others")
    for name in ("flux", "llama"):
        model = zoo.random_model(name)
        model.save_pretrained(folder / name, max_shard_size="15KB")
        for seed in (1, 2):
            zoo.with_lora(model, name, seed).save_pretrained(folder / f"{name}-lora-{seed}")
    return folder


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def answer(capsys: Capture, *arguments: object) -> Any:
    assert call(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "component", "layers"), [("flux", "transformer", 50), ("llama", "model", 15)]
)
def test_inspect_names_the_model(
    name: str, component: str, layers: int, files: Path, capsys: Capture
) -> None:
    facts = answer(capsys, "inspect", files / name)
    assert (facts["architecture"], facts["layout"]) == (name, "model-folder")
    assert facts["components"][component]["layers"] == layers
    assert len(facts["files"]) > 1
    assert call("inspect", files / name) == 0
    text = capsys.readouterr().out
    assert f"{name}: checkpoint, model-folder, {name}" in text


def test_inspect_counts_the_layers_of_a_stack_once(tmp_path: Path, capsys: Capture) -> None:
    from checkpoint_files import write_holes
    from flux_shapes import single_file_shapes

    path = write_holes(tmp_path / "flux.safetensors", single_file_shapes(1, 1), "BF16")
    facts = answer(capsys, "inspect", path)
    # as in diffusers: 10 outside the blocks, 2 * (3 + 1 + 2 + 1) in the double block, 4 + 2 in the single one
    assert facts["components"]["transformer"]["layers"] == 10 + 14 + 6
    assert facts["architecture"] == "flux"


def test_inspect_tells_an_unknown_model_by_its_layers(tmp_path: Path, capsys: Capture) -> None:
    import torch

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"_class_name": "SomeTransformerModel"}')
    tensors = {f"stage.{i}.mix.weight": torch.zeros(4, 4) for i in range(3)}
    save_file(
        tensors | {"norm.weight": torch.ones(4)}, tmp_path / "m" / "diffusion_pytorch_model.safetensors"
    )
    assert answer(capsys, "inspect", tmp_path / "m")["architecture"] == "SomeTransformerModel"
    (tmp_path / "m" / "config.json").write_text('{"_class_name": "Transformer"}')
    assert call("inspect", tmp_path / "m") == 0
    assert "Transformer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "reminds"), [("flux", "a diffusion transformer|FLUX"), ("llama", "a language model")]
)
def test_inspect_says_what_an_adapter_reminds_of(
    name: str, reminds: str, files: Path, capsys: Capture
) -> None:
    import re

    facts = answer(capsys, "inspect", files / f"{name}-lora-1")
    told = name == "flux"  # by its layers; other names only resemble a model's
    assert facts["architecture"] == ("flux" if told else None)
    assert re.search(reminds, facts["looks_like"])
    assert call("inspect", files / f"{name}-lora-1") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "flux" in text if told else re.search(f"by its names for ({reminds})", text)


@pytest.mark.parametrize("name", ["flux", "llama"])
def test_bake_and_compare(name: str, files: Path, tmp_path: Path, capsys: Capture) -> None:
    adapters = [files / f"{name}-lora-{seed}" for seed in (1, 2)]
    options = ("--base", files / name, "--lora", adapters[0], "--lora", f"{adapters[1]}@0.5")
    plan = answer(capsys, "bake", *options, "-o", tmp_path / "out", "--dry-run")["plan"]
    assert (plan["architecture"], plan["layout"]) == (name, "model-folder")
    assert not (tmp_path / "out").exists()
    report = answer(capsys, "bake", *options, "-o", tmp_path / "out")["report"]
    assert len(report["layers"]) == plan["steps"][0]["layers"]
    assert (tmp_path / "out" / "paramerge_recipe.json").is_file()
    assert answer(capsys, "inspect", tmp_path / "out")["recipe"] is not None
    pages = tmp_path / "page.html"
    for base in ((), ("--base", files / name)):
        (pair,) = answer(capsys, "compare", *adapters, *base, "--report", pages, "--overwrite")["pairs"]
        assert len(pair["layers"]) == len(report["layers"])
    assert call("compare", *adapters) == 0
    page = pages.read_text()
    assert "transformer blocks 0" in page if name == "flux" else "layers 1" in page


def test_a_model_alone_draws_no_pictures(files: Path, capsys: Capture) -> None:
    assert call("generate", "--model", files / "flux", "--prompt", "a dog") == 3
    assert "this is a model alone" in capsys.readouterr().err
