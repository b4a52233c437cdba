"""What was converted, in the hands of PEFT and diffusers; a PaRa as a LoRA draws the baked picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import torch
from baking import load, lora_file, para_file, plan_of, random_bases, random_factors, shapes_of
from lora_oracles import small_unet
from lycoris_networks import lycoris_network, saved
from peft import PeftModel
from tiny_pipelines import sd_pipeline

from paramerge import shipped
from paramerge.apply.steps import BakeOptions, Step
from paramerge.bake.bake import bake
from paramerge.bake.plan import make_plan
from paramerge.checkpoints.layout import open_base
from paramerge.convert.convert import ConversionReport, convert
from paramerge.convert.deft import open_deft
from paramerge.convert.request import ConvertOptions
from paramerge.errors import AdapterError, FamilyError, UsageError
from paramerge.files.hashing import file_sha256
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.merge.request import Input


def run(*sources: Path, to: str, output: Path, base: Path | None = None, **options: Any) -> ConversionReport:
    adapters = [open_deft(s) if s.name.startswith("deft") else open_adapter(s) for s in sources]
    opened = None if base is None else open_base(base)
    return convert([Input(s) for s in sources], adapters, output, ConvertOptions(to, **options), opened)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_pipeline(tmp_path_factory.mktemp("sd"))[0]


@pytest.fixture(scope="module")
def files(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A LoRA and a PaRa on attention, feed-forward and convolutions of the UNet, and on the text encoder."""
    folder, shapes = tmp_path_factory.mktemp("files"), shapes_of(base)
    kinds = (".to_q", ".to_v", ".conv1", ".ff.net.2")
    # of a text encoder diffusers' reader of kohya files takes all layers or none
    layers = [
        layer for layer in shapes if layer.endswith(kinds) or ".self_attn." in layer or ".mlp." in layer
    ]
    assert {layer.partition(".")[0] for layer in layers} == {"unet", "text_encoder"}
    return {
        "lora": lora_file(folder / "l.safetensors", random_factors(shapes, layers, 3, size=0.3), 2.0, "F32"),
        "para": para_file(folder / "p.safetensors", random_bases(shapes, layers, 2), "sd15", "F32"),
    }


def pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    options = {"num_inference_steps": 3, "output_type": "latent", "height": 64, "width": 64}
    return np.asarray(pipe("a cat", generator=generator, **options).images)


