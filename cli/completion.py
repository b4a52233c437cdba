"""``paramerge completion``: the script by which a shell completes verbs, options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from paramerge.cli.verbs import Verb
from paramerge.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_PARAMERGE_COMPLETE"

_WHERE = """\b
bash   echo 'eval "$(paramerge completion bash)"' >> ~/.bashrc
zsh    echo 'eval "$(paramerge completion zsh)"' >> ~/.zshrc
fish   paramerge completion fish > ~/.config/fish/completions/paramerge.fish"""


@click.command(
    cls=Verb,
    help=f"""Print the script that completes verbs, options and files.

For every new shell:

{_WHERE}

\b
paramerge completion bash""",
)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script of a shell."""
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError("the installed click knows no completion for this shell", where=shell)
    click.echo(kind(ctx.find_root().command, {}, "paramerge", VARIABLE).source())
