"""The nodes in a real ComfyUI on the CPU: weights equal a bake's, files equal the command's bytes.

Runs where ``COMFYUI`` names the folder that ``python tools/comfyui.py FOLDER`` made.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from baking import load, lora_file, para_file, random_bases, random_factors, shapes_of, small_model
from family_cases import CASES

import paramerge as pm
from paramerge.checkpoints.layout import open_base

pytestmark = pytest.mark.skipif("COMFYUI" not in os.environ, reason="no ComfyUI: tools/comfyui.py")

UNET_LAYERS = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
)
TEXT_LAYERS = (
    "text_encoder_2.text_model.encoder.layers.3.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.1.mlp.fc1",
)
NAMES = ("para", "para-2", "lora", "unet-para")
EPS = float(np.finfo(np.float32).eps)


class World:
    """A base of SDXL's structure, adapters, and both as ComfyUI has them."""

    def __init__(self, folder: Path) -> None:
        import real_comfyui

        self.comfy = real_comfyui
        self.base = small_model(folder / "base.safetensors", "sdxl", dtype="F32")
        self.pack = real_comfyui.start(folder)
        for name in ("base", "other", "third"):
            self.put("checkpoints", name, lambda path: small_model(path, "sdxl", dtype="F32"))
        shapes = shapes_of(self.base)
        layers = [*UNET_LAYERS, *TEXT_LAYERS]
        for seed, name in enumerate(NAMES):
            chosen = layers if name != "unet-para" else list(UNET_LAYERS)
            if "para" in name:
                bases = random_bases(shapes, chosen, 4, seed)
                self.put("loras", name, lambda path, bases=bases: para_file(path, bases, "sdxl"))
            else:
                factors = random_factors(shapes, chosen, 4, seed)
                self.put("loras", name, lambda path, factors=factors: lora_file(path, factors))
        for case in CASES:
            suited = {layer: shapes[layer] for layer in UNET_LAYERS if case.suits(shapes[layer])}
            if suited:
                case.write(folder / "loras" / "families" / case.name, suited, "F16", 1)
        self.folder = folder
        self.tensors = {key: np.array(value) for key, value in load(self.base).tensors.items()}
        self.places = self._places()

    def put(self, kind: str, name: str, write: Any) -> None:
        folder = Path(sys.modules["folder_paths"].folder_names_and_paths[kind][0][0])
        write(folder / f"{name}.safetensors")

    def path(self, name: str) -> Path:
        return self.folder / "loras" / f"{name}.safetensors"

    def _places(self) -> dict[str, tuple[str, Any]]:
        """ComfyUI's key of every layer, and the target that it is in the file."""
        places = {}
        for name, target in open_base(self.base).files[0].targets.items():
            if name.component == "unet":
                places[target.key.removeprefix("model.")] = ("unet", target)
            else:
                encoder = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}[name.component]
                places[f"{encoder}.transformer.{name.path}.weight"] = ("text", target)
        return places

    def weight(self, tensors: Mapping[str, Any], target: Any) -> torch.Tensor:
        whole = np.asarray(tensors[target.key], np.float32)
        start, stop = target.rows or (0, len(whole))
        return torch.from_numpy(np.array(whole.T if target.transposed else whole[start:stop]))

    def models(self, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
        """MODEL and CLIP with the base's weights."""
        parts: dict[str, dict[str, torch.Tensor]] = {"unet": {}, "text": {}}
        for key, (kind, target) in self.places.items():
            parts[kind][key] = self.weight(self.tensors, target).to(dtype)
        for key, value in self.tensors.items():  # norms and biases: the UNet's structure is told by them too
            if key.startswith("model.diffusion_model."):
                parts["unet"].setdefault(key.removeprefix("model."), torch.from_numpy(value).to(dtype))
        unet, text = (self.comfy.model_of(part) for part in parts.values())
        return unet, self.comfy.Clip(text)

    def node(self, name: str) -> Any:
        from paramerge_pack.paramerge_nodes import extension

        return next(node for node in extension.NODES if node.__name__ == name)

    def run(self, node: str, **inputs: Any) -> Any:
        return self.node(node).execute(**inputs).result

    def load(self, node: str, name: str, models: tuple[Any, Any], strength: float = 1.0) -> tuple[Any, Any]:
        given = {"para" if node == "LoadPara" else "adapter": name}
        model, clip = models
        result = self.run(
            node, model=model, clip=clip, strength_model=strength, strength_clip=strength, **given
        )
        return tuple(result)  # type: ignore[return-value]

    def stack(self, *adapters: tuple[str, float]) -> Any:
        found: Any = ()
        for name, strength in adapters:
            (found,) = self.run(
                "AddAdapter", adapter=f"{name}.safetensors", strength=strength, adapters=found
            )
        return found

    def check(self, model: Any, clip: Any, baked: Path, tolerance: float) -> int:
        """Every weight that ComfyUI makes is the baked one; returns the number that changed."""
        expected = load(baked).tensors
        found = self.comfy.patched_weights(model) | self.comfy.patched_weights(clip.patcher)
        changed = 0
        for key, (_, target) in self.places.items():
            wanted, before = self.weight(expected, target), self.weight(self.tensors, target)
            error = torch.linalg.vector_norm(found[key].float() - wanted) / torch.linalg.vector_norm(wanted)
            assert error <= tolerance, f"{key}: {error:.2e}"
            changed += not torch.equal(wanted, before)
        return changed


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("comfyui"))


