"""Channels last, torch.compile and TensorFloat-32: the same training, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from training_runs import settings

from paramerge.errors import UsageError
from paramerge.peft.bases import basis_of
from paramerge.peft.projection import project_out
from paramerge.training.loop import train
from paramerge.training.speed import prepared_for_speed, tensor_float_32


def config_of(**more: Any) -> Any:
    return settings(Path("m"), Path("p"), Path("o"), **more)


def test_channels_last_is_the_same_training(sd: Path, dog: Path, tmp_path: Path) -> None:
    more: dict[str, Any] = {"steps": 2, "init": "orthonormal", "subset": "ex-ca"}
    plain = train(settings(sd, dog, tmp_path / "a", **more))
    other = train(settings(sd, dog, tmp_path / "b", channels_last=True, **more))
    np.testing.assert_allclose(other.losses, plain.losses, rtol=1e-3)
    assert other.config_sha256 != plain.config_sha256


def test_a_model_without_convolutions_has_no_channels_to_put_last() -> None:
    with pytest.raises(UsageError, match="no convolutions"):
        prepared_for_speed(nn.Linear(2, 2), config_of(channels_last=True))


def test_tensor_float_32_needs_a_gpu_and_no_compiler() -> None:
    with pytest.raises(UsageError) as caught, tensor_float_32(config_of(tf32=True), torch.device("cpu")):
        raise AssertionError
    assert caught.value.where == "tf32"
    with pytest.raises(UsageError, match="compiled"):
        prepared_for_speed(nn.Conv2d(1, 1, 3), config_of(tf32=True, compile=True))


def test_tensor_float_32_ends_with_the_training() -> None:
    kinds: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [kind.allow_tf32 for kind in kinds]
    with pytest.raises(RuntimeError), tensor_float_32(config_of(tf32=True), torch.device("cuda")):
        assert all(kind.allow_tf32 for kind in kinds)
        raise RuntimeError
    assert [kind.allow_tf32 for kind in kinds] == before


def test_paras_own_products_are_never_of_tensor_float_32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the forward and the backward pass; what is around them keeps it."""
    matmul: Any = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    seen: list[bool] = []
    for name in ("addmm", "baddbmm", "bmm"):
        original = getattr(torch, name)

        def spy(*arguments: Any, original: Any = original, **more: Any) -> Any:
            seen.append(matmul.allow_tf32)
            return original(*arguments, **more)

        monkeypatch.setattr(torch, name, spy)
    B = torch.randn(6, 2, requires_grad=True)
    y = torch.randn(5, 6, requires_grad=True)
    matmul.allow_tf32 = True
    try:
        project_out(y, basis_of(B, "qr", 0.0), torch.ones(6), 1.0).square().sum().backward()
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before
    assert seen
    assert not any(seen)


@pytest.mark.slow  # half a minute of tracing
@pytest.mark.parametrize("method", ["para", "lora"])
def test_a_compiled_training_is_the_same(
    method: str, sd: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, Any] = {"steps": 2, "init": "orthonormal", "method": method, "subset": "sao"}
    plain = train(settings(sd, dog, tmp_path / "a", **more))
    compiled = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model: compiled(model, backend="aot_eager"))
    other = train(settings(sd, dog, tmp_path / "b", compile=True, **more))
    np.testing.assert_allclose(other.losses, plain.losses, rtol=1e-4)
