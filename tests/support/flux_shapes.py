"""FLUX's keys and shapes as Black Forest Labs publish it, with fewer blocks."""

from __future__ import annotations

from checkpoint_files import Shape

WIDTH = 3072
"""diffusers' converter divides ``linear1`` by FLUX's true width whatever the file's is."""

_WAY_LAYERS = ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin")
BLOCK_LAYERS = {
    "double_blocks.{}": [f"{way}_{layer}" for way in ("img", "txt") for layer in _WAY_LAYERS],
    "single_blocks.{}": ["linear1", "linear2", "modulation.lin"],
}
NORMS = {
    "double_blocks.{}": [f"{way}_attn.norm.{of}_norm" for way in ("img", "txt") for of in ("query", "key")],
    "single_blocks.{}": ["norm.query_norm", "norm.key_norm"],
}
_EMBEDDERS = ("time_in", "vector_in", "guidance_in")
OUTSIDE = [
    "img_in",
    "txt_in",
    *(f"{name}.{layer}" for name in _EMBEDDERS for layer in ("in_layer", "out_layer")),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
]


def single_file_keys(doubles: int = 2, singles: int = 3) -> list[str]:
    """FLUX's keys as Black Forest Labs publish it, with fewer blocks."""
    keys = [f"{path}.{kind}" for path in OUTSIDE for kind in ("weight", "bias")]
    for block, layers in BLOCK_LAYERS.items():
        for i in range(doubles if block.startswith("double") else singles):
            stem = block.format(i)
            keys += [f"{stem}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
            keys += [f"{stem}.{norm}.scale" for norm in NORMS[block]]
    return keys


def true_shape(key: str) -> Shape:
    """The shape of a layer's weight or bias at FLUX's true width."""
    path, _, kind = key.rpartition(".")
    rows, columns = WIDTH, WIDTH
    if path.endswith("qkv"):
        rows = 3 * WIDTH
    elif path.endswith("linear1"):
        rows = 7 * WIDTH
    elif path.endswith("linear2"):
        columns = 5 * WIDTH
    elif path.endswith("adaLN_modulation.1"):
        rows = 2 * WIDTH
    elif path.endswith(("query_norm", "key_norm")):
        rows = 128
    return (rows, columns) if kind == "weight" else (rows,)


def single_file_shapes(doubles: int = 2, singles: int = 3) -> dict[str, Shape]:
    """Key to shape of the single file, at the true width."""
    return {key: true_shape(key) for key in single_file_keys(doubles, singles)}
