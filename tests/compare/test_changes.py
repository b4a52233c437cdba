"""Adapters of any family compared by their changes, against dense matrices of the formulas."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from baking import lora_file, para_file, random_bases, random_factors, rounded, shapes_of, small_model, span
from family_cases import CASES, Case, Tensors

from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import main
from paramerge.compare.changes import ChangePair
from paramerge.compare.compare import PairComparison, compare
from paramerge.compare.pairs import MixedPair
from paramerge.compare.report import render_report
from paramerge.compare.summary import ChangeTotals, as_dict, totals_of
from paramerge.errors import FamilyError
from paramerge.formats import open_adapter
from paramerge.models.names import ModuleName
from paramerge.resolve.weights import BaseWeights

LAYERS = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.down_blocks.1.resnets.0.conv1",
)


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "base.safetensors", dtype="F32")


class Files:
    """A LoKr, a LoHa, an OFT, a PaRa and a LoRA on the same layers, and their tensors."""

    def __init__(self, base: Path, folder: Path) -> None:
        every = shapes_of(base)
        self.shapes = {layer: every[layer] for layer in LAYERS}
        self.paths: dict[str, Path] = {}
        self.tensors: dict[str, dict[str, Tensors]] = {}
        for name in ("lokr-w1-whole", "loha", "oft"):
            self.paths[name], self.tensors[name] = case_of(name).write(folder / name, self.shapes)
        self.bases = random_bases(self.shapes, list(LAYERS), 3)
        self.factors = random_factors(self.shapes, list(LAYERS), 2)
        self.paths["para"] = para_file(folder / "p.safetensors", self.bases, dtype="F32")
        self.paths["lora"] = lora_file(folder / "l.safetensors", self.factors, dtype="F32")

    def delta(self, name: str, layer: str, W: np.ndarray) -> np.ndarray:
        if name == "lora":
            up, down = (f.astype(np.float64).reshape(len(f), -1) for f in self.factors[layer])
            return up @ down
        return case_of(name).change(self.tensors[name][layer], W, self.shapes[layer]) - W

    def compared(self, *names: str, base: Path | None = None) -> PairComparison:
        opened = [open_adapter(self.paths[name]) for name in names]
        (pair,) = compare(opened, None if base is None else open_base(base)).pairs
        return pair


@pytest.fixture(scope="module")
def files(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(base, tmp_path_factory.mktemp("files"))


@pytest.mark.parametrize(
    ("one", "other"), [("lokr-w1-whole", "loha"), ("lora", "lokr-w1-whole"), ("oft", "lora")]
)
def test_cosine_and_norms(files: Files, base: Path, one: str, other: str) -> None:
    pair = files.compared(one, other, base=base if "oft" in (one, other) else None)
    assert pair.kind == "change-change" and len(pair.layers) == 2
    weights = BaseWeights(open_base(base))
    product, norms = 0.0, [0.0, 0.0]
    for layer in pair.layers:
        assert isinstance(layer, ChangePair)
        W = weights.matrix(layer.name)
        D1, D2 = files.delta(one, str(layer.name), W), files.delta(other, str(layer.name), W)
        assert layer.norms == pytest.approx((np.linalg.norm(D1), np.linalg.norm(D2)), rel=1e-9)
        assert layer.cosine == pytest.approx(np.sum(D1 * D2) / np.prod(layer.norms), abs=1e-9)
        product += float(np.sum(D1 * D2))
        norms = [norms[0] + np.linalg.norm(D1) ** 2, norms[1] + np.linalg.norm(D2) ** 2]
    totals = totals_of(pair.layers)
    assert isinstance(totals, ChangeTotals)
    assert totals.cosine == pytest.approx(product / np.sqrt(np.prod(norms)), abs=1e-9)
    assert totals.norms == pytest.approx(np.sqrt(norms), rel=1e-9)


@pytest.mark.parametrize("other", ["lokr-w1-whole", "oft"])
def test_what_a_para_takes(files: Files, base: Path, other: str) -> None:
    pair = files.compared(other, "para", base=base)
    assert (pair.kind, pair.first) == ("para-change", 1)
    weights = BaseWeights(open_base(base))
    for layer in pair.layers:
        assert isinstance(layer, MixedPair)
        W = weights.matrix(layer.name)
        D = files.delta(other, str(layer.name), W)
        Q = span(rounded(files.bases[str(layer.name)], "F32"))
        assert layer.lost == pytest.approx(np.linalg.norm(Q.T @ D) / np.linalg.norm(D), rel=1e-6)
        assert layer.refilled == pytest.approx(np.linalg.norm(Q.T @ D) / np.linalg.norm(Q.T @ W), rel=1e-6)


def test_a_family_that_depends_on_the_weight_needs_a_base(files: Files) -> None:
    with pytest.raises(FamilyError, match="what OFT changes depends on its weights"):
        files.compared("oft", "lora")


def test_a_norm_is_compared_too(base: Path, tmp_path: Path) -> None:
    from paramerge.files.writer import write_safetensors

    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, sign in zip(paths, (1.0, -1.0), strict=True):
        write_safetensors(path, {"lora_unet_conv_norm_out.w_norm": np.full(40, sign, np.float32)}, {})
    (pair,) = compare([open_adapter(path) for path in paths], open_base(base)).pairs
    (layer,) = pair.layers
    assert isinstance(layer, ChangePair)
    assert (layer.name, layer.relation) == (ModuleName("unet", "conv_norm_out.weight"), "cancel")


def test_the_report_and_the_tables_show_them(
    files: Files, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("lokr-w1-whole", "oft", "para", "lora")
    comparison = compare([open_adapter(files.paths[name]) for name in names], open_base(base))
    page = render_report(comparison)
    assert "LoKr" in page and "OFT" in page and page.count("norm of A") >= 1
    kinds = [pair["kind"] for pair in as_dict(comparison)["pairs"]]  # type: ignore[attr-defined]
    assert kinds.count("change-change") == 3 and kinds.count("para-change") == 2 and "para-lora" in kinds
    arguments = ["compare", *(str(files.paths[name]) for name in names), "--base", str(base)]
    for options in ([], ["--json"], ["--layers"]):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *options])
        assert not end.value.code
        text = capsys.readouterr().out
        assert json.loads(text) if options == ["--json"] else "PaRa and another family" in text
