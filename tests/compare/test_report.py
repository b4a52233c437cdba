"""The report: one file that loads nothing, says nothing unescaped, and shows every layer once."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from merging import (
    ATTENTION,
    CONV,
    CROSS,
    SHAPES,
    TEXT,
    draw_bases,
    draw_factors,
    write_bases,
    write_factors,
)

from paramerge.compare.compare import Comparison, compare
from paramerge.compare.heatmap import heat_maps
from paramerge.compare.report import render_report, write_report
from paramerge.compare.summary import as_dict, grouped, severity, standing_out, totals_of
from paramerge.formats import open_adapter

VOID = {"meta", "link", "input", "rect", "br"}


class Page(HTMLParser):
    """Tags, attributes and texts of a page; refuses tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def count(self, tag: str, **wanted: str) -> int:
        return sum(
            name == tag and all(attributes.get(key) == value for key, value in wanted.items())
            for name, attributes in self.elements
        )


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    """A PaRa, a PaRa and two LoRAs; the first name is markup."""
    names = (
        "<img src=x onerror=alert(1)> & \"'.safetensors",
        "b.safetensors",
        "c.safetensors",
        "d.safetensors",
    )
    paths = [
        write_bases(tmp_path / names[0], draw_bases(0, 2)),
        write_bases(tmp_path / names[1], draw_bases(1, 3)),
        write_factors(tmp_path / names[2], draw_factors(2, 2), 1.0),
        write_factors(tmp_path / names[3], draw_factors(3, 2, [ATTENTION, CONV]), -1.0),
    ]
    return compare([open_adapter(path) for path in paths])


def test_nothing_is_loaded_from_anywhere(comparison: Comparison) -> None:
    text = render_report(comparison)
    for tag, attributes in Page(text).elements:
        for key, value in attributes.items():
            if key in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
                assert tag in ("a", "link") and (value or "").startswith(("#", "data:,")), (tag, key, value)
            assert not key.startswith("on")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)


def test_names_of_files_are_text(comparison: Comparison) -> None:
    page = Page(render_report(comparison))
    assert page.count("img") == 0 and page.count("script") == 1
    name = comparison.adapters[0].path.name
    assert sum(name in text for text in page.texts) >= 4
    assert page.count("section") == 6


def test_every_layer_is_in_the_table_and_every_cell_in_the_map(comparison: Comparison) -> None:
    page = Page(render_report(comparison))
    layers = sum(len(pair.layers) for pair in comparison.pairs)
    assert page.count("tr") == layers + 6 + 1 + len(comparison.adapters)
    tips = [attributes["data-tip"] or "" for _, attributes in page.elements if "data-tip" in attributes]
    cells = sum(
        len(panel.cells) for pair in comparison.pairs for one in heat_maps(pair) for panel in one.panels
    )
    assert len(tips) == cells > layers
    assert any("Friedrichs cosine: " in tip and "unrelated adapters: " in tip for tip in tips)


def test_numbers_of_the_map_are_those_of_the_layers(comparison: Comparison) -> None:
    pair = comparison.pairs[0]
    first = heat_maps(pair)[0]
    values = {cell.tip.splitlines()[-1]: cell for panel in first.panels for cell in panel.cells}
    assert len(values) == len(SHAPES)
    for layer in pair.layers:
        (cell,) = [cell for tip, cell in values.items() if layer.name.path.endswith(tip.rpartition(".")[2])]
        assert f"{layer.friedrichs:.4f}" in cell.tip  # type: ignore[union-attr]
        assert cell.shade == pytest.approx(layer.friedrichs / first.end)  # type: ignore[union-attr]
    assert first.end >= max(layer.friedrichs for layer in pair.layers)  # type: ignore[union-attr]


def test_cancelling_loras_have_the_other_colour(tmp_path: Path) -> None:
    factors = draw_factors(0, 2, [TEXT, CROSS])
    a = write_factors(tmp_path / "a.safetensors", factors, 2.0)
    b = write_factors(tmp_path / "b.safetensors", factors, -2.0)
    comparison = compare([open_adapter(a), open_adapter(b)])
    (cosine, *_) = heat_maps(comparison.pairs[0])
    assert all(cell.negative and cell.shade == pytest.approx(1.0) for p in cosine.panels for cell in p.cells)
    text = render_report(comparison)
    assert "cancel each other" in text and 'class="minus"' in text and "\N{MINUS SIGN}1.00" in text


