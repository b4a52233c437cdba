"""``paramerge experiment``: a table or figure of the paper, rerun and judged."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paramerge import shipped
from paramerge.cli.call import print_json
from paramerge.cli.evaluate import (
    HUB_CLIP,
    Stages,
    clip_option,
    download_option,
    load_measures,
    require_packages,
    scorer,
)
from paramerge.cli.options import json_option
from paramerge.cli.paths import InputPath, OutputPath
from paramerge.cli.stopping import resumable
from paramerge.cli.threads import threads_for_model
from paramerge.cli.verbs import Verb

if TYPE_CHECKING:
    from paramerge.training.experiments.plan import Plan
    from paramerge.training.experiments.run import Outcome

NAMES = ("table1", "table2", "composition", "editing", "order", "gamma", "subsets", "rates")
"""The experiments; a test holds them equal to the library's own."""
_ALL = "all"
_BUDGETS = ("smoke", "small", "paper")
_DISTANCES = ("stlpips-alex", "lpips-alex", "lpips-vgg", "lpips-squeeze", "none")


@click.command(cls=Verb)
@click.argument("name", type=click.Choice((*NAMES, _ALL)))
@click.option(
    "--model",
    type=InputPath(),
    required=True,
    help=f"Diffusers folder or single file; {shipped.MODEL_NAME} is the one that ships.",
)
@click.option(
    "--data",
    type=InputPath(file_okay=False),
    required=True,
    help="A folder of pictures for each subject: the DreamBooth dataset's, or with a dataset.toml.",
)
@click.option(
    "--budget",
    type=click.Choice(_BUDGETS),
    default="small",
    show_default=True,
    help="Of every stage a little; of the shipped model on a CPU; the paper's protocol.",
)
@click.option("--seed", type=click.IntRange(0, 10**6), default=0, show_default=True, help="Of all chance.")
@clip_option
@download_option
@click.option(
    "--lpips",
    type=click.Choice(_DISTANCES),
    default=_DISTANCES[0],
    show_default=True,
    help="The network of the perceptual score.",
)
@click.option("--device", help="Such as cpu or cuda. Default: the GPU if there is one.")
@click.option(
    "-o",
    "--output",
    type=OutputPath(file_okay=False),
    default="experiments",
    show_default=True,
    help="A folder that all experiments may share, and so their adapters.",
)
@click.option("--dry-run", is_flag=True, help="Print the whole plan and its cost, and do nothing.")
@json_option
@click.pass_context
def experiment(
    ctx: click.Context,
    name: str,
    model: Path,
    data: Path,
    budget: str,
    seed: int,
    clip: str | None,
    download: bool,
    lpips: str,
    device: str | None,
    output: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Rerun a table or figure of the paper, or all; judge its claims.

    A run that was stopped goes on where it was. A claim's verdict is: holds, does not hold, or cannot be told
    at this scale. Of the paper's budget --dry-run prints everything that would be done.

    \b
    paramerge experiment table1 --model emoji-diffusion --data emoji-subjects/ --budget small
    paramerge experiment all --model sdxl.safetensors --data dreambooth/dataset/ --budget paper --dry-run
    """
    from paramerge.training.experiments.budgets import BUDGETS
    from paramerge.training.experiments.dataset import open_dataset
    from paramerge.training.experiments.plan import make_plan
    from paramerge.training.experiments.registry import EXPERIMENTS

    is_shipped = str(model) == shipped.MODEL_NAME
    place = model if dry_run else shipped.named_model(model)
    chosen, dataset = BUDGETS[budget], open_dataset(data)
    names = NAMES if name == _ALL else (name,)
    plans = [make_plan(EXPERIMENTS[each], chosen, place, dataset, seed) for each in names]
    clip = clip or (shipped.CONTRASTIVE if is_shipped else HUB_CLIP)
    if dry_run:
        _show_plans(plans, clip, lpips, as_json)
        return
    require_packages()
    threads_for_model(place, scorer(clip))
    from paramerge.cli.experiment_table import show_outcome
    from paramerge.generation.loading import pick_device
    from paramerge.training.evaluation.processes import find_processes
    from paramerge.training.experiments.run import run_experiment

    processes = find_processes(device)
    device = processes.device or pick_device(device)
    measures = load_measures(clip, lpips, device, True, chosen.max_pairs, chosen.sampling.batch, download)
    outcomes = []
    for plan in plans:
        stages = Stages(quiet=as_json or not processes.first)
        with resumable(ctx, output, partial(_progress, plan, stages)), stages as stage:
            outcomes.append(run_experiment(plan, measures, output, processes, stage))
        if processes.first and not as_json:
            show_outcome(outcomes[-1])
    if processes.first and as_json:
        _echo([_as_json(outcome) for outcome in outcomes])


def _progress(plan: Plan, stages: Stages) -> str:
    """The progress of the experiment."""
    return f"in {plan.experiment.name}, {stages.place()}"


def _show_plans(plans: Sequence[Plan], clip: str, lpips: str, as_json: bool) -> None:
    from paramerge.cli.experiment_plan import show_plan, show_whole_cost
    from paramerge.training.experiments.described import plan_as_dict

    if as_json:
        _echo([plan_as_dict(plan) | {"clip": clip, "lpips": lpips} for plan in plans])
        return
    for plan in plans:
        show_plan(plan, clip, lpips)
    if len(plans) > 1:
        show_whole_cost(plans)


def _as_json(outcome: Outcome) -> dict[str, Any]:
    verdicts = [verdict.as_dict() for verdict in outcome.verdicts]
    return {"verdicts": verdicts, "diverged": dict(outcome.diverged), "output": str(outcome.folder)}


def _echo(values: list[dict[str, Any]]) -> None:
    """Print one experiment, or all of them under a key."""
    print_json(values[0] if len(values) == 1 else {"experiments": values}, default=str)