def bake(world: World, tmp_path: Path, *adapters: pm.Adapter, **options: Any) -> Path:
    pm.bake(world.base, adapters, tmp_path / "baked.safetensors", **options)
    return tmp_path / "baked.safetensors"


ROUNDING = 16 * EPS
"""Of float32 products against float64 ones, relative to the whole weight's norm."""


@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_load_para_gives_the_baked_weights(world: World, tmp_path: Path, strength: float) -> None:
    model, clip = world.models()
    model, clip = world.load("LoadPara", "para.safetensors", (model, clip), strength)
    baked = bake(world, tmp_path, pm.Para(world.path("para"), strength))
    assert world.check(model, clip, baked, ROUNDING) == (4 if strength else 0)


@pytest.mark.parametrize("case", [case.name for case in CASES])
def test_load_adapter_of_every_family(world: World, tmp_path: Path, case: str) -> None:
    files = list((world.folder / "loras" / "families" / case).glob("*.safetensors"))
    if not files:
        pytest.skip("no layer of this model suits the case")
    name = str(files[0].relative_to(world.folder / "loras"))
    model, clip = world.models()
    model, clip = world.load("LoadAdapter", name, (model, clip), 0.7)
    assert world.check(model, clip, bake(world, tmp_path, pm.Adapter(files[0], 0.7)), ROUNDING)


@pytest.mark.parametrize("order", [("para", "lora"), ("lora", "para")])
def test_nodes_act_in_their_order(world: World, tmp_path: Path, order: tuple[str, str]) -> None:
    model, clip = world.models()
    for name in order:
        model, clip = world.load("LoadAdapter", f"{name}.safetensors", (model, clip), 1.0)
    world.check(
        model, clip, bake(world, tmp_path, *(pm.Adapter(world.path(name)) for name in order)), ROUNDING
    )


def test_a_para_before_comfyuis_own_lora(world: World, tmp_path: Path) -> None:
    import comfy.lora
    import comfy.utils

    model, clip = world.models()
    model, clip = world.load("LoadPara", "para.safetensors", (model, clip), 1.0)
    tensors = comfy.utils.load_torch_file(str(world.path("lora")), safe_load=True)
    names = {}
    for key, (_, target) in world.places.items():
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
        names[prefix[target.module.component] + target.module.path.replace(".", "_")] = key
    patches = comfy.lora.load_lora(tensors, names)
    assert len(patches) == 4
    model.add_patches(patches, 0.5)
    clip.patcher.add_patches(patches, 0.5)
    baked = bake(world, tmp_path, pm.Para(world.path("para")), pm.Lora(world.path("lora"), 0.5))
    world.check(model, clip, baked, ROUNDING)


