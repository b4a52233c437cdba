"""``paramerge generate``: pictures of a checkpoint with adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from paramerge import shipped
from paramerge.apply.steps import BakeOptions, Step
from paramerge.cli.call import print_json
from paramerge.cli.options import (
    OrderedSteps,
    dtype_option,
    gamma_option,
    interpretation_options,
    json_option,
    overwrite_option,
    step_options,
    steps_of,
)
from paramerge.cli.paths import InputPath, OutputPath
from paramerge.cli.render import Progress, note, shown, warn
from paramerge.cli.render import out as console
from paramerge.cli.threads import threads_for_model
from paramerge.errors import UsageError
from paramerge.interpretation import Interpretation, KronaOrder
from paramerge.strict_json import dump

_SAMPLERS = ("ddim", "dpm++", "euler", "euler-a", "unipc", "own")


@click.command(cls=OrderedSteps)
@click.option(
    "--model",
    type=InputPath(),
    required=True,
    help=f"Diffusers folder or single file; {shipped.MODEL_NAME} is the one that ships.",
)
@step_options
@click.option("--prompt", "prompts", multiple=True, required=True, help="May be repeated: a row each.")
@click.option("--negative", default="", help="What the pictures should not show.")
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the first noise."
)
@click.option("-n", "count", type=click.IntRange(1), default=4, show_default=True, help="Pictures a prompt.")
@click.option("--steps", type=click.IntRange(1), default=25, show_default=True, help="Sampling steps.")
@click.option("--guidance", type=float, default=7.5, show_default=True, help="Classifier-free guidance.")
@click.option(
    "--scheduler",
    type=click.Choice(_SAMPLERS),
    default="ddim",
    show_default=True,
    help="ddim (eta 0) is the paper's; own: the checkpoint's.",
)
@click.option("--width", type=int, help="Default: the model's own size.")
@click.option("--height", type=int, help="Default: the model's own size.")
@click.option("--compare", is_flag=True, help="First the same pictures without the adapters.")
@gamma_option
@interpretation_options
@dtype_option(help="Default: fp32 on a CPU, else fp16.")
@click.option("--device", help="Such as cpu or cuda. Default: the GPU if there is one.")
@click.option("--variant", metavar="NAME", help="Which weights of a diffusers folder, such as fp16.")
@click.option(
    "--config",
    type=InputPath(),
    help="For a single file: the diffusers folder with its configuration and tokenizer.",
)
@click.option(
    "-o",
    "--output",
    type=OutputPath(),
    default="grid.png",
    show_default=True,
    help="The picture to write.",
)
@overwrite_option
@json_option
@click.pass_context
def generate(
    ctx: click.Context,
    model: Path,
    prompts: tuple[str, ...],
    negative: str,
    seed: int,
    count: int,
    steps: int,
    guidance: float,
    scheduler: str,
    width: int | None,
    height: int | None,
    compare: bool,
    gamma: float | None,
    lokr_scale: float | None,
    krona: KronaOrder | None,
    released: str | None,
    alpha: str | None,
    dtype: str | None,
    device: str | None,
    variant: str | None,
    config: Path | None,
    output: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw a labelled grid of pictures from a checkpoint and adapters.

    Adapters are applied to the loaded model exactly as bake would; no checkpoint is written. Each picture has
    a seed of its own: the first --seed, the next one more.

    \b
    paramerge generate --model sdxl.safetensors --para a.safetensors --prompt "a dog" --compare -o grid.png
    """
    from paramerge.bake.plan import make_plan
    from paramerge.checkpoints.layout import open_base
    from paramerge.files.outputs import check_output_file, inputs_of
    from paramerge.files.source import check_unchanged
    from paramerge.files.writer import write_bytes
    from paramerge.formats import open_adapter
    from paramerge.generation.loading import load_pipeline, pick_device, pick_dtype, require_libraries

    require_libraries()
    threads_for_model(shipped.named_model(model))
    from paramerge.generation.adapting import apply_plan
    from paramerge.generation.grid import Row, labelled_grid, png
    from paramerge.generation.sampling import Request, cut_prompts, set_scheduler

    seeds = tuple(range(seed, seed + count))
    adapters = _steps(ctx, compare)
    request = Request(prompts, negative, seeds, steps, guidance, width, height)
    base = open_base(shipped.named_model(model), variant)
    interpretation = Interpretation(lokr_scale, krona, alpha=alpha, released=released)
    opened = [(step, open_adapter(step.path, step.kind, interpretation)) for step in adapters]
    inputs = inputs_of(base, *(adapter for _, adapter in opened))
    inputs += [] if config is None else [config]
    output = check_output_file(output, inputs, overwrite=overwrite, suffix=".png")
    options = BakeOptions(gamma=gamma)
    plan = make_plan(base, opened, options) if opened else None
    for warning in () if plan is None else plan.warnings:
        warn(warning)
    device = pick_device(device)
    pipeline = load_pipeline(base, pick_dtype(dtype, device), config)
    set_scheduler(pipeline, scheduler)
    for prompt, tokens, limit in cut_prompts(pipeline, prompts):
        warn(f"of {prompt!r} the model reads {limit} of {tokens} tokens")
    rows: list[Row] = []
    both = compare and plan is not None
    work = _Work(as_json, steps * count * len(prompts) * (2 if both else 1))
    with work.progress:
        if both or plan is None:
            rows += _rows(pipeline.to(device), request, "base" if both else "", work)
        changed = 0
        if plan is not None:
            changed = len(apply_plan(plan, pipeline))
            rows += _rows(pipeline.to(device), request, _label(adapters), work)
    check_unchanged(base, *(adapter for _, adapter in opened))
    image = labelled_grid(rows, [f"seed {s}" for s in seeds])
    facts = {
        "model": model.name,
        "adapters": [{"kind": s.kind, "name": s.path.name, "strength": s.strength} for s in adapters],
        "layers": changed,
        "prompts": list(prompts),
        "negative": negative,
        "seeds": list(seeds),
        "steps": steps,
        "guidance": guidance,
        "scheduler": scheduler,
    }
    write_bytes(output, png(image, {"paramerge": dump(facts, indent=None)}))
    if as_json:
        print_json({**facts, "output": str(output)})
        return
    if plan is not None:
        note(f"{changed} layers changed by {len(adapters)} adapter{'s' if len(adapters) > 1 else ''}")
    console.print(f"[bold]{shown(output)}[/bold]: {sum(len(row.pictures) for row in rows)} pictures")