def test_one_cell_shows_the_worst_of_its_layers(tmp_path: Path) -> None:
    """SDXL's transformer blocks share a cell: the largest and the mean are in its tip."""
    names = [f"unet.mid_block.attentions.0.transformer_blocks.{i}.attn1.to_q" for i in range(5)]
    rng = np.random.default_rng(0)
    paths = [
        write_bases(
            tmp_path / f"{i}.safetensors",
            {n: rng.standard_normal((20, 3)) for n in names},
            architecture="sdxl",
        )
        for i in range(2)
    ]
    pair = compare([open_adapter(path) for path in paths]).pairs[0]
    (panel,) = heat_maps(pair)[0].panels
    (cell,) = panel.cells
    cosines = [severity(layer) for layer in pair.layers]
    assert f"{max(cosines):.4f} (largest of 5, mean {np.mean(cosines):.4f})" in cell.tip
    assert short(pair.layers[int(np.argmax(cosines))]) in cell.tip


def short(layer: object) -> str:
    return f"tb.{layer.name.path.split('.')[4]}."  # type: ignore[attr-defined]


def test_the_same_comparison_gives_the_same_bytes(comparison: Comparison, tmp_path: Path) -> None:
    write_report(comparison, tmp_path / "1.html")
    again = compare(comparison.adapters)
    write_report(again, tmp_path / "2.html")
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_light_and_dark_have_a_colour_for_everything(comparison: Comparison) -> None:
    """Each variable that the style uses is set in both lists."""
    style = render_report(comparison).partition("<style>")[2].partition("</style>")[0]
    light, dark = re.findall(r":root \{([^}]*)\}", style)
    used = set(re.findall(r"var\((--[a-z-]+)\)", style))
    for colours in (light, dark):
        assert used == set(re.findall(r"(--[a-z-]+):", colours))


def test_totals_add_up(comparison: Comparison) -> None:
    content = as_dict(comparison)
    pairs = content["pairs"]
    assert isinstance(pairs, list) and [pair["kind"] for pair in pairs] == [
        "para-para", "para-lora", "para-lora", "para-lora", "para-lora", "lora-lora"
    ]  # fmt: skip
    first = comparison.pairs[0]
    groups = grouped(first.layers)
    assert sum(len(layers) for _, layers in groups) == len(first.layers)
    total = totals_of(first.layers)
    parts = [totals_of(layers) for _, layers in groups]
    for number in ("layers", "shared", "joint_rank", "sequential_rank"):
        assert getattr(total, number) == sum(getattr(part, number) for part in parts)
    assert total.friedrichs_largest == max(part.friedrichs_largest for part in parts)  # type: ignore[union-attr]
    assert [severity(layer) for layer in standing_out(first.layers, 2)] == sorted(
        map(severity, first.layers), reverse=True
    )[:2]
    assert totals_of([]) is None


def test_totals_of_norms_are_those_of_all_layers_as_one(comparison: Comparison) -> None:
    """The share lost and the cosine, over layers, weigh a layer by its norm."""
    mixed, loras = comparison.pairs[1], comparison.pairs[-1]
    norms = np.array([layer.norm for layer in mixed.layers])  # type: ignore[union-attr]
    lost = np.array([layer.lost for layer in mixed.layers])  # type: ignore[union-attr]
    total = totals_of(mixed.layers)
    assert total.lost_lora_then_para == pytest.approx(np.linalg.norm(norms * lost) / np.linalg.norm(norms))  # type: ignore[union-attr]
    pairs = np.array([layer.norms for layer in loras.layers])  # type: ignore[union-attr]
    inner = sum(layer.cosine * np.prod(layer.norms) for layer in loras.layers)  # type: ignore[union-attr]
    expected = inner / np.prod(np.linalg.norm(pairs, axis=0))
    assert totals_of(loras.layers).cosine == pytest.approx(expected)  # type: ignore[union-attr]
