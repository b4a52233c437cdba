"""The flags of ``paramerge train``, one for each field of the configuration, and its run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click

from paramerge.cli.call import print_json
from paramerge.cli.paths import InputPath, OutputPath
from paramerge.cli.threads import threads_for_model
from paramerge.errors import StoppedError, printable
from paramerge.shipped import named_model
from paramerge.training.config import TrainConfig
from paramerge.training.config_file import config_from, config_from_toml
from paramerge.training.launching import require_packages


def options() -> list[click.Parameter]:
    """A flag for each field, and ``--config``, ``--resume``, ``--json``; no field is required here."""
    own = [
        click.Option(["--config"], type=InputPath(), help="TOML of settings; flags win."),
        click.Option(["--resume"], is_flag=True, help="Go on from the newest checkpoint in --output."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON for programs, and nothing else."),
    ]
    return [*(_option(f) for f in fields(TrainConfig)), *own]


_FIRST = (
    *("model", "instance_folder", "instance_prompt", "output", "method", "rank", "subset", "resolution"),
    *("steps", "batch_size", "learning_rate", "mixed_precision", "device", "seed", "validation_prompts"),
)
"""The settings that everyone needs, which the help begins with."""


class _Setting(click.Option):
    """The flag of a field."""

    @property
    def group(self) -> str | None:
        """The group of the help, of settings that few need."""
        return None if self.name in _FIRST else "More settings"


def _option(spec: Field[Any]) -> click.Option:
    kind, flag = str(spec.type).removesuffix(" | None"), f"--{spec.name.replace('_', '-')}"
    shown = spec.default if spec.default not in (MISSING, None, (), "") else None
    text = spec.metadata["help"] + (f"  [default: {_text(shown)}]" if shown is not None else "")
    settings: dict[str, Any] = {"default": None, "help": text}
    if kind == "bool":
        return _Setting([f"{flag}/--no-{flag[2:]}"], **settings)
    if spec.metadata["choices"]:
        return _Setting([flag], type=click.Choice(spec.metadata["choices"]), **settings)
    if kind.startswith("tuple"):
        of = int if "int" in kind else str
        if "..." in kind:
            return _Setting([flag], type=of, multiple=True, **settings)
        return _Setting([flag], type=of, nargs=kind.count("int"), **settings)
    if spec.name == "output":
        return _Setting(["-o", flag], type=OutputPath(), **settings)
    types: dict[str, Any] = {"Path": InputPath(), "int": int, "float": float, "str": str}
    return _Setting([flag], type=types[kind], **settings)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def run(
    *, config: Path | None, resume: bool, as_json: bool, progress: Callable[..., Any], **flags: Any
) -> None:
    """Carry the command out.

    Raises
    ------
    UsageError
        Settings are missing or out of range, or packages are not installed.
    """
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    settings = config_from_toml(config, **given) if config else config_from(given, "the command line")
    require_packages(settings)
    threads_for_model(named_model(settings.model))
    from paramerge.training.loop import train

    done = 0

    def follow(step: int, total: int, loss: float) -> None:
        nonlocal done
        done = step
        report(step, total, loss)

    try:
        with progress(settings.steps) as report:
            result = train(settings, resume=resume, report=follow)
    except KeyboardInterrupt as stop:
        raise _stopped(stop, settings, done) from stop
    if not _speaks():
        return
    facts = {
        "adapter": [str(path) for path in result.adapter],
        "steps": len(result.losses),
        "loss": result.losses[-1] if result.losses else None,
        "seconds": round(result.seconds, 1),
        "config_sha256": result.config_sha256,
        "data_sha256": result.data_sha256,
    }
    if as_json:
        print_json(facts)
        return
    for path in result.adapter:
        click.echo(f"{printable(str(path))}: {settings.method} after {len(result.losses)} steps")


def _speaks() -> bool:
    """Whether this is the first of the processes, which prints for all."""
    return os.environ.get("RANK", "0") == "0"


def _stopped(stop: KeyboardInterrupt, settings: TrainConfig, done: int) -> BaseException:
    """The step, the last checkpoint and the command that goes on, of a training that was stopped."""
    from paramerge.training.state import latest_checkpoint

    if not _speaks():
        return SystemExit(StoppedError.exit_code)
    output = settings.output
    newest, noted = latest_checkpoint(output / "checkpoints"), output / "config.toml"
    again = "start it again as before, with --resume"
    if noted.is_file():
        command = shlex.join(["--config", str(noted), "--resume"])
        alone = int(os.environ.get("WORLD_SIZE") or 1) == 1
        program = "paramerge train" if alone else "accelerate launch -m paramerge.training"
        again = f"go on with: {program} {command}"
    return StoppedError.after(
        stop,
        f"stopped after step {done} of {settings.steps}" if done else "stopped before the first step",
        where=output,
        found=f"the last checkpoint is {newest}" if newest else "no checkpoint yet",
        hint=again,
    )


class Bar:
    """A progress bar on stderr, where that is a terminal and this is the first process."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        quiet = not console.is_terminal or not _speaks()
        text = TextColumn("{task.completed}/{task.total} steps{task.fields[loss]}")
        self._bar = Progress(text, BarColumn(), TimeRemainingColumn(), console=console, disable=quiet)
        self._task = self._bar.add_task("training", total=steps, loss="")

    def __enter__(self) -> Callable[[int, int, float], None]:
        self._bar.start()
        return lambda done, total, loss: self._bar.update(
            self._task, completed=done, loss=f", loss {loss:.4f}"
        )

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
