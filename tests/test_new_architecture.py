"""An architecture that paramerge does not know, defined in one place: every verb takes it.

It is the one of ``docs/extending.md``, whose code is run as it stands there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import toy_architecture as toy
from numpy.typing import NDArray
from safetensors.numpy import load_file
from toy_packages import TOYDIT, WAYS, run

from paramerge.checkpoints.layout import open_base
from paramerge.errors import PluginError
from paramerge.files.header import read_header
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter, write_para
from paramerge.models import registry
from paramerge.models.names import ModuleName
from paramerge.models.record import ArchitectureRecord

Arrays = Mapping[str, NDArray[np.float32]]
LAYOUTS = ("file", "ComfyUI's file", "folder")
QKV = toy.STACKS["toy_blocks.1.attn.qkv"]
CHANGED = (*QKV, "stages.0.ff.net.2", "norm_out.linear", "x_embedder")


@pytest.fixture(params=WAYS)
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """The architecture, as an installed package adds it and as a call does."""
    with TOYDIT.known(tmp_path / "site-packages", request.param):
        yield


def base(tmp_path: Path, layout: str) -> Path:
    if layout == "folder":
        return toy.write_folder(tmp_path / "base")
    prefix = "" if layout == "file" else "model.diffusion_model."
    return toy.write_file(tmp_path / "base.safetensors", prefix)


def baked(path: Path) -> dict[str, NDArray[np.float32]]:
    """The layers of an output by its own names, whatever the prefix."""
    file = path / "transformer" / "diffusion_pytorch_model.safetensors" if path.is_dir() else path
    return {
        key.removeprefix("model.diffusion_model.").removesuffix(".weight"): value
        for key, value in load_file(file).items()
    }


def changes() -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """Up and down factors of some layers, by diffusers' names; those of a stack share their down factor."""
    rng = np.random.default_rng(1)
    up = {name: rng.normal(size=(toy.SHAPES[name][0], 3)).astype(np.float32) for name in CHANGED}
    down = {name: rng.normal(size=(3, toy.SHAPES[name][1])).astype(np.float32) for name in CHANGED}
    return up, down | dict.fromkeys(QKV, down[QKV[0]])


def lora(path: Path, naming: str) -> Path:
    """The same LoRA under one of the names that its layers have."""
    whose, spelled = naming.split(", ")
    up, down = changes()
    if whose == "single file's":
        unchanged = {name: np.zeros((shape[0], 3), np.float32) for name, shape in toy.SHAPES.items()}
        stacked = toy.as_single_file(unchanged | up)
        firsts = {stack: parts[0] for stack, parts in toy.STACKS.items()}
        of = {**toy.NAMES, **firsts, toy.SWAPPED[0]: toy.SWAPPED[1]}
        up = {name: stacked[name] for name, diffusers in of.items() if diffusers in CHANGED}
        down = {name: down[of[name]] for name in up}
    tensors = {}
    for name in up:
        if spelled == "kohya":
            stem, ends = f"lora_unet_{name.replace('.', '_')}", ("lora_up.weight", "lora_down.weight")
        else:
            stem, ends = f"{spelled}.{name}", ("lora_B.weight", "lora_A.weight")
        tensors |= {f"{stem}.{ends[0]}": up[name], f"{stem}.{ends[1]}": down[name]}
    write_safetensors(path, tensors, {})
    return path


def expected(strengths: Mapping[str, float] = MappingProxyType({})) -> dict[str, NDArray[np.float32]]:
    """The weights after the bake, each layer's strength 1 where none is given."""
    (up, down), after = changes(), toy.weights()
    for name in CHANGED:
        change = strengths.get(name, 1.0) * (up[name].astype(np.float64) @ down[name])
        after[name] = (after[name] + change).astype(np.float32)
    return after


def check(path: Path, layers: Arrays) -> None:
    """That an output holds these layers (by diffusers' names), as its layout names them."""
    found = baked(path)
    wanted = layers if path.is_dir() else toy.as_single_file(layers)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # factors and bases are stored in float32, and the sums of 16 products with them in float64
        bound = 16 * 2**-24 * float(np.abs(value).max())
        np.testing.assert_allclose(found[name], value, rtol=0, atol=bound, err_msg=name)


