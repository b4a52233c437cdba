"""HunyuanVideo 1 and 1.5: one structure in three namings, Tencent's, ComfyUI's (as FLUX's) and diffusers'."""

from __future__ import annotations

from paramerge.models.key_map import Blocks, Layer, LayerTable, scale, triple
from paramerge.models.record import ArchitectureRecord, KohyaNames
from paramerge.models.resemblance import VIDEO_TRANSFORMER
from paramerge.models.transformer_blocks import double_and_single, one_stack

Layers = dict[str, str | Layer]
_TEXT = "context_embedder"
_REFINER = ("txt_in.individual_token_refiner.blocks", f"{_TEXT}.token_refiner.refiner_blocks")
_NORMS: Layers = {"norm1": "norm1", "norm2": "norm2", "adaLN_modulation.1": "norm_out.linear"}
_END: Layers = {
    "img_in.proj": "x_embedder.proj",
    "txt_in.input_embedder": f"{_TEXT}.proj_in",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": Layer(("norm_out.linear",), swapped=True),
}


def _embedder(single: str, diffusers: str, words: tuple[str, str]) -> Layers:
    return {f"{single}.{word}": f"{diffusers}.linear_{n}" for n, word in enumerate(words, 1)}


def _text(time: tuple[str, str], text: tuple[str, str]) -> Layers:
    own = f"{_TEXT}.time_text_embed"
    return {
        **_embedder("txt_in.t_embedder", f"{own}.timestep_embedder", time),
        **_embedder("txt_in.c_embedder", f"{own}.text_embedder", text),
    }


_MLP, _IN_OUT = ("mlp.0", "mlp.2"), ("in_layer", "out_layer")
_STATED = "time_text_embed"
_REFINER_BLOCKS = Blocks(
    *_REFINER,
    {
        **_NORMS,
        "self_attn_qkv": triple("attn"),
        "self_attn_proj": "attn.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
    },
)
_COMFYUI_REFINER = Blocks(
    *_REFINER,
    {
        **_NORMS,
        "self_attn.qkv": triple("attn"),
        "self_attn.proj": "attn.to_out.0",
        "mlp.0": "ff.net.0.proj",
        "mlp.2": "ff.net.2",
    },
)


def _way(single: str, norm: str, ff: str, names: str, out: str, added: str) -> Layers:
    """Tencent's layers of one of a double block's two streams."""
    return {
        f"{single}_mod.linear": f"{norm}.linear",
        f"{single}_attn_qkv": triple("attn", names),
        f"{single}_attn_q_norm": f"attn.norm_{added}q",
        f"{single}_attn_k_norm": f"attn.norm_{added}k",
        f"{single}_attn_proj": f"attn.{out}",
        f"{single}_mlp.fc1": f"{ff}.net.0.proj",
        f"{single}_mlp.fc2": f"{ff}.net.2",
    }


def _comfyui_way(single: str, norm: str, ff: str, names: str, out: str, added: str) -> Layers:
    return {
        f"{single}_mod.lin": f"{norm}.linear",
        f"{single}_attn.qkv": triple("attn", names),
        f"{single}_attn.norm.query_norm": scale(f"attn.norm_{added}q"),
        f"{single}_attn.norm.key_norm": scale(f"attn.norm_{added}k"),
        f"{single}_attn.proj": f"attn.{out}",
        f"{single}_mlp.0": f"{ff}.net.0.proj",
        f"{single}_mlp.2": f"{ff}.net.2",
    }


_PICTURE = ("img", "norm1", "ff", "to_{}", "to_out.0", "")
_WORDS = ("txt", "norm1_context", "ff_context", "add_{}_proj", "to_add_out", "added_")
_DOUBLE = Blocks("double_blocks", "transformer_blocks", {**_way(*_PICTURE), **_way(*_WORDS)})
_COMFYUI_DOUBLE = Blocks(
    "double_blocks", "transformer_blocks", {**_comfyui_way(*_PICTURE), **_comfyui_way(*_WORDS)}
)
_STACKED: Layers = {
    "linear1": Layer(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "square"),
    "linear2": "proj_out",
}
_SINGLE = Blocks(
    "single_blocks",
    "single_transformer_blocks",
    {**_STACKED, "modulation.linear": "norm.linear", "q_norm": "attn.norm_q", "k_norm": "attn.norm_k"},
)
_COMFYUI_SINGLE = Blocks(
    "single_blocks",
    "single_transformer_blocks",
    {
        **_STACKED,
        "modulation.lin": "norm.linear",
        "norm.query_norm": scale("attn.norm_q"),
        "norm.key_norm": scale("attn.norm_k"),
    },
)


