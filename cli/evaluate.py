"""``paramerge evaluate``: diversity, text alignment and image alignment of pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from paramerge import shipped
from paramerge.cli.call import print_json
from paramerge.cli.options import (
    OrderedSteps,
    dtype_option,
    gamma_option,
    json_option,
    step_options,
    steps_of,
)
from paramerge.cli.paths import FileText, InputPath, OutputPath
from paramerge.cli.render import Progress, note
from paramerge.cli.stopping import resumable
from paramerge.cli.threads import threads_for_model
from paramerge.errors import UsageError

_SAMPLERS = ("ddim", "dpm++", "euler", "euler-a", "unipc", "own")
_DISTANCES = ("stlpips-alex", "lpips-alex", "lpips-vgg", "lpips-squeeze", "none")
_PACKAGES = ("diffusers", "transformers", "PIL", "torchmetrics", "matplotlib")
HUB_CLIP = "openai/clip-vit-large-patch14"
"""The CLIP that measures where none is named and the model is not the shipped one."""


clip_option = click.option(
    "--clip",
    type=FileText(),
    metavar="FOLDER|ID",
    help=f"Any CLIP of transformers, {shipped.CONTRASTIVE}, or none.",
)

download_option = click.option(
    "--download", is_flag=True, help="Fetch the scorers' weights where they are not on this machine yet."
)


@click.command(cls=OrderedSteps)
@click.option(
    "--model",
    type=InputPath(),
    help=f"Draw from this diffusers folder or single file; {shipped.MODEL_NAME} is the one that ships.",
)
@step_options
@click.option("--prompt", "prompts", multiple=True, help="With --model. May be repeated: a row each.")
@click.option(
    "--pictures",
    "folders",
    multiple=True,
    type=InputPath(),
    help="In place of --model: a folder of pictures. May be repeated: a row each.",
)
@click.option(
    "--text",
    "texts",
    multiple=True,
    help="What the text score reads, a row each; the class in place of <v1>. Default: the prompts.",
)
@click.option("--references", type=InputPath(), help="The subject's own pictures, for the image scores.")
@clip_option
@download_option
@click.option(
    "--lpips",
    type=click.Choice(_DISTANCES),
    default=_DISTANCES[0],
    show_default=True,
    help="The network of the perceptual score.",
)
@click.option("--no-ssim", is_flag=True, help="Leave diversity out.")
@click.option("--max-pairs", type=click.IntRange(1), help="Pairs for diversity, at random. Default: all.")
@click.option("-n", "count", type=click.IntRange(1), default=16, show_default=True, help="Pictures a run.")
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="For error bars.")
@click.option("--seed", type=click.IntRange(0, 2**62), default=0, show_default=True, help="Of the first run.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Pictures at once.")
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Sampling steps.")
@click.option("--guidance", type=float, default=7.5, show_default=True, help="Classifier-free guidance.")
@click.option("--negative", default="", help="What the pictures should not show.")
@click.option(
    "--scheduler", type=click.Choice(_SAMPLERS), default="ddim", show_default=True, help="As for generate."
)
@click.option("--width", type=int, help="Default: the model's own size.")
@click.option("--height", type=int, help="Default: the model's own size.")
@gamma_option
@dtype_option(help="Default: fp32 on a CPU, else fp16.")
@click.option("--device", help="Such as cpu or cuda. Default: the GPU if there is one.")
@click.option("--variant", metavar="NAME", help="Which weights of a diffusers folder, such as fp16.")
@click.option("--config", type=InputPath(), help="As for generate.")
@click.option("-o", "--output", type=OutputPath(file_okay=False), required=True, help="A folder.")
@json_option
@click.pass_context
def evaluate(
    ctx: click.Context,
    model: Path | None,
    prompts: tuple[str, ...],
    folders: tuple[Path, ...],
    texts: tuple[str, ...],
    references: Path | None,
    clip: str | None,
    download: bool,
    lpips: str,
    no_ssim: bool,
    max_pairs: int | None,
    count: int,
    runs: int,
    seed: int,
    batch: int,
    steps: int,
    guidance: float,
    negative: str,
    scheduler: str,
    width: int | None,
    height: int | None,
    gamma: float | None,
    dtype: str | None,
    device: str | None,
    variant: str | None,
    config: Path | None,
    output: Path,
    as_json: bool,
) -> None:
    """Measure how diverse pictures are, how true to text and subject.

    A run that was stopped goes on where it was; on several devices: accelerate launch -m paramerge.cli
    evaluate, with the same flags. Every number names the model that it comes from.

    \b
    paramerge evaluate --model sdxl.safetensors --para dog.safetensors --prompt "a sks dog on a beach" \\
        --text "a dog on a beach" --references photos-of-the-dog/ -n 100 --runs 5 -o scores/
    """
    adapters = tuple(steps_of(ctx))
    _check(model, prompts, folders, adapters)
    require_packages()
    threads_for_model(
        *([] if model is None else [shipped.named_model(model)]), scorer(clip or _clip_for(model))
    )
    from paramerge.generation.loading import pick_device
    from paramerge.training.evaluation.drawing import Sampling
    from paramerge.training.evaluation.evaluate import Drawn, evaluate_drawn, evaluate_folders
    from paramerge.training.evaluation.processes import find_processes

    processes = find_processes(device)
    device = processes.device or pick_device(device)
    measures = load_measures(clip or _clip_for(model), lpips, device, not no_ssim, max_pairs, batch, download)
    stages = Stages(quiet=as_json or not processes.first)
    with resumable(ctx, output, stages.place), stages as stage:
        if model is None:
            results = evaluate_folders(folders, measures, output, texts, references, processes, stage)
        else:
            sampling = Sampling(steps, guidance, scheduler, negative, width, height, batch)
            drawn = Drawn(
                shipped.named_model(model),
                prompts,
                adapters,
                texts,
                references,
                count,
                runs,
                seed,
                sampling,
                gamma,
                dtype,
                variant,
                config,
            )
            results = evaluate_drawn(drawn, measures, output, processes, stage)
    if not processes.first:
        return
    if as_json:
        rows = [row.as_dict(results.models) for row in results.rows]
        print_json({"rows": rows, "output": str(output)})
        return
    from paramerge.cli.evaluate_table import show_results

    show_results(results)


def load_measures(
    clip: str, lpips: str, device: str, ssim: bool, max_pairs: int | None, batch: int, download: bool
) -> Any:
    """The metrics with their models loaded; ``none`` leaves a model's metrics out.

    Without ``download`` nothing is fetched from the network, and with it every download is announced.
    """
    from paramerge.training.evaluation.clip import load_clip
    from paramerge.training.evaluation.lpips import load_perceptual
    from paramerge.training.evaluation.measuring import Measures

    say = note if download else None
    return Measures(
        None if clip == "none" else load_clip(clip, device, say),
        None if lpips == "none" else load_perceptual(lpips, device, say),
        ssim,
        max_pairs,
        batch,
        device,
    )


def scorer(clip: str) -> Path:
    """The folder of a CLIP's weights, if they are in one; without a CLIP, that of the small one."""
    return shipped.contrastive() if clip in (shipped.CONTRASTIVE, "none") else Path(clip)


