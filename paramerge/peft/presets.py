"""The paper's settings as configurations: the subsets of its Table 3 and its rank boundary of 1/40."""

from __future__ import annotations

from typing import Any

from paramerge.models.subsets import PAPER_GAMMA, subset
from paramerge.peft.config import PaRaConfig


def paper_config(
    name: str = "ex-ca", r: int = 4, *, gamma_layers: str = "conv", **settings: Any
) -> PaRaConfig:
    """A :class:`PaRaConfig` for a UNet: one of :data:`~paramerge.models.subsets.SUBSETS`, gamma = 1/40.

    ``gamma_layers`` is ``conv``, as the sizes of Table 3 have it, or ``all``, as Table 5 at r = 32. Other
    settings go to the configuration, and win.

    Raises
    ------
    UsageError
        There is no such subset, or a setting is wrong.
    """
    chosen: dict[str, Any] = {
        "r": r,
        "target_modules": subset(name).pattern,
        "gamma": float(PAPER_GAMMA),
        "gamma_layers": gamma_layers,
    }
    return PaRaConfig(**{**chosen, **settings})
