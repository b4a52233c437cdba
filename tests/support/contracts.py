"""The contract that every family keeps: a suite that a class for each family inherits.

A class names its family; each test then runs for all forms of it in :mod:`family_cases`, on a linear layer, a
1x1 and a 3x3 convolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from family_cases import CASES, Case, Matrix, Shape, Tensors

from paramerge.adapters import LayerModule
from paramerge.adapters.contract import AdditiveModule
from paramerge.formats import open_adapter

EPS = float(np.finfo(np.float64).eps)
LAYERS: dict[str, Shape] = {
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q": (16, 24),
    "unet.down_blocks.0.attentions.0.proj_in": (8, 16, 1, 1),
    "unet.down_blocks.0.resnets.0.conv1": (16, 8, 3, 3),
}


class FamilyContract:
    """What every module of every family must do."""

    family: ClassVar[str]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        cases = [case for case in CASES if case.family == self.family]
        pairs = [(case, layer) for case in cases for layer, shape in LAYERS.items() if case.suits(shape)]
        names = [f"{case}-{layer.rpartition('.')[2]}" for case, layer in pairs]
        metafunc.parametrize(("case", "layer"), pairs, ids=names)

    @pytest.fixture
    def opened(self, case: Case, layer: str, tmp_path: Path) -> tuple[LayerModule, Tensors, Matrix, Shape]:
        """The module, the stored tensors, a weight and its shape."""
        shape = LAYERS[layer]
        path, stored = case.write(tmp_path / "a", {layer: shape})
        modules = [
            module for module in open_adapter(path).modules.values() if not module.name.path.endswith(".bias")
        ]
        assert [str(module.name) for module in modules] == [layer]
        W = np.random.default_rng(5).standard_normal((shape[0], int(np.prod(shape[1:]))))
        return modules[0], stored[layer], W, shape

    def test_is_its_formula(self, case: Case, opened: tuple[LayerModule, Tensors, Matrix, Shape]) -> None:
        module, tensors, W, shape = opened
        expected = case.change(tensors, W, shape)
        found = module.transform(W.copy())
        assert found.dtype == np.float64 and found.shape == W.shape
        assert np.linalg.norm(found - expected) <= 200 * max(W.shape) * EPS * np.linalg.norm(expected)
        # the change itself, not only its sum with a weight that could hide it
        assert np.linalg.norm(expected - W) > 1e-3 * np.linalg.norm(W)
        assert module.family == self.family

    def test_a_strength_goes_from_the_weight_to_the_result(
        self, case: Case, opened: tuple[LayerModule, Tensors, Matrix, Shape]
    ) -> None:
        module, _, W, _ = opened
        assert np.allclose(module.apply(W, 0.0), W, rtol=0, atol=1e-12)
        whole, half = module.apply(W, 1.0), module.apply(W, 0.5)
        assert np.array_equal(whole, module.transform(W))
        if case.linear_strength:
            assert np.allclose(half - W, 0.5 * (whole - W), rtol=0, atol=1e-12)

    def test_says_whether_it_depends_on_the_weight(
        self, case: Case, opened: tuple[LayerModule, Tensors, Matrix, Shape]
    ) -> None:
        module, _, W, _ = opened
        one, other = module.delta(W), module.delta(3 * W + 1)
        same = np.linalg.norm(one - other) < 1e-9 * np.linalg.norm(one)
        assert module.depends_on_weight == case.dependent == (not same)

    def test_rank_bound_is_a_bound(self, opened: tuple[LayerModule, Tensors, Matrix, Shape]) -> None:
        module, _, W, _ = opened
        S = np.linalg.svd(module.delta(W), compute_uv=False)
        assert int(np.sum(S / S[0] > 1e-9)) <= (module.rank_bound or min(W.shape))
        assert module.rank >= 1

    def test_knows_what_it_fits(self, opened: tuple[LayerModule, Tensors, Matrix, Shape]) -> None:
        module, _, _, shape = opened
        assert module.fits(shape)
        assert not module.fits((shape[0] + 1, shape[1] + 1, *shape[2:]))
        assert module.out_features in (None, shape[0])
        assert module.in_features in (None, int(np.prod(shape[1:])))

    def test_norm_is_that_of_the_change(self, opened: tuple[LayerModule, Tensors, Matrix, Shape]) -> None:
        module, _, W, _ = opened
        if module.depends_on_weight:
            assert module.norm() is None
        else:
            assert module.norm() == pytest.approx(np.linalg.norm(module.delta(W)), rel=1e-6)

    def test_names_all_its_keys(
        self, case: Case, layer: str, opened: tuple[LayerModule, Tensors, Matrix, Shape]
    ) -> None:
        module, tensors, _, _ = opened
        named = {case.key(layer, ending) for ending in tensors}
        alpha_means_nothing = "lokr" in case.name and "whole" in case.name
        assert set(module.keys) == named or (alpha_means_nothing and set(module.keys) <= named)
        assert {tensor.key for tensor in module.tensors} <= set(module.keys)
        assert module.dtype == "F32"


class AdditiveContract(FamilyContract):
    """What families whose change does not depend on the weight must do besides."""

    def test_rows_are_those_of_the_whole(self, opened: tuple[LayerModule, Tensors, Matrix, Shape]) -> None:
        module, _, W, _ = opened
        assert isinstance(module, AdditiveModule)
        change = module.change()
        whole = change.whole()
        assert change.shape == whole.shape == W.shape
        for start, stop in ((0, 1), (3, 7), (W.shape[0] - 2, W.shape[0])):
            assert np.array_equal(change.rows(start, stop), whole[start:stop]) or np.allclose(
                change.rows(start, stop), whole[start:stop], rtol=0, atol=1e-14
            )
        assert change.norm() == pytest.approx(np.linalg.norm(whole), rel=1e-12)
