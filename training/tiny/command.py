"""The recipe's command line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from paramerge.errors import UsageError
from paramerge.training.shown_errors import shown_errors
from paramerge.training.tiny.settings import PARTS, SMOKE, Settings

__all__ = ["main", "tiny"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder of all that is made.")
@click.option("--smoke", is_flag=True, help="Every stage in seconds, on drawn pictures, without a network.")
@click.option("--subjects", type=int, help="How many subjects to learn, clearest first.  [default: 96]")
@click.option(
    "--size", type=click.Choice(["cpu", "gpu"]), help="Widths, and the latents' side.  [default: cpu]"
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--minutes", type=float, help="Training time in all; without it, each part makes its steps.")
@click.option("--steps", "steps", multiple=True, metavar="PART=N", help="Steps of a part; may be repeated.")
@click.option("--batch", type=int, help="Scenes a step.  [default: 32]")
@click.option("--bf16", is_flag=True, help="Compute the autoencoder in bfloat16.")
@click.option(
    "--part", "parts", multiple=True, type=click.Choice(list(PARTS)), help="Train these parts alone."
)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--packages", type=click.Path(path_type=Path), help="Where the pictures' archives are kept.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoints in --out.")
def tiny(
    out: Path,
    smoke: bool,
    subjects: int | None,
    size: str | None,
    seed: int,
    minutes: float | None,
    steps: tuple[str, ...],
    batch: int | None,
    bf16: bool,
    parts: tuple[str, ...],
    device: str,
    packages: Path | None,
    resume: bool,
) -> None:
    """Train emoji-diffusion, a small text-to-image model in Stable Diffusion 1.5's layout."""
    from paramerge.generation.loading import pick_device, require_libraries

    require_libraries()
    pick_device(device)
    from paramerge.training.tiny.recipe import run

    base = SMOKE if smoke else Settings()
    settings = replace(
        base,
        seed=seed,
        subjects=base.subjects if subjects is None else subjects,
        size=size or base.size,
        batch=base.batch if batch is None else batch,
        bf16=bf16,
        steps={**base.steps, **dict(_part_steps(text) for text in steps)},
    )
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars: dict[str, TaskID] = {}

        def report(name: str, done: int, total: int, loss: float) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total, loss=loss)
            progress.update(bars[name], completed=done, loss=loss)

        made = run(
            settings,
            out,
            report,
            device=device,
            resume=resume,
            minutes=minutes,
            parts=parts or tuple(PARTS),
            packages=packages,
        )
    click.echo(f"{made.folder}: the pipeline, its card README.md and samples.png")
    click.echo(f"{made.single_file}: the same weights as a single file")
    click.echo(f"{made.contrastive}: the contrastive model")


def _part_steps(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if name not in PARTS or not number.isdecimal():
        raise UsageError(
            "the steps of a part cannot be read",
            where="--steps",
            expected=f"PART=N with one of {', '.join(PARTS)}",
            found=text,
        )
    return name, int(number)


def main() -> None:
    """Run the command; the project's errors are shown as its own command line shows them."""
    with shown_errors():
        tiny()
