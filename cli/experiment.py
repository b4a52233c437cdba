"""``paramerge experiment``: a table or figure of the paper, rerun and judged."""

from __future__ import annotations

import json
from pathlib import Path

import click

from paramerge import shipped
from paramerge.cli.evaluate import HUB_CLIP, Stages, load_measures, require_packages
from paramerge.cli.options import json_option

__all__ = ["NAMES", "experiment"]

NAMES = ("table1", "table2", "composition", "editing", "order", "gamma", "subsets", "rates")
"""The experiments; a test holds them equal to the library's own."""
_BUDGETS = ("smoke", "small", "paper")
_DISTANCES = ("stlpips-alex", "lpips-alex", "lpips-vgg", "lpips-squeeze", "none")


@click.command()
@click.argument("name", type=click.Choice(NAMES))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    required=True,
    help=f"Diffusers folder or single file; {shipped.MODEL_NAME} is the one that ships.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="A folder of pictures for each subject: the DreamBooth dataset's, or with a dataset.toml.",
)
@click.option("--budget", type=click.Choice(_BUDGETS), default="small", show_default=True)
@click.option("--seed", type=click.IntRange(0, 10**6), default=0, show_default=True, help="Of all chance.")
@click.option(
    "--clip", metavar="FOLDER|ID", help=f"Any CLIP of transformers, {shipped.CONTRASTIVE}, or none."
)
@click.option("--lpips", type=click.Choice(_DISTANCES), default=_DISTANCES[0], show_default=True)
@click.option("--device", help="Such as cpu or cuda. Default: the GPU if there is one.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default="experiments",
    show_default=True,
    help="A folder that all experiments may share, and so their adapters.",
)
@click.option("--dry-run", is_flag=True, help="Print the whole plan and its cost, and do nothing.")
@json_option
def experiment(
    name: str,
    model: Path,
    data: Path,
    budget: str,
    seed: int,
    clip: str | None,
    lpips: str,
    device: str | None,
    output: Path,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train, draw and measure what a table or figure of the paper shows, and judge its claims.

    A run that was stopped goes on where it was. A claim's verdict is: holds, does not hold, or cannot be told
    at this scale. Of the paper's budget --dry-run prints everything that would be done.

    \b
    paramerge experiment table1 --model emoji-diffusion --data emoji-subjects/ --budget small
    paramerge experiment table2 --model sdxl.safetensors --data dreambooth/dataset/ --budget paper --dry-run
    """
    from paramerge.cli.experiment_plan import show_plan
    from paramerge.training.experiments.budgets import BUDGETS
    from paramerge.training.experiments.dataset import open_dataset
    from paramerge.training.experiments.described import plan_as_dict
    from paramerge.training.experiments.plan import make_plan
    from paramerge.training.experiments.registry import EXPERIMENTS

    is_shipped = str(model) == shipped.MODEL_NAME
    place = model if dry_run else shipped.named_model(model)
    plan = make_plan(EXPERIMENTS[name], BUDGETS[budget], place, open_dataset(data), seed)
    clip = clip or (shipped.CONTRASTIVE if is_shipped else HUB_CLIP)
    if dry_run:
        if as_json:
            click.echo(json.dumps(plan_as_dict(plan) | {"clip": clip, "lpips": lpips}, indent=2, default=str))
        else:
            show_plan(plan, clip, lpips)
        return
    require_packages()
    from paramerge.cli.experiment_table import show_outcome
    from paramerge.generation.loading import pick_device
    from paramerge.training.evaluation.processes import find_processes
    from paramerge.training.experiments.run import run_experiment

    processes = find_processes(device)
    device = processes.device or pick_device(device)
    chosen = BUDGETS[budget]
    measures = load_measures(clip, lpips, device, True, chosen.max_pairs, chosen.sampling.batch)
    with Stages(quiet=as_json or not processes.first) as stage:
        outcome = run_experiment(plan, measures, output, processes, stage)
    if not processes.first:
        return
    if as_json:
        verdicts = [verdict.as_dict() for verdict in outcome.verdicts]
        click.echo(json.dumps({"verdicts": verdicts, "output": str(outcome.folder)}, indent=2))
        return
    show_outcome(outcome)