def test_one_picture_from_every_format(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    run(files["lora"], to="diffusers", output=tmp_path / "d.safetensors")
    run(files["lora"], to="peft", output=tmp_path / "peft")
    run(tmp_path / "d.safetensors", to="kohya", output=tmp_path / "k.safetensors")
    plain = picture(pipeline(base))
    found = {}
    for name in ("d", "k"):
        pipe = pipeline(base)
        pipe.load_lora_weights(str(tmp_path / f"{name}.safetensors"))
        found[name] = picture(pipe)
    pipe = pipeline(base)
    pipe.unet = PeftModel.from_pretrained(pipe.unet, tmp_path / "peft/unet").merge_and_unload()
    wrapped = torch.nn.Module()
    wrapped.text_model = pipe.text_encoder  # where transformers 4 has it, whose names the file has
    PeftModel.from_pretrained(wrapped, tmp_path / "peft/text_encoder").merge_and_unload()
    found["peft"] = picture(pipe)
    bake(plan_of(base, Step("lora", files["lora"])), tmp_path / "baked")
    wanted = picture(pipeline(tmp_path / "baked"))
    assert distance(plain, wanted) > 0.05
    for name, image in found.items():
        assert distance(image, wanted) < 2e-4, name


def test_diffusers_takes_differing_ranks_from_the_metadata(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not from its guess, which before August 2026 gave layers of other ranks wrong scales."""
    shapes = shapes_of(base)
    layers = [layer for layer in shapes if ".self_attn." in layer or layer.endswith((".to_q", ".mlp.fc1"))]
    factors = random_factors(shapes, layers, 3, size=0.3)
    factors |= random_factors({k: shapes[k] for k in layers[::3]}, layers[::3], 5, size=0.3)
    lora = lora_file(tmp_path / "l.safetensors", factors, 2.0, "F32")
    run(lora, to="diffusers", output=tmp_path / "d.safetensors")
    bake(plan_of(base, Step("lora", lora)), tmp_path / "baked")
    monkeypatch.setattr("diffusers.utils.peft_utils.get_peft_kwargs", None)
    pipe = pipeline(base)
    pipe.load_lora_weights(str(tmp_path / "d.safetensors"))
    assert distance(picture(pipe), picture(pipeline(tmp_path / "baked"))) < 2e-4


@pytest.mark.parametrize("both", [False, True], ids=["para", "para-then-lora"])
def test_a_para_as_a_lora_draws_what_the_baked_model_draws(
    base: Path, files: dict[str, Path], tmp_path: Path, both: bool
) -> None:
    sources = [files["para"], files["lora"]][: 1 + both]
    output = tmp_path / "as-lora.safetensors"
    run(*sources, to="kohya", output=output, base=base, dtype="F32")
    steps = [Step("para", files["para"]), Step("lora", files["lora"])][: 1 + both]
    bake(plan_of(base, *steps), tmp_path / "baked")
    wanted, pipe = picture(pipeline(tmp_path / "baked")), pipeline(base)
    pipe.load_lora_weights(str(output))
    assert distance(picture(pipeline(base)), wanted) > 0.05
    assert distance(picture(pipe), wanted) < 2e-4
    bake(plan_of(base, Step("lora", output)), tmp_path / "again")  # convert, then bake
    for file in sorted((tmp_path / "baked").rglob("*.safetensors")):
        one, other = (
            load(file).tensors,
            load(tmp_path / "again" / file.relative_to(tmp_path / "baked")).tensors,
        )
        for key, value in one.items():
            assert np.linalg.norm(other[key].astype(float) - value) <= 1e-6 * np.linalg.norm(
                value.astype(float)
            )


def test_a_paras_lora_names_its_base_and_holds_minus_q(
    base: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    for to in ("diffusers", "peft"):
        output = tmp_path / (to if to == "peft" else f"{to}.safetensors")
        run(files["para"], to=to, output=output, base=base, dtype="F32")
    run(files["para"], to="kohya", output=tmp_path / "k.safetensors", base=base, dtype="F32")
    adapter = open_adapter(tmp_path / "k.safetensors")
    weights = [base / "unet/diffusion_pytorch_model.safetensors", base / "text_encoder/model.safetensors"]
    assert set(adapter.base_hashes) == {file_sha256(file) for file in weights}
    stored, bases = load(base / "unet").tensors, load(files["para"]).tensors
    other = open_adapter(tmp_path / "diffusers.safetensors").modules
    peft = open_adapter(tmp_path / "peft/unet").modules
    for name, module in adapter.modules.items():
        if name.component != "unet":
            continue
        W = stored[f"{name.path}.weight"].astype(np.float64)
        Q = np.linalg.qr(bases[f"{name}.para_B"].astype(np.float64))[0]
        wanted = -Q @ (Q.T @ W.reshape(len(W), -1))
        for found in (module, other[name], peft[name]):
            assert distance(found.delta(W), wanted) < 1e-6


def test_a_para_needs_its_base_and_no_strength(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="one base"):
        run(files["para"], to="kohya", output=tmp_path / "o.safetensors")
    adapter = open_adapter(files["para"])
    with pytest.raises(UsageError):
        convert([Input(files["para"], 0.5)], [adapter], tmp_path / "o.safetensors", ConvertOptions("kohya"))


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "lokr-2", "locon"])
def test_peft_loads_what_lycoris_trained(tmp_path: Path, algorithm: str) -> None:
    """LyCORIS' own file, converted: PEFT merges what LyCORIS merges. lokr: all whole; lokr-2: of low rank."""
    options = {"factor": 2} if algorithm == "lokr-2" else {}
    network = lycoris_network(algorithm.partition("-")[0], **options)
    source = saved(network, tmp_path / "l.safetensors")
    run(source, to="peft", output=tmp_path / "p")
    plain, merged = small_unet(), small_unet()
    merged = PeftModel.from_pretrained(merged, tmp_path / "p").merge_and_unload()
    modules = {name.path: module for name, module in open_adapter(source).modules.items()}
    assert modules
    for path, module in modules.items():
        W, found = (m.get_submodule(path).weight.detach().double() for m in (plain, merged))
        change = (found - W).reshape(len(W), -1).numpy()
        assert distance(change, module.delta(W.reshape(len(W), -1).numpy())) < 1e-5


def test_peft_loads_a_converted_lokr(tmp_path: Path) -> None:
    """Of linear layers alone; whole factors, where PEFT and LyCORIS differ on the scale."""
    rng = np.random.default_rng(0)
    plain = small_unet()
    path = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    assert plain.get_submodule(path).weight.shape == (32, 32)
    stem = "lora_unet_" + path.replace(".", "_")
    write_safetensors(
        tmp_path / "k.safetensors",
        {
            f"{stem}.lokr_w1": rng.standard_normal((4, 4)).astype(np.float32),
            f"{stem}.lokr_w2": rng.standard_normal((8, 8)).astype(np.float32),
            f"{stem}.alpha": np.float32(7),
        },
    )
    run(tmp_path / "k.safetensors", to="peft", output=tmp_path / "p")
    merged = PeftModel.from_pretrained(small_unet(), tmp_path / "p").merge_and_unload()
    (module,) = open_adapter(tmp_path / "k.safetensors").modules.values()
    change = (merged.get_submodule(path).weight - plain.get_submodule(path).weight).detach().double().numpy()
    assert distance(change, module.delta(change)) < 1e-5


def linear_para(base: Path, folder: Path, rank: int = 2) -> Path:
    shapes = shapes_of(base)
    layers = [layer for layer in shapes if layer.startswith("unet.") and ".attn1.to_" in layer]
    return para_file(folder / "linear.safetensors", random_bases(shapes, layers, rank), "sd15", "F32")


def test_deft_there_and_back_and_in_peft(base: Path, tmp_path: Path) -> None:
    source = linear_para(base, tmp_path)
    run(source, to="deft", output=tmp_path / "deft")
    run(tmp_path / "deft", to="para", output=tmp_path / "back.safetensors")
    assert load(tmp_path / "back.safetensors").raw == load(source).raw
    unet, plain = pipeline(base).unet, pipeline(base).unet
    merged = PeftModel.from_pretrained(unet, tmp_path / "deft").merge_and_unload()
    for key, B in load(source).tensors.items():
        path = key.removeprefix("unet.").removesuffix(".para_B")
        W, found = (m.get_submodule(path).weight.detach().double().numpy() for m in (plain, merged))
        Q = np.linalg.qr(B.astype(np.float64))[0]
        assert distance(found, W - Q @ (Q.T @ W)) < 1e-6


def test_deft_holds_one_rank_of_linear_layers(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="linear"):
        run(files["para"], to="deft", output=tmp_path / "deft")
    shapes = shapes_of(base)
    layers = [layer for layer in shapes if layer.startswith("unet.") and ".attn1.to_q" in layer]
    bases = random_bases(shapes, layers, 2)
    uneven = para_file(tmp_path / "u.safetensors", {**bases, layers[0]: bases[layers[0]][:, :1]})
    with pytest.raises(UsageError, match="different ranks"):
        run(uneven, to="deft", output=tmp_path / "deft")
    twice = {layer: np.repeat(B[:, :1], 2, axis=1) for layer, B in bases.items()}
    with pytest.raises(AdapterError, match="depend"):
        run(para_file(tmp_path / "t.safetensors", twice), to="deft", output=tmp_path / "deft")
    source = linear_para(base, tmp_path)
    run(source, to="deft", output=tmp_path / "deft")
    config = json.loads((tmp_path / "deft/adapter_config.json").read_text())
    (tmp_path / "deft/adapter_config.json").write_text(json.dumps({**config, "decomposition_method": "relu"}))
    with pytest.raises(FamilyError, match="no PaRa"):
        run(tmp_path / "deft", to="para", output=tmp_path / "o.safetensors")


@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_a_flux_lora_in_kohyas_names_for_diffusers(tmp_path: Path, to: str) -> None:
    """Stacked projections become rows of single ones."""
    made = zoo.random_model("flux")
    made.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    tensors = {}
    for layer, (d, k) in {
        "double_blocks_0_img_attn_qkv": (48, 16),
        "single_blocks_0_linear2": (16, 80),
    }.items():
        tensors[f"lora_unet_{layer}.lora_up.weight"] = rng.normal(0, 0.3, (d, 2)).astype(np.float32)
        tensors[f"lora_unet_{layer}.lora_down.weight"] = rng.normal(0, 0.3, (2, k)).astype(np.float32)
        tensors[f"lora_unet_{layer}.alpha"] = np.float32(1.5)
    write_safetensors(tmp_path / "k.safetensors", tensors)
    output = tmp_path / ("peft" if to == "peft" else "d.safetensors")
    run(tmp_path / "k.safetensors", to=to, output=output, base=tmp_path / "model")
    for name, lora in (("wanted", tmp_path / "k.safetensors"), ("found", output)):
        bake(plan_of(tmp_path / "model", Step("lora", lora)), tmp_path / name)
    one, other = (load(tmp_path / name).tensors for name in ("wanted", "found"))
    assert sum(not np.array_equal(one[key], made.state_dict()[key].numpy()) for key in one) == 4
    for key, value in one.items():
        assert np.linalg.norm(other[key] - value) <= 2.0**-22 * np.linalg.norm(value)
    if to == "peft":
        merged = PeftModel.from_pretrained(made, output).merge_and_unload().state_dict()
        for key, value in one.items():
            assert np.linalg.norm(merged[key].numpy() - value) <= 1e-6 * np.linalg.norm(value)


@pytest.fixture(scope="module")
def shipped_picture(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """What the shipped model draws with the shipped PaRa baked into it."""
    para = Step("para", shipped.adapter_file("butterfly"))
    opened = [(para, open_adapter(para.path))]
    plan = make_plan(open_base(shipped.model()), opened, BakeOptions(dtype="fp32"))
    report = bake(plan, tmp_path_factory.mktemp("baked") / "model")
    return picture(pipeline(report.output))


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_the_shipped_para_as_a_lora_draws_the_same(
    to: str, shipped_picture: np.ndarray, tmp_path: Path
) -> None:
    output = tmp_path / ("lora" if to == "peft" else "lora.safetensors")
    run(shipped.adapter_file("butterfly"), to=to, output=output, base=shipped.model())
    pipe = pipeline(shipped.model())
    before = picture(pipe)
    if to == "peft":
        pipe.unet = PeftModel.from_pretrained(pipe.unet, output).get_base_model()
    else:
        pipe.load_lora_weights(tmp_path, weight_name=output.name)
    # factors in float16, over three steps, each magnified by the network some tens of times
    limit = 64 * 3 * float(torch.finfo(torch.float16).eps) / 2
    assert distance(picture(pipe), shipped_picture) < limit < distance(before, shipped_picture) / 2