class _Work:
    """The progress of all pictures, counted in sampling steps."""

    def __init__(self, quiet: bool, total: int) -> None:
        self.progress = Progress("drawing", quiet=quiet, unit="steps")
        self._total, self._done = total, 0

    def step(self) -> None:
        self._done += 1
        self.progress.update(min(self._done, self._total), self._total)


def _rows(pipeline: Any, request: Any, label: str, work: _Work) -> list[Any]:
    from paramerge.generation.grid import Row
    from paramerge.generation.sampling import draw

    drawn = draw(pipeline, request, work.step)
    labels = [f"{label}: {prompt}" if label else prompt for prompt in request.prompts]
    return [Row(text, pictures) for text, pictures in zip(labels, drawn, strict=True)]


def _label(steps: list[Step]) -> str:
    names = [step.path.resolve().name.removesuffix(".safetensors") for step in steps]
    strengths = ["" if step.strength == 1 else f"@{step.strength:g}" for step in steps]
    return " + ".join(name + strength for name, strength in zip(names, strengths, strict=True))


def _steps(ctx: click.Context, compare: bool) -> list[Step]:
    steps = steps_of(ctx)
    if compare and not steps:
        raise UsageError(
            "there is nothing to compare",
            where="--compare",
            expected="at least one --para FILE, --lora FILE or --adapter FILE",
        )
    return steps