def require_packages() -> None:
    """Refuse to go on without the packages that measuring needs.

    Raises
    ------
    UsageError
        A package is not installed.
    """
    from importlib.util import find_spec

    if missing := [name for name in _PACKAGES if find_spec(name) is None]:
        raise UsageError(
            "measuring pictures needs packages that are not installed",
            found=f"without {', '.join(missing)}",
            hint="pip install 'paramerge[evaluate]'",
        )


class Stages:
    """A progress bar for one stage after the other."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._title, self._done, self._total = "", 0, 0

    def place(self) -> str:
        """The progress: the stage, and the share of it that is done."""
        if not self._title:
            return "before the first stage"
        return f"while {self._title}" + (f", {self._done} of {self._total} done" if self._total else "")

    def __enter__(self) -> Callable[[str], Callable[[int, int], None]]:
        return self._begin

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)

    def _begin(self, title: str) -> Callable[[int, int], None]:
        self.__exit__()
        self._bar = Progress(title, quiet=self._quiet, unit="batches")
        self._bar.__enter__()
        self._title, self._done, self._total = title, 0, 0
        return self._update

    def _update(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        if self._bar is not None:
            self._bar.update(done, total)


def _clip_for(model: Path | None) -> str:
    is_shipped = model is not None and str(model) == shipped.MODEL_NAME
    return shipped.CONTRASTIVE if is_shipped else HUB_CLIP


def _check(model: Path | None, prompts: tuple[str, ...], folders: tuple[Path, ...], adapters: tuple) -> None:
    if (model is None) == (not folders):
        raise UsageError(
            "the pictures to measure are not given in one way",
            expected="either --model with --prompt, or --pictures",
        )
    if model is not None and not prompts:
        raise UsageError("there is nothing to draw", where="--model", expected="at least one --prompt")
    if model is None and (adapters or prompts):
        raise UsageError(
            "prompts or adapters were given for pictures that are drawn already",
            where="--pictures",
            expected="--text, which the text score reads",
        )