@pytest.mark.parametrize("merge", ["joint", "sequential"])
def test_a_list_of_adapters(world: World, tmp_path: Path, merge: str) -> None:
    stack = world.stack(("para", 1.0), ("para-2", 0.6), ("lora", 0.8))
    model, clip = world.models()
    model, clip = world.run("ApplyAdapters", model=model, clip=clip, adapters=stack, merge=merge, gamma=0.0)
    world.check(model, clip, bake(world, tmp_path, *stack, merge=merge), ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_offloaded_weights_are_patched_alike(world: World, dtype: torch.dtype) -> None:
    """Patches that ComfyUI carries out at each use, built anew from their parts, give the same weights."""
    import comfy.model_patcher

    model, clip = world.models(dtype)
    model, _ = world.load("LoadPara", "unet-para.safetensors", (model, clip), 1.0)
    whole = world.comfy.patched_weights(model)
    for key in model.patches:
        patch = comfy.model_patcher.LowVramPatch(key, model.patches)
        patch.prepare(torch.empty(0, dtype=torch.uint8), None)
        assert patch.prepared_patches is not None
        found = patch(model.model.state_dict()[key].clone())
        torch.testing.assert_close(found, whole[key], rtol=0, atol=0 if dtype == torch.bfloat16 else 1e-6)


def test_without_clip_its_layers_are_left_out(world: World, tmp_path: Path) -> None:
    model, clip = world.models()
    patched, none = world.load("LoadPara", "para.safetensors", (model, None))
    assert none is None and len(patched.patches) == 2 and not model.patches
    world.check(patched, clip, bake(world, tmp_path, pm.Para(world.path("para")), only=["unet"]), ROUNDING)


def test_the_saved_file_has_the_commands_bytes(world: World, tmp_path: Path) -> None:
    stack = world.stack(("para", 1.0), ("lora", 0.8))
    (path,) = world.run(
        "Bake", checkpoint="base.safetensors", adapters=stack, merge="joint", gamma=0.0, dtype="fp16",
        filename_prefix="checkpoints/baked",
    )  # fmt: skip
    base = world.folder / "checkpoints" / "base.safetensors"
    words = ["bake", "--base", base, "--para", world.path("para"), "--lora", f"{world.path('lora')}@0.8"]
    command(*words, "--dtype", "fp16", "-o", tmp_path / "a.safetensors")
    assert Path(path).read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert Path(path).name == "baked_00001_.safetensors"


def test_a_merge_has_the_commands_bytes(world: World, tmp_path: Path) -> None:
    (path,) = world.run(
        "Merge", checkpoint_a="base.safetensors", checkpoint_b="other.safetensors", checkpoint_c="none",
        method="weighted-sum", parameters="weights=0.7,0.3", dtype="keep", filename_prefix="merged",
        adapters=world.stack(("lora", 0.5)),
    )  # fmt: skip
    folder = world.folder / "checkpoints"
    command(
        "merge", folder / "base.safetensors", folder / "other.safetensors", "--weights", "0.7,0.3",
        "--lora", f"{world.path('lora')}@0.5", "-o", tmp_path / "m.safetensors",
    )  # fmt: skip
    assert Path(path).read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def command(*words: object) -> None:
    from paramerge.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    assert not caught.value.code


def test_a_plan_in_the_commands_words(world: World) -> None:
    (text,) = world.run(
        "Plan", checkpoint="base.safetensors", adapters=world.stack(("para", 1.0)), merge="joint", gamma=0.0,
        dtype="keep",
    )  # fmt: skip
    assert "para.safetensors" in text and "sdxl" in text and "nothing was written" in text


def test_a_comparison_as_pictures(world: World) -> None:
    stack = world.stack(("para", 1.0), ("para-2", 1.0), ("lora", 1.0))
    pictures, text = world.run("Compare", adapters=stack, checkpoint="none")
    assert pictures.ndim == 4 and pictures.shape[-1] == 3 and len(pictures) >= 3
    assert 0 <= float(pictures.min()) < float(pictures.max()) <= 1
    assert "para-2" in text


def test_a_stop_leaves_nothing(world: World) -> None:
    import comfy.model_management as management

    before = sorted(world.folder.glob("output/**/*"))
    management.interrupt_current_processing()
    with pytest.raises(management.InterruptProcessingException):
        world.run(
            "Bake", checkpoint="base.safetensors", adapters=world.stack(("para", 1.0)), merge="joint",
            gamma=0.0, dtype="keep", filename_prefix="stopped",
        )  # fmt: skip
    assert sorted(world.folder.glob("output/**/*")) == before


def test_faults_come_in_our_words(world: World) -> None:
    shapes = {"unet.down_blocks.9.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64)}
    para_file(world.path("elsewhere"), random_bases(shapes, list(shapes), 2, 0), "sdxl")
    model, _ = world.models()
    with pytest.raises(pm.ParamergeError, match="the loaded model"):
        world.load("LoadPara", "elsewhere.safetensors", (model, None))


def test_the_pack_as_comfyui_takes_it(world: World) -> None:
    """Schemas are valid, and the extension gives every node."""
    extension = asyncio.run(world.pack.comfy_entrypoint())
    nodes = asyncio.run(extension.get_node_list())
    assert len(nodes) == len({node.GET_SCHEMA().node_id for node in nodes}) >= 8
    for node in nodes:
        node.GET_NODE_INFO_V1()
        assert node.GET_SCHEMA().description


WORKFLOWS = sorted(
    (Path(__file__).parents[2] / "integrations" / "comfyui" / "example_workflows").glob("*.json")
)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_example_workflows_are_valid(world: World, path: Path) -> None:
    """ComfyUI's own check of a graph takes each: nodes, inputs, types and choices."""
    import execution
    import nodes

    mine = {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension_nodes(world))}
    nodes.NODE_CLASS_MAPPINGS.update(mine)
    graph = json.loads(path.read_text())
    for node in graph.values():
        for name, value in node["inputs"].items():
            if name.startswith(("checkpoint", "ckpt_name")) and value != "none":
                node["inputs"][name] = "base.safetensors"
            if name in ("para", "adapter"):
                node["inputs"][name] = f"{'para' if 'para' in value else 'lora'}.safetensors"
            if name == "lora_name":
                node["inputs"][name] = "lora.safetensors"
    valid, error, _, node_errors = asyncio.run(execution.validate_prompt("1", graph, None))
    assert valid, (error, node_errors)


async def extension_nodes(world: World) -> Any:
    return await (await world.pack.comfy_entrypoint()).get_node_list()
