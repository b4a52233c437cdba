"""The experiments by name."""

from __future__ import annotations

from paramerge.training.experiments.composition import COMPOSITION
from paramerge.training.experiments.editing import EDITING
from paramerge.training.experiments.gamma import GAMMA
from paramerge.training.experiments.order import ORDER
from paramerge.training.experiments.plan import Experiment
from paramerge.training.experiments.rates import RATES
from paramerge.training.experiments.subsets import SUBSETS_EXPERIMENT
from paramerge.training.experiments.table1 import TABLE1
from paramerge.training.experiments.table2 import TABLE2

__all__ = ["EXPERIMENTS"]

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (TABLE1, TABLE2, COMPOSITION, EDITING, ORDER, GAMMA, SUBSETS_EXPERIMENT, RATES)
}
"""Every table and figure of the paper that is rerun here."""
