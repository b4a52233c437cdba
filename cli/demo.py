"""``paramerge demo``: the whole job on the model that comes along, in a minute or two on a CPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from paramerge import shipped
from paramerge.apply.steps import Step
from paramerge.cli.call import print_json
from paramerge.cli.options import json_option, overwrite_option
from paramerge.cli.paths import OutputPath
from paramerge.cli.render import Progress, gigabytes, note, shown
from paramerge.cli.render import out as console
from paramerge.cli.threads import threads_for_model
from paramerge.cli.verbs import Verb
from paramerge.errors import StoppedError
from paramerge.strict_json import dump

_PROMPTS = (
    "a twemoji <v1>",
    "a twemoji <v1> on a yellow background",
    "a noto <v2>",
    "a noto <v2> on a red background",
    "a noto cat",
    "a fluent pizza",
)
_GUIDANCE = 3.0
_GRID = "grid.png"


@dataclass(frozen=True, slots=True)
class _Variant:
    """A row of the picture: adapters in their order, and a remark on it."""

    name: str
    adapters: tuple[str, ...]
    look: str


_VARIANTS = (
    _Variant("base", (), "the model as it ships; <v1> and <v2> are words that it was never taught"),
    _Variant("para", ("butterfly",), "<v1> is the butterfly of the PaRa's pictures, here on yellow too"),
    _Variant("lora", ("blueprint",), "white paper becomes blue, and what is on it a white drawing"),
    _Variant("merged", ("butterfly", "blueprint"), "PaRa, then LoRA, the paper's order"),
    _Variant("reversed", ("blueprint", "butterfly"), "LoRA, then PaRa, which removes a part of the LoRA"),
    _Variant("joint", ("butterfly", "tree"), "two PaRas merged jointly: <v1> and <v2> in one model"),
)
_BASE = f"{shipped.MODEL_NAME}.safetensors"
_FILES = (_BASE, *(f"{variant.name}.safetensors" for variant in _VARIANTS if variant.adapters), _GRID)
"""Every file that is written."""


@click.command(cls=Verb)
@click.option(
    "-o",
    "--output",
    type=OutputPath(file_okay=False),
    default="paramerge-demo",
    show_default=True,
    help="A folder, made if missing.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the first noise."
)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Sampling steps.")
@overwrite_option
@json_option
def demo(output: Path, seed: int, steps: int, overwrite: bool, as_json: bool) -> None:
    """Bake adapters into the shipped model, and draw their effects.

    Writes the model as a single file, merged checkpoints, and a labelled picture grid.

    \b
    paramerge demo -o demo-output
    """
    from paramerge.checkpoints.single_file import write_single_file
    from paramerge.files.outputs import check_output_folder
    from paramerge.files.writer import make_folder, write_bytes
    from paramerge.generation.loading import require_libraries

    inputs = [shipped.model(), *map(shipped.adapter_file, shipped.ADAPTERS)]
    check_output_folder(output, inputs, overwrite=overwrite, files=_FILES)
    require_libraries()
    threads_for_model(shipped.model())
    from paramerge.generation.grid import Row, labelled_grid, png

    make_folder(output)
    base = write_single_file(shipped.model(), output / _BASE)
    note(f"the model as a single file: {base} ({gigabytes(base.stat().st_size)})", quiet=as_json)
    rows: list[Row] = []
    made: list[dict[str, Any]] = []
    total = len(_VARIANTS) * len(_PROMPTS) * steps
    bar = Progress("baking and drawing", quiet=as_json, unit="steps")
    with _stoppable(output, made), bar as progress:
        for number, variant in enumerate(_VARIANTS):
            file, layers = _bake(base, variant, output, overwrite)
            done = number * len(_PROMPTS) * steps
            pictures = _draw(file, seed, steps, lambda n, done=done: progress.update(done + n, total))
            rows.append(Row(f"{_title(variant)}: {variant.look}", pictures))
            made.append({"name": variant.name, "file": str(file), "layers": layers, "look": variant.look})
    grid = output / _GRID
    facts = {"seed": seed, "steps": steps, "guidance": _GUIDANCE, "prompts": list(_PROMPTS), "rows": made}
    # a picture is passed on: it holds no path
    notes = {**facts, "rows": [{**row, "file": Path(row["file"]).name} for row in made]}
    write_bytes(grid, png(labelled_grid(rows, _PROMPTS), {"paramerge": dump(notes, indent=None)}))
    if as_json:
        print_json({**facts, "grid": str(grid)})
        return
    for row in made:
        console.print(f"[bold]{shown(row['file'])}[/bold]  {row['layers']} layers changed")
        console.print(f"    {shown(row['look'])}")
    console.print(f"[bold]{shown(grid)}[/bold]  the pictures: a row for each of these, a column a prompt")
    again = _steps(next(variant for variant in _VARIANTS if variant.name == "merged"))
    flags = " ".join(f"--{step.kind} {shown(step.path)}" for step in again)
    console.print(f"The same by hand: paramerge bake --base {shown(base)} {flags} -o merged.safetensors")


@contextmanager
def _stoppable(output: Path, made: Sequence[object]) -> Iterator[None]:
    """Say at a stop from outside how many rows there were, as their files stay."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise StoppedError.after(
            stop,
            f"stopped after {len(made)} of {len(_VARIANTS)} rows",
            where=output,
            found="the model and the checkpoints so far; no picture",
            hint="start it again with --overwrite",
        ) from stop


def _steps(variant: _Variant) -> list[Step]:
    return [Step(shipped.ADAPTERS[name].kind, shipped.adapter_file(name)) for name in variant.adapters]


def _bake(base: Path, variant: _Variant, output: Path, overwrite: bool) -> tuple[Path, int]:
    """The checkpoint of ``variant`` (the base itself without adapters) and how many layers changed."""
    from paramerge.bake.call import bake

    steps = _steps(variant)
    if not steps:
        return base, 0
    report = bake(base, steps, output / f"{variant.name}.safetensors", overwrite=overwrite)
    return report.output, len(report.layers)


def _draw(file: Path, seed: int, steps: int, progress: Any) -> list[Any]:
    """A picture for each prompt, all from the same seed."""
    from paramerge.checkpoints.layout import open_base
    from paramerge.generation.loading import load_pipeline, pick_dtype
    from paramerge.generation.sampling import Request, draw

    pipeline = load_pipeline(open_base(file), pick_dtype(None, "cpu"), shipped.model())
    request = Request(_PROMPTS, seeds=(seed,), steps=steps, guidance=_GUIDANCE)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        progress(done)

    return [row[0] for row in draw(pipeline, request, step)]


def _title(variant: _Variant) -> str:
    return " + ".join(f"{shipped.ADAPTERS[name].kind} {name}" for name in variant.adapters) or "base"
