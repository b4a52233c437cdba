"""The names of layers in single files and in diffusers, model by model, against diffusers' own converters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import diffusion_transformers as small
import pytest
import torch
from single_files import as_single_file, namings

from paramerge.checkpoints.targets import find_targets
from paramerge.models.key_map import KeyMap, named, single_key
from paramerge.models.model_names import recognise
from paramerge.models.names import ModuleName
from paramerge.models.registry import record_of

Shapes = Mapping[str, tuple[int, ...]]

MAPS = [(name, n) for name in small.MODELS for n in range(1 + ("hunyuan" in name))]
CONVERTERS = {
    "flux": "convert_flux_transformer_checkpoint_to_diffusers",
    "flux2": "convert_flux2_transformer_checkpoint_to_diffusers",
    "chroma": "convert_chroma_transformer_checkpoint_to_diffusers",
    "z-image": "convert_z_image_transformer_checkpoint_to_diffusers",
    "lumina2": "convert_lumina2_to_diffusers",
    "qwen-image-2.1": "convert_qwen_image21_transformer_checkpoint_to_diffusers",
    "wan": "convert_wan_transformer_to_diffusers",
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "hunyuan-video": "convert_hunyuan_video_transformer_to_diffusers",
    "krea2": "convert_krea2_transformer_checkpoint_to_diffusers",
    "cosmos-predict2": "convert_cosmos_transformer_checkpoint_to_diffusers",
    "ltx": "convert_ltx_transformer_checkpoint_to_diffusers",
    "ltx2": "convert_ltx2_transformer_to_diffusers",
    "sana": "convert_sana_transformer_to_diffusers",
    "auraflow": "convert_auraflow_transformer_checkpoint_to_diffusers",
}
TRUE_WIDTHS: dict[str, dict[str, Any]] = {
    "flux": {"attention_head_dim": 128, "num_attention_heads": 24, "axes_dims_rope": (16, 56, 56)},
    "chroma": {"attention_head_dim": 128, "num_attention_heads": 24, "axes_dims_rope": (16, 56, 56)},
    "hunyuan-video": {"attention_head_dim": 128, "num_attention_heads": 24, "rope_axes_dim": (16, 56, 56)},
    "lumina2": {
        "hidden_size": 2304,
        "num_attention_heads": 24,
        "num_kv_heads": 8,
        "axes_dim_rope": (32,) * 3,
    },
}
"""Options of models whose converters know one width alone."""
UNUSED = {
    "sana": {"pos_embed": (1, 4, 16), "y_embedder.y_embedding": (2, 12)},
}
"""Tensors of single files that converters ask for and drop."""


def shapes_for(name: str) -> Shapes:
    return small.small_shapes(name, **TRUE_WIDTHS.get(name, {}))


@pytest.mark.parametrize(("name", "number"), MAPS)
def test_every_key_has_a_name_in_the_single_file_and_is_read_back(name: str, number: int) -> None:
    shapes = small.small_shapes(name)
    key_map = namings(name, shapes)[number]
    singles = {key: single_key(key_map, key) for key in shapes}
    assert None not in singles.values(), [key for key, single in singles.items() if single is None]
    for key, single in singles.items():
        found = named(key_map, str(single))
        assert found is not None and key in found.keys
        assert all(part in shapes for part in found.keys), found
    assert all(len(layer.parts) > 1 or single for layer, single in _layers(key_map, shapes))


def _layers(key_map: KeyMap, shapes: Shapes) -> list[tuple[Any, str]]:
    found = []
    for key in shapes:
        single = single_key(key_map, key)
        layer = named(key_map, str(single))
        assert layer is not None
        found.append((layer.layer, str(single)))
    return found


@pytest.mark.parametrize(("name", "number"), MAPS)
def test_a_single_file_is_recognised_and_all_its_rows_are_targets(name: str, number: int) -> None:
    """By the file's own names and by diffusers', with shapes as diffusers has them."""
    shapes = small.small_shapes(name)
    single = {
        key: tuple(tensor.shape)
        for key, tensor in as_single_file(namings(name, shapes)[number], _meta(shapes)).items()
    }
    for prefix in ("", "model.diffusion_model.", "diffusion_model.", "net.", "model."):
        known = recognise(prefix + key for key in single)
        assert known is not None and known.name == name
    assert recognise(shapes) is known or recognise(shapes).name == name  # type: ignore[union-attr]
    targets = find_targets({f"model.diffusion_model.{key}": shape for key, shape in single.items()})
    for key, shape in shapes.items():
        if not key.endswith(".weight") or len(shape) < 2 or "embed_tokens" in key:
            continue
        target = targets.get(ModuleName("transformer", key.removesuffix(".weight")))
        if target is None:  # swapped: reached by the file's own name
            own = str(single_key(namings(name, shapes)[number], key)).removesuffix(".weight")
            target = targets[ModuleName("transformer", own)]
        assert target.shape == shape, key


def _meta(shapes: Shapes) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_row_is_where_diffusers_puts_it(name: str) -> None:
    """Each row has a number of its own; a row of a matrix is a number, and so is each element of the rest."""
    import diffusers.loaders.single_file_utils as theirs

    shapes, tagged, count = shapes_for(name), {}, 0
    for key, shape in shapes.items():
        rows = shape[0] * (shape[1] if _is_table(key) and name == "krea2" else 1)
        tagged[key] = torch.arange(count, count + rows, dtype=torch.float64)
        count += rows
    maps = record_of(name).key_maps
    key_map = maps[-1] if name == "hunyuan-video" else maps[0]  # of Tencent's naming alone
    single = as_single_file(key_map, tagged, shapes)
    single |= {key: torch.empty(shape) for key, shape in UNUSED.get(name, {}).items()}
    assert single.keys() != tagged.keys()
    given = {f"net.{key}": value for key, value in single.items()} if "cosmos" in name else single
    found = getattr(theirs, CONVERTERS[name])(dict(given))
    missing = {key: value for key, value in found.items() if value is None}
    assert found.keys() - missing.keys() == tagged.keys()
    for key, value in tagged.items():
        assert torch.equal(found[key].flatten(), value), key


def _is_table(key: str) -> bool:
    return re.search(r"scale_shift_table$", key) is not None
