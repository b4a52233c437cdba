"""``paramerge``: the group of commands, and how its errors are shown."""

from __future__ import annotations

import gc
import importlib
import json
import sys

import click

from paramerge.errors import ParamergeError, printable
from paramerge.version import __version__

__all__ = ["COMMANDS", "cli", "main"]

COMMANDS = {
    "bake": "paramerge.cli.bake:bake",
    "convert": "paramerge.cli.convert:convert",
    "extract": "paramerge.cli.extract:extract",
    "resize": "paramerge.cli.resize:resize",
    "inspect": "paramerge.cli.inspect:inspect",
    "merge": "paramerge.cli.merge:merge",
    "compare": "paramerge.cli.compare:compare",
    "generate": "paramerge.cli.generate:generate",
    "demo": "paramerge.cli.demo:demo",
    "evaluate": "paramerge.cli.evaluate:evaluate",
    "experiment": "paramerge.cli.experiment:experiment",
    "sizes": "paramerge.cli.sizes:sizes",
    "train": "paramerge.cli.train:train",
}
"""Each verb and where it is; a verb's module is imported only when it is called."""


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


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="paramerge")
def cli() -> None:
    """Bake PaRa, LoRA and other adapters into checkpoints of diffusion models: exact, streaming, safe.

    \b
    paramerge bake --base sdxl.safetensors --para a.safetensors --lora b.safetensors@0.8 -o merged.safetensors
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code; the entry point of ``paramerge``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        result = cli.main(args=arguments, prog_name="paramerge", standalone_mode=False)
    except ParamergeError as error:
        show_error(error, as_json="--json" in arguments)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; nothing was written", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    gc.freeze()  # half a second less: torch's many objects need not be searched for cycles at the end
    sys.exit(result if isinstance(result, int) else 0)


def show_error(error: ParamergeError, *, as_json: bool) -> None:
    """Print an error: its parts a line each to stderr, or one JSON object to stdout."""
    if as_json:
        parts = {"kind": type(error).__name__, "what": error.what, **dict(error.lines())}
        click.echo(json.dumps({"error": parts}, indent=2))
        return
    click.echo(click.style("error: ", fg="red", bold=True) + printable(error.what), err=True)
    for label, text in error.lines():
        click.echo(click.style(f"{label + ':':>10} ", dim=True) + printable(text), err=True)


if __name__ == "__main__":
    main()
