"""PEFT's tuner of a family: the reader and the writer of its folders' configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paramerge.adapters.parts import Part
from paramerge.adapters.peft_config import TunerSettings, bad_option
from paramerge.errors import FamilyError


@dataclass(frozen=True, eq=False)
class Tuner:
    """PEFT's tuner of a family.

    Attributes
    ----------
    peft_type:
        PEFT's name for it: ``LOHA``.
    read:
        The settings of a configuration, checked; the text says where it is. It raises FamilyError for an
        option that changes what the tuner is, and AdapterError for an impossible value.
    options:
        The options for the layers of one model, beside their ranks and alphas; None where folders of it are
        only read.
    alpha:
        The option that says a layer's alpha.
    """

    peft_type: str
    read: Callable[[Mapping[str, object], str], TunerSettings]
    options: Callable[[Sequence[Part]], dict[str, object]] | None = None
    alpha: str = "alpha"


def refuse_biases(config: Mapping[str, object], where: str) -> None:
    """Refuse a configuration of a tuner that trained biases beside its own tensors.

    Raises
    ------
    AdapterError
        ``bias`` is no text.
    FamilyError
        It is not ``none``.
    """
    stated = config.get("bias", "none")
    if not isinstance(stated, str):
        raise bad_option("bias", stated, where, "none, all, or the tuner's own")
    if stated != "none":
        raise FamilyError(
            "this adapter comes with trained biases, which cannot be baked by this version",
            where=where,
            expected="bias: none",
            found=f"bias: {stated}",
        )


def uses_cores(parts: Sequence[Part], role: str) -> bool:
    """Whether convolutions have the core ``role``: all of a model that are larger than 1 x 1, or none.

    Raises
    ------
    FamilyError
        Some have one, which PEFT cannot build.
    """
    cores = [part for part in parts if role in part.tensors]
    flat = [part for part in parts if part not in cores and is_large_convolution(part)]
    if cores and flat:
        raise FamilyError(
            "some convolutions have cores and others have none, which PEFT cannot hold",
            where=flat[0].name,
            found=f"{len(cores)} with a core, {len(flat)} without",
            hint="convert to kohya, which can hold both",
        )
    return bool(cores)


def is_large_convolution(part: Part) -> bool:
    """Whether the layer is a convolution with a kernel of more than one element, by its name."""
    return part.name.path.split(".")[-1] in ("conv1", "conv2", "conv_in", "conv_out", "conv")
