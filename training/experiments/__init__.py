"""The paper's tables and figures, rerun: planned, carried out, judged.

``paramerge experiment`` on the command line. Each experiment is data (:mod:`registry`): cells to draw and
measure, and claims that are each put to a test of their own.
"""

from paramerge.training.experiments.budgets import BUDGETS
from paramerge.training.experiments.dataset import Dataset, Subject, open_dataset
from paramerge.training.experiments.plan import Budget, Experiment, Plan, make_plan
from paramerge.training.experiments.registry import EXPERIMENTS
from paramerge.training.experiments.run import Outcome, plan_as_dict, run_experiment
from paramerge.training.experiments.verdict import Claim, Line, Verdict, judge

__all__ = [
    "BUDGETS",
    "EXPERIMENTS",
    "Budget",
    "Claim",
    "Dataset",
    "Experiment",
    "Line",
    "Outcome",
    "Plan",
    "Subject",
    "Verdict",
    "judge",
    "make_plan",
    "open_dataset",
    "plan_as_dict",
    "run_experiment",
]
