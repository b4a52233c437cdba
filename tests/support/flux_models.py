"""One small FLUX in both of its layouts; nothing here uses paramerge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import model_zoo as zoo
import torch
from safetensors.torch import load_file, save_file

WIDTH = 16
Tensors = Mapping[str, torch.Tensor]

PLAIN = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}
DOUBLE = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
}


def as_single_file(state: Tensors) -> dict[str, torch.Tensor]:
    """diffusers' weights under the single file's names: written out here, apart from paramerge's table."""
    out: dict[str, torch.Tensor] = {}
    for kind in ("weight", "bias"):
        for new, old in PLAIN.items():
            out[f"{new}.{kind}"] = state[f"{old}.{kind}"]
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        for i in range(2):
            block = f"transformer_blocks.{i}"
            for new, old in DOUBLE.items():
                out[f"double_blocks.{i}.{new}.{kind}"] = state[f"{block}.{old}.{kind}"]
            for way, names in (("img", "to_{}"), ("txt", "add_{}_proj")):
                parts = [state[f"{block}.attn.{names.format(x)}.{kind}"] for x in "qkv"]
                out[f"double_blocks.{i}.{way}_attn.qkv.{kind}"] = torch.cat(parts)
            block = f"single_transformer_blocks.{i}"
            parts = [
                state[f"{block}.{name}.{kind}"]
                for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            ]
            out[f"single_blocks.{i}.linear1.{kind}"] = torch.cat(parts)
            out[f"single_blocks.{i}.linear2.{kind}"] = state[f"{block}.proj_out.{kind}"]
            out[f"single_blocks.{i}.modulation.lin.{kind}"] = state[f"{block}.norm.linear.{kind}"]
    for i in range(2):
        for way, names in (("img", "norm_{}"), ("txt", "norm_added_{}")):
            for of, letter in (("query", "q"), ("key", "k")):
                norm = state[f"transformer_blocks.{i}.attn.{names.format(letter)}.weight"]
                out[f"double_blocks.{i}.{way}_attn.norm.{of}_norm.scale"] = norm
        for of, letter in (("query", "q"), ("key", "k")):
            norm = state[f"single_transformer_blocks.{i}.attn.norm_{letter}.weight"]
            out[f"single_blocks.{i}.norm.{of}_norm.scale"] = norm
    assert sum(tensor.numel() for tensor in out.values()) == sum(tensor.numel() for tensor in state.values())
    return {key: tensor.contiguous().clone() for key, tensor in out.items()}


def flux_model(folder: Path) -> tuple[Path, Path, Tensors]:
    """A folder in shards, a single file, and the weights under diffusers' names."""
    made = zoo.random_model("flux")
    made.save_pretrained(folder / "model", max_shard_size="20KB")
    state = dict(made.state_dict())
    save_file(as_single_file(state), folder / "flux.safetensors")
    return folder / "model", folder / "flux.safetensors", state


def read(path: Path) -> dict[str, torch.Tensor]:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}
