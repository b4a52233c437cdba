"""From and to PEFT's own PaRa: ``DeftConfig(para=True, decomposition_method="qr")``.

Both mean ``W - Q Q^T W`` with Q from a QR of the trained matrix, which PEFT calls ``deft_P``. PEFT's is for
linear layers and has no rank pattern, gamma or init.
"""

from __future__ import annotations

from collections.abc import Mapping

from peft import DeftConfig
from torch import Tensor

from paramerge.errors import FamilyError, UsageError
from paramerge.listing import listed
from paramerge.peft.config import PaRaConfig

_OURS, _THEIRS = ".para_B", ".deft_P"


def para_config(config: DeftConfig) -> PaRaConfig:
    """The PaRa configuration equal to a DEFT configuration.

    Raises
    ------
    FamilyError
        It injects as well (``para=False``), or projects by relu, which is no orthogonal projection.
    """
    if not config.para or config.decomposition_method != "qr":
        raise FamilyError(
            "this DEFT adapter is no PaRa",
            where="DeftConfig",
            expected='para=True and decomposition_method="qr"',
            found=f"para={config.para} and decomposition_method={config.decomposition_method!r}",
        )
    return PaRaConfig(
        r=config.r,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        init="orthonormal",
        inference_mode=config.inference_mode,
        base_model_name_or_path=config.base_model_name_or_path,
        task_type=config.task_type,
    )


def deft_config(config: PaRaConfig) -> DeftConfig:
    """The DEFT configuration equal to a PaRa's.

    Raises
    ------
    UsageError
        It has layers of several ranks, which DEFT has not: a rank pattern, or a gamma.
    """
    if config.rank_pattern or config.gamma is not None:
        raise UsageError(
            "the layers have different ranks, and DEFT has one for all",
            where="PaRaConfig",
            expected="no rank_pattern and no gamma",
            found=f"rank_pattern={config.rank_pattern}, gamma={config.gamma}",
        )
    return DeftConfig(
        r=config.r,
        target_modules=config.target_modules,
        exclude_modules=config.exclude_modules,
        para=True,
        decomposition_method="qr",
        inference_mode=config.inference_mode,
        base_model_name_or_path=config.base_model_name_or_path,
        task_type=config.task_type,
    )


def para_state_dict(deft: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a saved DEFT adapter's tensors (``...deft_P``) to a PaRa's; raises FamilyError for others."""
    return _renamed(deft, _THEIRS, _OURS)


def deft_state_dict(para: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a saved PaRa's tensors (``...para_B``) to a DEFT adapter's; raises FamilyError for others."""
    return _renamed(para, _OURS, _THEIRS)


def _renamed(state: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    if other := [key for key in state if not key.endswith(old)]:
        raise FamilyError(
            "these tensors are no PaRa's", found=listed(other), expected=f"keys that end in {old}"
        )
    return {key.removesuffix(old) + new: value for key, value in state.items()}
