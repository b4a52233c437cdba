"""Every layer has a cell of its own kind, rows go through the model in order, short names stay distinct."""

from __future__ import annotations

import pytest
from blueprints import sd15, sdxl

from paramerge.compare.places import columns_in_order, place_of, short_name, sorted_rows
from paramerge.models.layer_kinds import layer_kind
from paramerge.models.names import ModuleName

BLUEPRINTS = {"sd15": sd15, "sdxl": sdxl}


def layers_of(architecture: str) -> list[ModuleName]:
    blueprint = BLUEPRINTS[architecture]()
    names = [
        ModuleName.parse(part.removesuffix(".weight"))
        for component in blueprint.components
        if component != "vae"
        for spec in blueprint.component(component)
        for part, shape in spec.parts
        if part.endswith(".weight") and len(shape) > 1
    ]
    return [name for name in names if layer_kind(name) != "other" and ".embeddings." not in name.path]


@pytest.mark.parametrize("architecture", ["sd15", "sdxl"])
def test_no_layer_is_without_a_place(architecture: str) -> None:
    names = layers_of(architecture)
    places = [place_of(name) for name in names]
    assert all(place.column != "other" for place in places)
    assert len({short_name(name) for name in names}) == len(names)
    assert max(len(short_name(name)) for name in names) <= 42


def test_only_transformer_blocks_share_a_cell() -> None:
    shared: dict[object, list[str]] = {}
    for name in layers_of("sdxl"):
        shared.setdefault(place_of(name), []).append(name.path)
    for paths in shared.values():
        assert len(paths) == 1 or all(".transformer_blocks." in path or "mid_block" in path for path in paths)
    assert max(map(len, shared.values())) == 10


def test_rows_are_in_the_order_of_the_model() -> None:
    rows = sorted_rows([place_of(name).row for name in layers_of("sd15") if name.component == "unet"][::-1])
    assert rows[:4] == ["time embedding", "conv in", "down 0.0", "down 0.1"]
    assert rows[4:6] == ["down 0 sampler", "down 1.0"]
    middle = rows.index("mid")
    assert rows[middle - 1].startswith("down 3") and rows[middle + 1] == "up 0.0"
    assert rows[-2:] == ["up 3.2", "conv out"]
    texts = sorted_rows(
        [place_of(name).row for name in layers_of("sdxl") if name.component == "text_encoder_2"]
    )
    assert texts[:3] == ["layer 0", "layer 1", "layer 2"] and texts[-2:] == ["layer 31", "text projection"]


def test_columns_are_in_the_order_of_a_block() -> None:
    assert columns_in_order({"ff 2", "self q", "other", "conv1"}) == ["conv1", "self q", "ff 2", "other"]
