"""``paramerge``: the group of commands, and how its errors are shown."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import platform
import sys
import traceback
from pathlib import Path

import click

from paramerge.cli.call import begin
from paramerge.cli.ending import (
    flush,
    guarded_streams,
    stopped_by_signals,
    stopping_signal,
)
from paramerge.cli.shown_error import show_error
from paramerge.cli.threads import choose_threads
from paramerge.cli.usage import no_such_verb, usage_error
from paramerge.errors import OutputError, printable
from paramerge.system_faults import TRACEBACK_VARIABLE, as_paramerge_error
from paramerge.version import __version__

SECTIONS = {
    "Every day": {
        "bake": "paramerge.cli.bake:bake",
        "merge": "paramerge.cli.merge:merge",
        "inspect": "paramerge.cli.inspect:inspect",
        "compare": "paramerge.cli.compare:compare",
        "generate": "paramerge.cli.generate:generate",
        "demo": "paramerge.cli.demo:demo",
        "ui": "paramerge.cli.ui:ui",
    },
    "Adapters": {
        "convert": "paramerge.cli.convert:convert",
        "resize": "paramerge.cli.resize:resize",
        "extract": "paramerge.cli.extract:extract",
        "train": "paramerge.cli.train:train",
        "sizes": "paramerge.cli.sizes:sizes",
    },
    "Results": {
        "replay": "paramerge.cli.replay:replay",
        "verify": "paramerge.cli.verify:verify",
        "explain": "paramerge.cli.explain:explain",
        "evaluate": "paramerge.cli.evaluate:evaluate",
        "experiment": "paramerge.cli.experiment:experiment",
    },
    "This program": {
        "completion": "paramerge.cli.completion:completion",
    },
}
"""Each verb and its place, in the groups of the help; a verb's module is imported when it is called."""
COMMANDS = {verb: place for verbs in SECTIONS.values() for verb, place in verbs.items()}


class LazyGroup(click.Group):
    """A group that imports a command when it is asked for, so that ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb's module and give its command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The verb that ``args`` begin with; raises UsageError where there is none of that name."""
        if args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise no_such_verb(args[0], COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs in their groups, a line each."""
        width = max(map(len, COMMANDS))
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                found = ((verb, self.get_command(ctx, verb)) for verb in verbs)
                formatter.write_dl(
                    [(f"{verb:{width}}", first_sentence(command)) for verb, command in found if command]
                )


def first_sentence(command: click.Command) -> str:
    """The first sentence of a verb's help, whole."""
    first = (command.help or "").strip().split("\n\n")[0]
    return " ".join(first.split()).partition(". ")[0].rstrip(".")


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the versions that a report of a fault needs; nothing is imported for it."""
    if not wanted or ctx.resilient_parsing:
        return
    packages = ("torch", "numpy", "diffusers", "peft")
    found = {name: version for name in packages if (version := _installed(name))}
    system = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    click.echo(f"paramerge {__version__}")
    click.echo(", ".join([*(f"{name} {version}" for name, version in found.items()), system]))
    ctx.exit()


def _installed(package: str) -> str | None:
    from importlib import metadata  # a tenth of the start of every other call

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions and exit.",
)
def cli() -> None:
    """Bake LoRA, PaRa and other adapters into checkpoints of diffusion models: exact, streaming, safe.

    \b
    paramerge bake --base sdxl.safetensors --lora style.safetensors -o mix.safetensors
    paramerge bake --help
    """
    Path.cwd()  # where the current folder is gone nothing works, and MKL ends the program without a word


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; the entry point of ``paramerge``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        choose_threads(arguments[0] if arguments else "")
        with guarded_streams(), stopped_by_signals():
            code = _run(arguments)
    except KeyboardInterrupt as error:  # in the moments before and after the work
        code = 128 + stopping_signal(error)
    gc.freeze()  # half a second less: torch's many objects need not be searched for cycles at the end
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    """Carry out the command line; returns the exit code, whatever happens."""
    as_json = "--json" in arguments
    try:
        begin(arguments[0] if arguments and arguments[0] in COMMANDS else "", as_json=as_json)
        result = cli.main(args=arguments, prog_name="paramerge", standalone_mode=False)
        flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        return _show_any(usage_error(error), as_json=as_json)
    except (click.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # click takes the end of any file for Ctrl-D
            return _show_any(error.__cause__, as_json=as_json)
        click.echo(f"stopped; {_what_was_written()}", err=True)
        return 128 + stopping_signal(error)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        return _show_any(error, as_json=as_json)


def _what_was_written() -> str:
    """The outputs that are in their places by now; a stop may come just after."""
    writer = sys.modules.get("paramerge.files.writer")  # not imported: nothing was written
    paths = [] if writer is None else writer.written_outputs()
    return f"written: {printable(', '.join(map(str, paths)))}" if paths else "nothing was written"


def _show_any(error: Exception, *, as_json: bool) -> int:
    """Print any error, unexpected ones as faults of the system or of paramerge; returns its exit code."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exception(error)
    shown = as_paramerge_error(error)
    with contextlib.suppress(OutputError, SystemExit):  # the exit code is the error's
        flush()
    try:
        show_error(shown, as_json=as_json)
    except OutputError:  # the JSON cannot be printed
        show_error(shown, as_json=False)
    return shown.exit_code


if __name__ == "__main__":
    main()
