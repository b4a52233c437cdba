"""paramerge's command line with nothing measured of what the output keeps: the other side of that cost.

python benchmarks/without_survival.py bake --base ...
"""

from __future__ import annotations

import sys

import torch

from paramerge.apply import dense
from paramerge.apply.survival import ChangesOf, Probe
from paramerge.cli.main import main


class Unmeasured(Probe):
    """Looks at nothing."""

    def before(self, rows: torch.Tensor, row: int) -> None:
        """Take no notice."""

    def meant(self, rows: torch.Tensor, row: int) -> None:
        """Take no notice."""

    def after(self, rows: torch.Tensor, row: int) -> None:
        """Take no notice."""

    def result(self, changes: ChangesOf) -> None:
        """Nothing."""


if __name__ == "__main__":
    dense.Probe = Unmeasured  # type: ignore[misc]
    main(sys.argv[1:])
