"""Models whose layers go by their own names: baked weights are those that PEFT merges, in every layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import model_zoo as zoo
import numpy as np
import pytest
import torch
from baking import check_close, load, para_file, plan_of, random_bases, remove, shapes_of
from safetensors.torch import load_file, save_file

from paramerge.apply.steps import Step
from paramerge.bake import stream, tasks
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.errors import ArchitectureError, ParamergeError, ShapeError, UnmatchedError
from paramerge.formats import open_adapter

ROUNDED = 4 * 2.0**-24
"""float64 merged by PEFT against float32 baked: one rounding of each element."""
Tensors = Mapping[str, torch.Tensor]


def baked(base: Path, output: Path, *steps: Step, **options: Any) -> dict[str, torch.Tensor]:
    """Bake, and read all tensors of the output (of a folder: of every component's folder)."""
    bake(plan_of(base, *steps, **options), output)
    return read(output)


def read(path: Path) -> dict[str, torch.Tensor]:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def distance(found: Tensors, expected: Tensors) -> float:
    """The largest relative Frobenius distance of any tensor."""
    gaps = [
        float(torch.linalg.norm(tensor.double() - expected[key]) / torch.linalg.norm(expected[key].double()))
        for key, tensor in found.items()
    ]
    return max(gaps)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any, Path]]:
    """A model's folder in shards, the model inside PEFT with a random LoRA, and that as PEFT saves it."""
    known: dict[str, tuple[Path, Any, Path]] = {}

    def get(name: str) -> tuple[Path, Any, Path]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name.replace("-", ""))
            model = zoo.random_model(name)
            model.save_pretrained(folder / "model", max_shard_size="15KB")
            adapted = zoo.with_lora(model, name)
            adapted.save_pretrained(folder / "adapter")
            known[name] = folder / "model", adapted, folder / "adapter"
        return known[name]

    return get


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_sharded_folder_gets_what_peft_merges(name: str, made: Any, tmp_path: Path) -> None:
    folder, adapted, adapter = made(name)
    base = open_base(folder)
    assert (base.layout, base.architecture) == ("model-folder", name)
    assert len(base.files) > 1
    found = baked(folder, tmp_path / "out", Step("lora", adapter))
    before, expected = read(folder), zoo.merged(adapted)
    assert found.keys() == before.keys()
    assert distance(found, expected) < ROUNDED
    changed = {key for key in found if not torch.equal(found[key], before[key])}
    assert changed == {f"{module.path}.weight" for module in open_adapter(adapter).modules}
    untouched = {path.name for path in folder.iterdir()} - {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert untouched == set()


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen-image", "wan"])
def test_a_pipeline_gets_the_adapter_that_diffusers_saves(name: str, made: Any, tmp_path: Path) -> None:
    """With the component in front, with its configuration in the metadata, and without the component."""
    _, adapted, _ = made(name)
    model = zoo.random_model(name)
    folder = zoo.save_pipeline(tmp_path / "pipeline", {"transformer": model, "text_encoder_2": zoo.t5()})
    model.add_adapter(zoo.lora_config(name))
    with torch.no_grad():
        theirs = dict(adapted.named_parameters())
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(theirs[f"base_model.model.{key}"])
    model.save_lora_adapter(tmp_path / "bare")
    path = tmp_path / "bare" / "pytorch_lora_weights.safetensors"
    metadata = json.loads(load(path).metadata["lora_adapter_metadata"])
    assert metadata["alpha_pattern"]
    packed = {f"transformer.{key}": value for key, value in metadata.items()}
    named = tmp_path / "named.safetensors"
    tensors = {f"transformer.{key}": tensor for key, tensor in load_file(path).items()}
    save_file(tensors, named, {"format": "pt", "lora_adapter_metadata": json.dumps(packed)})
    expected = zoo.merged(adapted)
    for adapter in (named, path):
        output = tmp_path / f"out-{adapter.stem}"
        bake(plan_of(folder, Step("lora", adapter)), output)
        assert distance(read(output / "transformer"), expected) < ROUNDED
        kept = read(folder / "text_encoder_2")
        assert all(torch.equal(kept[key], tensor) for key, tensor in read(output / "text_encoder_2").items())
        assert (output / "transformer" / "config.json").is_file()


def test_a_text_encoder_of_a_pipeline_and_two_components_at_once(tmp_path: Path) -> None:
    transformer, encoder = zoo.random_model("flux"), zoo.random_model("t5")
    folder = zoo.save_pipeline(tmp_path / "p", {"transformer": transformer, "text_encoder_2": encoder})
    tensors, expected = {}, {}
    for name, model, component in (("flux", transformer, "transformer"), ("t5", encoder, "text_encoder_2")):
        adapted = zoo.with_lora(model, name)
        for key, tensor in adapted.state_dict().items():
            if "lora_" in key:
                plain = key.removeprefix("base_model.model.").replace(".default", "")
                tensors[f"{component}.{plain}"] = tensor * 0.5
        expected[component] = zoo.merged(adapted)
    path = tmp_path / "both.safetensors"
    save_file(tensors, path)  # scale 1 in the file: 0.25 of the factors' product, times what undoes alpha / r
    adapter = open_adapter(path)
    assert {name.component for name in adapter.modules} == {"transformer", "text_encoder_2"}
    assert adapter.architecture == "flux"
    bake(plan_of(folder, Step("lora", path, 4.0)), tmp_path / "out")
    for component, model in (("transformer", transformer), ("text_encoder_2", encoder)):
        before = {key: tensor.double() for key, tensor in model.state_dict().items()}
        for key, tensor in read(tmp_path / "out" / component).items():
            stem = key.removesuffix(".weight")
            alpha = (
                3 if stem.endswith(zoo.MODELS["flux" if component == "transformer" else "t5"][1][0]) else 6
            )
            change = (expected[component][key] - before[key]) * 4 / alpha
            wanted = before[key] + change
            assert torch.linalg.norm(tensor.double() - wanted) <= 1e-6 * torch.linalg.norm(wanted)


@pytest.mark.parametrize("name", ["flux", "gpt2", "wan"])
def test_a_para_before_a_lora_streamed_in_pieces(
    name: str, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor is larger than the buffer: the weights are read by rows, looked at and written again."""
    folder, adapted, adapter = made(name)
    component = next(iter(shapes_of(folder))).partition(".")[0]
    layers = [f"{component}.{module.path}" for module in open_adapter(adapter).modules]
    bases = random_bases(shapes_of(folder), layers, 3)
    para = para_file(tmp_path / "para.safetensors", bases, name, dtype="F32")
    monkeypatch.setattr(tasks, "BUFFER_BYTES", 200)
    monkeypatch.setattr(stream, "BUFFER_BYTES", 200)
    found = baked(folder, tmp_path / "out", Step("para", para), Step("lora", adapter))
    before, peft = read(folder), zoo.merged(adapted)
    for layer, B in bases.items():
        key = f"{layer.partition('.')[2]}.weight"
        W, delta = before[key].double().numpy(), (peft[key] - before[key].double()).numpy()
        if name == "gpt2":
            W, delta = W.T, delta.T
        expected = remove(W, B.astype(np.float32)) + delta
        result = found[key].numpy().T if name == "gpt2" else found[key].numpy()
        gap = np.linalg.norm(result - expected) / np.linalg.norm(expected)
        assert gap < ROUNDED, key


@pytest.mark.parametrize("name", ["llama", "qwen-image"])
def test_the_dtype_of_a_folder_changes_with_its_configuration(name: str, made: Any, tmp_path: Path) -> None:
    folder, _, adapter = made(name)
    bake(plan_of(folder, Step("lora", adapter), dtype="bf16"), tmp_path / "out")
    found = read(tmp_path / "out")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    (index,) = (tmp_path / "out").glob("*.index.json")
    total = sum(tensor.numel() * 2 for tensor in found.values())
    assert json.loads(index.read_text())["metadata"]["total_size"] == total
    if name == "llama":
        assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(tmp_path / "out")
        assert torch.equal(model.state_dict()["lm_head.weight"], found["lm_head.weight"])
    # and once more over the first output, which is a folder that paramerge wrote
    bake(plan_of(folder, Step("lora", adapter), dtype="fp16"), tmp_path / "out", overwrite=True)
    assert {tensor.dtype for tensor in read(tmp_path / "out").values()} == {torch.float16}


def single_file_of(folder: Path, path: Path, prefix: str = "") -> Path:
    """All tensors of a model's folder in one file, under a prefix."""
    save_file({prefix + key: tensor.clone() for key, tensor in read(folder).items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("flux", ""),
        ("sd3", "model.diffusion_model."),
        ("qwen-image", "diffusion_model."),
        ("wan", ""),
    ],
)
def test_a_file_with_the_model_alone(name: str, prefix: str, made: Any, tmp_path: Path) -> None:
    folder, adapted, adapter = made(name)
    path = single_file_of(folder, tmp_path / "model.safetensors", prefix)
    base = open_base(path)
    assert (base.layout, base.architecture) == ("model-file", name)
    found = baked(path, tmp_path / "out.safetensors", Step("lora", adapter))
    expected = {prefix + key: tensor for key, tensor in zoo.merged(adapted).items()}
    assert distance(found, expected) < ROUNDED


@pytest.mark.parametrize(("name", "prefix"), [("qwen-image", "lora_unet_"), ("wan", "lora_transformer_")])
def test_the_names_of_kohya_without_dots(name: str, prefix: str, made: Any, tmp_path: Path) -> None:
    """As sd-scripts and musubi-tuner write adapters for other models: underscores for dots, and an alpha."""
    folder, adapted, adapter = made(name)
    tensors = {}
    for module in open_adapter(adapter).modules.values():
        stem = prefix + module.name.path.replace(".", "_")
        B, A = (torch.from_numpy(factor) for factor in module.factors())  # type: ignore[union-attr]
        kernel = module.down.shape[2:]  # type: ignore[union-attr]
        tensors[f"{stem}.lora_up.weight"] = B.reshape(*B.shape, *(1 for _ in kernel))
        tensors[f"{stem}.lora_down.weight"] = A.reshape(len(A), -1, *kernel)
        tensors[f"{stem}.alpha"] = torch.tensor(module.scale * module.rank)  # type: ignore[union-attr]
    path = tmp_path / "kohya.safetensors"
    save_file(tensors, path)
    found = baked(folder, tmp_path / "out", Step("lora", path))
    assert distance(found, zoo.merged(adapted)) < ROUNDED


def test_an_adapter_that_does_not_say_which_of_two_transformers(made: Any, tmp_path: Path) -> None:
    """Wan 2.2 has two of the same layers; a LoRA without the component could be for either."""
    _, adapted, adapter = made("wan")
    model = zoo.random_model("wan")
    folder = zoo.save_pipeline(tmp_path / "p", {"transformer": model, "transformer_2": model})
    with pytest.raises(UnmatchedError, match="does not say which") as caught:
        plan_of(folder, Step("lora", adapter))
    assert caught.value.hint == 'choose one: only="transformer"'
    bake(plan_of(folder, Step("lora", adapter), only=("transformer_2",)), tmp_path / "out")
    assert distance(read(tmp_path / "out" / "transformer_2"), zoo.merged(adapted)) < ROUNDED
    kept = read(tmp_path / "out" / "transformer")
    assert all(torch.equal(tensor, kept[key]) for key, tensor in read(folder / "transformer").items())


REFUSED = [
    ("llama", "flux", "made for flux, the base is llama"),
    ("flux", "llama", "for a language model"),
    ("sd3", "flux", "made for flux, the base is sd3"),
    ("t5", "gpt2", "for a language model"),
    ("qwen-image", "wan", "made for wan, the base is qwen-image"),
]


@pytest.mark.parametrize(("base", "adapter", "reason"), REFUSED)
def test_an_adapter_of_another_model_is_refused_with_a_guess(
    base: str, adapter: str, reason: str, made: Any
) -> None:
    with pytest.raises(ParamergeError) as caught:
        plan_of(made(base)[0], Step("lora", made(adapter)[2]))
    assert isinstance(caught.value, UnmatchedError | ArchitectureError | ShapeError)
    import re

    assert re.search(reason, str(caught.value))


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen-image", "llama"])
def test_an_adapter_of_a_stable_diffusion_is_refused(name: str, made: Any, shared_dir: Path) -> None:
    adapters = shared_dir / "fixtures" / "adapters"
    for path in ("cloneofsimo_analog_svd_rank4.safetensors", "diffusers_old_catundchat_sd15.safetensors"):
        with pytest.raises(ArchitectureError) as caught:
            plan_of(made(name)[0], Step("lora", adapters / path))
        assert f"the base is {name}" in caught.value.what


def test_a_unet_adapter_that_does_not_tell_its_architecture_is_refused(made: Any, tmp_path: Path) -> None:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    path = para_file(tmp_path / "p.safetensors", {layer: np.eye(16, 2)}, None)  # type: ignore[arg-type]
    with pytest.raises(UnmatchedError, match="nothing of this adapter") as caught:
        plan_of(made("flux")[0], Step("para", path))
    assert "a Stable Diffusion UNet" in str(caught.value.hint)


def test_an_adapter_of_another_width_is_refused(made: Any, tmp_path: Path) -> None:
    wide = zoo.flux(width=32)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(ShapeError, match="does not fit"):
        plan_of(tmp_path / "wide", Step("lora", made("flux")[2]))


def test_one_layer_that_the_base_lacks_is_refused_and_may_be_allowed(made: Any, tmp_path: Path) -> None:
    _, _, adapter = made("flux")
    shallow = zoo.flux(singles=1)
    shallow.save_pretrained(tmp_path / "shallow")
    with pytest.raises(UnmatchedError) as caught:
        plan_of(tmp_path / "shallow", Step("lora", adapter))
    assert "single_transformer_blocks.1" in str(caught.value.found)
    plan = plan_of(tmp_path / "shallow", Step("lora", adapter), allow_unmatched=True)
    assert {name.path.split(".")[1] for name in plan.steps[0].unmatched} == {"1"}


def test_a_language_model_from_pickles_alone_is_refused(made: Any, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    shutil.copy(made("llama")[0] / "config.json", tmp_path / "m")
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ParamergeError, match="pickles"):
        open_base(tmp_path / "m")


def test_a_head_that_peft_saves_along_is_named(tmp_path: Path) -> None:
    """PEFT saves the base's own head beside a LoRA on it: refused by name, and the rest can be baked."""
    from peft import LoraConfig, get_peft_model

    model = zoo.random_model("llama")
    model.save_pretrained(tmp_path / "m")
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=2, target_modules=["lm_head", "q_proj"]))
    adapted.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    with pytest.raises(UnmatchedError) as caught:
        plan_of(tmp_path / "m", Step("lora", tmp_path / "a"))
    assert "a copy of the base's own weight" in str(caught.value.hint)
    plan = plan_of(tmp_path / "m", Step("lora", tmp_path / "a"), allow_unmatched=True)
    assert "model.lm_head" in map(str, plan.steps[0].matched)


def test_rounded_once(made: Any, tmp_path: Path) -> None:
    """A bf16 base: one unit in the last place at most, against the exact result."""
    folder, adapted, adapter = made("sd3")
    half = {key: tensor.bfloat16() for key, tensor in read(folder).items()}
    save_file(half, tmp_path / "m.safetensors")
    bake(plan_of(tmp_path / "m.safetensors", Step("lora", adapter)), tmp_path / "out.safetensors")
    peft, before = zoo.merged(adapted), read(folder)
    found = load(tmp_path / "out.safetensors").tensors
    shares = []
    for module in open_adapter(adapter).modules:
        key = f"{module.path}.weight"
        exact = half[key].double() + (peft[key] - before[key].double())
        shares.append(check_close(found[key], exact.numpy(), key))
    assert np.mean(shares) < 0.01