def _embedders(time: tuple[str, str]) -> Layers:
    return {
        **_embedder("time_in", f"{_STATED}.timestep_embedder", time),
        **_embedder("guidance_in", f"{_STATED}.guidance_embedder", time),
        **_embedder("vector_in", f"{_STATED}.text_embedder", _IN_OUT),
    }


KEY_MAP = LayerTable(
    {**_END, **_text(_MLP, ("linear_1", "linear_2")), **_embedders(_MLP)},
    (_REFINER_BLOCKS, _DOUBLE, _SINGLE),
)
COMFYUI = LayerTable(
    {**_END, **_text(_IN_OUT, _IN_OUT), **_embedders(_IN_OUT)},
    (_COMFYUI_REFINER, _COMFYUI_DOUBLE, _COMFYUI_SINGLE),
)

_OTHER_INPUTS: Layers = {
    "byt5_in.layernorm": f"{_TEXT}_2.norm",
    "byt5_in.fc1": f"{_TEXT}_2.linear_1",
    "byt5_in.fc2": f"{_TEXT}_2.linear_2",
    "byt5_in.fc3": f"{_TEXT}_2.linear_3",
    "vision_in.proj.0": "image_embedder.norm_in",
    "vision_in.proj.1": "image_embedder.linear_1",
    "vision_in.proj.3": "image_embedder.linear_2",
    "vision_in.proj.4": "image_embedder.norm_out",
    "cond_type_embedding": "cond_type_embed",
}


def _divided(blocks: Blocks) -> Blocks:
    """1.5's own files have q, k and v one by one: ``img_attn_q``."""
    layers: Layers = {}
    for path, layer in blocks.layers.items():
        if path.endswith("_attn_qkv") and isinstance(layer, Layer):
            layers |= {f"{path[:-3]}{x}": part for x, part in zip("qkv", layer.parts, strict=True)}
        else:
            layers[path] = layer
    return Blocks(blocks.single, blocks.diffusers, layers)


KEY_MAP_1_5 = LayerTable(
    {
        **_END,
        **_text(_MLP, ("linear_1", "linear_2")),
        **_embedder("time_in", "time_embed.timestep_embedder", _MLP),
        **_OTHER_INPUTS,
    },
    (_REFINER_BLOCKS, _divided(_DOUBLE)),
)
COMFYUI_1_5 = LayerTable(
    {
        **_END,
        **_text(_IN_OUT, _IN_OUT),
        **_embedder("time_in", "time_embed.timestep_embedder", _IN_OUT),
        **_OTHER_INPUTS,
    },
    (_COMFYUI_REFINER, _COMFYUI_DOUBLE),
)

RECORDS = (
    ArchitectureRecord(
        "hunyuan-video-1.5",
        label="HunyuanVideo 1.5",
        patterns=(
            r"individual_token_refiner\.|token_refiner\.refiner_blocks\.",
            r"\bbyt5_in\.|\bcontext_embedder_2\.",
        ),
        blocks=one_stack(54),
        key_map=COMFYUI_1_5,
        other_maps=(KEY_MAP_1_5,),
        resembles=(VIDEO_TRANSFORMER,),
        modelspec_read=("hunyuan-video-1.5",),
    ),
    ArchitectureRecord(
        "hunyuan-video",
        label="HunyuanVideo",
        patterns=(r"individual_token_refiner\.|token_refiner\.refiner_blocks\.",),
        blocks=double_and_single(20, 40),
        key_map=COMFYUI,
        other_maps=(KEY_MAP,),
        resembles=(VIDEO_TRANSFORMER,),
        modelspec_read=("hunyuan-video",),
        kohya=KohyaNames(also=("hunyuan_video", "hunyuan-video")),
    ),
)
