"""The frozen model's linear layers in 8 bits, by torchao: half the memory of bf16.

The adapter starts from the model as it is and is trained beside the quantised one; its file is for the model
as it is.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from torch import nn

from paramerge.errors import UsageError
from paramerge.training.config import TrainConfig

__all__ = ["METHODS", "quantise_frozen"]

METHODS = ("para", "lora")
"""Methods whose layers only call the frozen ones, and never look at their weights."""
_CONFIGURATIONS = {"int8": "Int8WeightOnlyConfig", "fp8": "Float8WeightOnlyConfig"}


def quantise_frozen(model: nn.Module, config: TrainConfig) -> int:
    """Quantise the linear layers of ``model`` that have no gradient, in place; how many.

    A row of a weight has a scale of its own: int8 keeps a weight to about 0.4 percent, fp8 to 2.5.

    Raises
    ------
    UsageError
        The method looks at weights, or torchao is not installed.
    """
    if config.quantise == "none":
        return 0
    if config.method not in METHODS:
        raise UsageError(
            "this method looks at the weights that would be quantised",
            where="quantise",
            expected=f"none, or method {' or '.join(METHODS)}",
            found=f"{config.quantise} with {config.method}",
        )
    if find_spec("torchao") is None:
        raise UsageError(
            "a quantised model needs a package that is not installed",
            where="quantise",
            expected="torchao",
            found=f"{config.quantise} without it",
            hint="pip install torchao",
        )
    import torchao.quantization as library

    count = 0

    def chosen(module: nn.Module, name: str) -> bool:
        nonlocal count
        found = isinstance(module, nn.Linear) and not module.weight.requires_grad
        count += found
        return found

    settings: Any = getattr(library, _CONFIGURATIONS[config.quantise])()
    library.quantize_(model, settings, filter_fn=chosen)
    return count