NAMINGS = [
    f"{whose}, {spelled}"
    for whose in ("diffusers'", "single file's")
    for spelled in ("transformer", "diffusion_model", "kohya")
]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bake_takes_every_naming_into_every_layout(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = base(tmp_path, layout)
    opened = open_base(model)
    assert opened.architecture == "toydit" and opened.true_dimensions
    for number, naming in enumerate(NAMINGS):
        adapter = lora(tmp_path / f"{number}.safetensors", naming)
        assert open_adapter(adapter).architecture == "toydit", naming
        output = tmp_path / f"out-{number}{'' if model.is_dir() else '.safetensors'}"
        code, text = run(capsys, "bake", "--base", model, "--lora", adapter, "-o", output)
        assert code == 0, (naming, text)
        check(output, expected())
    if not model.is_dir():
        metadata = read_header(output).metadata
        assert metadata["modelspec.architecture"] == "toy-dit-v1"
        assert metadata["modelspec.resolution"] == "256x256"


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("layout", ["file", "folder"])
def test_the_other_verbs(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = base(tmp_path, layout)
    kohya = lora(tmp_path / "kohya.safetensors", "single file's, kohya")
    code, text = run(capsys, "inspect", model, "--json")
    assert code == 0 and json.loads(text)["architecture"] == "toydit"
    code, text = run(capsys, "inspect", kohya, "--json")
    assert code == 0 and json.loads(text)["architecture"] == "toydit"

    output = tmp_path / ("blocks" if model.is_dir() else "blocks.safetensors")
    weighted = f"{kohya}@1:S01=0.5,BASE=0"
    code, text = run(capsys, "bake", "--base", model, "--lora", weighted, "-o", output)
    assert code == 0, text
    half = dict.fromkeys(QKV, 0.5)
    check(output, expected({**half, "norm_out.linear": 0.0, "x_embedder": 0.0}))

    converted = tmp_path / "diffusers.safetensors"
    code, text = run(capsys, "convert", kohya, "--to", "diffusers", "--base", model, "-o", converted)
    assert code == 0, text
    again = tmp_path / ("again" if model.is_dir() else "again.safetensors")
    code, text = run(capsys, "bake", "--base", model, "--lora", converted, "-o", again)
    assert code == 0, text
    check(again, expected())
    code, text = run(capsys, "compare", kohya, converted, "--base", model)
    assert code == 0, text


@pytest.mark.usefixtures("known")
def test_a_para_for_it_says_so_and_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = base(tmp_path, "file")
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(toy.WIDTH, 2)))[0]
    layer = ModuleName("transformer", "stages.0.attn.to_q")
    para = tmp_path / "para.safetensors"
    write_para(para, {layer: basis}, architecture="toydit", dtype="F32")
    assert read_header(para).metadata["modelspec.architecture"] == "toy-dit-v1/para"
    output = tmp_path / "out.safetensors"
    assert run(capsys, "bake", "--base", model, "--para", para, "-o", output)[0] == 0
    removed = toy.weights()
    W = removed[layer.path].astype(np.float64)
    removed[layer.path] = (W - basis @ (basis.T @ W)).astype(np.float32)
    check(output, removed)
    flux = tmp_path / "flux.safetensors"
    write_para(
        flux, {ModuleName("transformer", "single_transformer_blocks.0.proj_mlp"): basis}, architecture="flux"
    )
    code, text = run(capsys, "bake", "--base", model, "--para", flux, "-o", output)
    assert code == 4 and "this adapter was made for flux, the base is toydit" in text


RECORD = "from paramerge.models.record import ArchitectureRecord\nRECORD = ArchitectureRecord"
BROKEN = {
    "RECORD = 5": "this is no architecture",
    "import not_there": "cannot be loaded",
    f"{RECORD}('flux')": "an architecture flux already",
    f"{RECORD}('Toy DiT')": "small letters",
    f"{RECORD}('t', patterns=('(',))": "expression",
    f"{RECORD}('t', component='x')": "component",
    f"{RECORD}('t', family='x')": "family",
}


@pytest.mark.parametrize("code", BROKEN)
def test_a_package_that_adds_none_is_named(code: str, tmp_path: Path) -> None:
    with TOYDIT.installed(tmp_path, code), pytest.raises(PluginError, match=BROKEN[code]) as caught:
        registry.records()
    assert "toydit" in str(caught.value) and caught.value.exit_code == 8
    assert registry.record_of("flux").key_map is not None


def test_what_is_registered_is_checked() -> None:
    with pytest.raises(PluginError, match="already"):
        registry.register(ArchitectureRecord("sdxl"))


def test_every_name_that_is_written_is_read_as_the_same_architecture(tmp_path: Path) -> None:
    """Native files, and what kohya's scripts and ModelSpec have, one by one."""
    from paramerge.formats.kohya import kohya_metadata
    from paramerge.formats.provenance import guess_architecture

    for record in registry.records():
        for name in (record.name, f"{record.name}-7-channels") if record.inputs else (record.name,):
            written = kohya_metadata([(2, 1.0)], name, ())
            for dropped in ("ss_base_model_version", "modelspec.architecture", "ss_v2"):
                rest = {key: value for key, value in written.items() if key != dropped}
                if "modelspec.architecture" in rest or "ss_base_model_version" in rest:
                    found = guess_architecture({}, rest)
                    assert found is not None and registry.family_of(found) == record.plain, (name, dropped)
