"""A frozen model in 8 bits: what is trained beside it is nearly what is trained beside the whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import settings

from paramerge.errors import UsageError
from paramerge.formats import open_adapter
from paramerge.training import quantised
from paramerge.training.loop import train
from paramerge.training.quantised import quantise_frozen


def config_of(**more: Any) -> Any:
    return settings(Path("m"), Path("p"), Path("o"), **more)


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.01), ("fp8", 0.05)])
def test_layers_without_a_gradient_are_quantised(kind: str, bound: float) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 16))
    model[0].requires_grad_(False)
    x = torch.randn(5, 32, requires_grad=True)
    wanted = model(x)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), x)
    trained = model[1].weight
    assert quantise_frozen(model, config_of(quantise=kind)) == 1
    assert model[1].weight is trained
    found = model(x)
    (other,) = torch.autograd.grad(found.square().sum(), x)
    for a, b in ((found, wanted), (other, gradient)):
        assert 0 < float((a - b).detach().norm()) < bound * float(b.detach().norm())


@pytest.mark.parametrize("method", ["para", "lora"])
def test_a_training_beside_a_quantised_model(method: str, sd: Path, dog: Path, tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    more: dict[str, Any] = {"steps": 2, "init": "orthonormal", "method": method, "subset": "sao"}
    plain = train(settings(sd, dog, tmp_path / "a", **more))
    other = train(settings(sd, dog, tmp_path / "b", quantise="int8", gradient_checkpointing=True, **more))
    assert other.losses != plain.losses
    np.testing.assert_allclose(other.losses, plain.losses, rtol=0.02)
    assert open_adapter(other.adapter[0]).modules.keys() == open_adapter(plain.adapter[0]).modules.keys()


def test_methods_that_look_at_weights_and_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="looks at the weights"):
        quantise_frozen(nn.Linear(2, 2), config_of(quantise="int8", method="svdiff"))
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed") as caught:
        quantise_frozen(nn.Linear(2, 2), config_of(quantise="fp8"))
    assert caught.value.hint == "pip install torchao"
    assert quantise_frozen(nn.Linear(2, 2), config_of()) == 0
