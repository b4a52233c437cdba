"""Merge methods against sd-mecha 1.1.8 and mergekit 0.1.5, where these are installed (neither is needed).

Tensor by tensor, in float64. What these tools compute otherwise is in docs/merge.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from merge_formulas import Array
from merge_trials import METHODS, SHAPES, merged, models_of, read

TENSORS = ("matrix", "conv", "vector")


def mecha(module: str, name: str) -> Callable[..., torch.Tensor]:
    """A method of sd-mecha as a function of tensors."""
    pytest.importorskip("sd_mecha", reason="sd-mecha is not installed: pip install sd-mecha==1.1.8")
    found = importlib.import_module(f"sd_mecha.extensions.builtin.merge_methods.{module}")
    function: Callable[..., torch.Tensor] = getattr(found, name).__wrapped__
    return function


def kit(name: str, tensors: Sequence[torch.Tensor], base: int | None, **parameters: Any) -> torch.Tensor:
    """What a method of mergekit makes of tensors."""
    reason = "mergekit is not installed: pip install mergekit==0.1.5"
    pytest.importorskip("mergekit", reason=reason)
    pytest.importorskip("immutables", reason=reason)
    registry = importlib.import_module("mergekit.merge_methods.registry")
    groups = importlib.import_module("mergekit.merge_methods.base")
    method = registry.get(name)
    group = groups.TensorGroup.from_tensors([t.clone() for t in tensors], base_index=base)
    others = [entry.id for entry in group.non_base]
    bound = {
        key: groups.PerInputValues(list(zip(others, value, strict=True)))
        if isinstance(value, tuple)
        else value
        for key, value in parameters.items()
    }
    result: torch.Tensor = method.merge_group(group, **bound)
    return result


def check(found: Array, expected: torch.Tensor, slack: float = 1e-12) -> None:
    assert np.abs(found - expected.numpy()).max() <= slack * max(1.0, np.abs(found).max())


def stored(files: Sequence[Path], name: str) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in read(files, name)]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return models_of(tmp_path, 4, ("F64",))


@pytest.mark.parametrize("name", TENSORS)
def test_methods_of_two_are_sd_mechas(name: str, files: list[Path]) -> None:
    a, b = stored(files[:2], name)
    for share in (0.3, 0.9):
        weights = {"weights": (1 - share, share)}
        alpha = torch.tensor(share, dtype=torch.float64)
        for method in ("weighted-sum", "slerp"):
            theirs = mecha("linear", method.replace("-", "_"))
            both = (a, b) if method == "slerp" else ({"k": a}, {"k": b})
            more = {} if method == "slerp" else {"key": "k"}
            check(merged(files[:2], name, METHODS[method], weights), theirs(*both, alpha, **more), 1e-9)
        for method in ("cosine-a", "cosine-b"):
            theirs = mecha("cosine", f"add_{method.replace('-', '_')}")
            check(merged(files[:2], name, METHODS[method], {"strength": share}), theirs(a, b, alpha))


@pytest.mark.parametrize("name", TENSORS)
def test_methods_of_three_are_sd_mechas(name: str, files: list[Path]) -> None:
    a, b, c = stored(files[:3], name)
    for strength in (0.4, 1.0):
        given, alpha = {"strength": strength}, torch.tensor(strength, dtype=torch.float64)
        mask = mecha("linear", "train_difference_mask")(a, b, c, alpha)
        check(merged(files[:3], name, METHODS["train-difference"], given), a + mask * (b - c))
        part = mecha("linear", "perpendicular_component")(a - c, b - c)
        check(merged(files[:3], name, METHODS["perpendicular"], given), a + strength * part)
        added = mecha("linear", "add_difference")({"k": a}, {"k": b - c}, alpha, key="k")
        check(merged(files[:3], name, METHODS["add-difference"], given), added)


@pytest.mark.parametrize("name", TENSORS)
def test_the_median_is_sd_mechas(name: str, files: list[Path]) -> None:
    models = stored(files, name)
    median = mecha("ties", "geometric_median")(*models, maxiter=2000)
    check(merged(files, name, METHODS["geometric-median"], {}), median, 1e-6)


@pytest.mark.parametrize("name", TENSORS)
def test_sums_of_differences_are_mergekits(name: str, files: list[Path]) -> None:
    models = stored(files, name)
    size = models[0].numel()
    density = round(size * 0.4) / size + 1e-9  # the same number of elements, cut off or rounded
    weights = (0.5, 0.8, 0.3)
    common = {"weight": weights, "lambda": 0.7, "int8_mask": False}
    theirs = kit("ties", models, 0, density=(density,) * 3, normalize=True, rescale=False, **common)
    given = {"weights": weights, "strength": 0.7, "density": density}
    check(merged(files, name, METHODS["ties"], given), theirs)
    top = round(size * 0.1) / size + 1e-9
    theirs = kit(
        "breadcrumbs",
        models,
        0,
        density=(density,) * 3,
        gamma=(top,) * 3,
        normalize=False,
        rescale=False,
        **common,
    )
    check(merged(files, name, METHODS["breadcrumbs"], {**given, "outliers": top}), theirs)
    theirs = kit("model_stock", models, 0, filter_wise=False)
    check(merged(files, name, METHODS["model-stock"], {}), theirs)


@pytest.mark.parametrize("name", TENSORS)
def test_the_spherical_mean_is_mergekits(name: str, files: list[Path]) -> None:
    models = stored(files, name)
    theirs = kit("karcher", models, None, max_iter=200, tol=1e-12)
    check(merged(files, name, METHODS["slerp"], {}), theirs, 1e-9)
    assert len(SHAPES) > len(TENSORS)
