"""``paramerge ui``: a window in the browser."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from paramerge.cli.paths import InputPath, OutputPath
from paramerge.cli.render import note
from paramerge.cli.verbs import Verb
from paramerge.errors import UsageError


@click.command(cls=Verb)
@click.argument("folders", nargs=-1, type=InputPath(), metavar="[FOLDER]...")
@click.option(
    "--output-folder",
    type=OutputPath(file_okay=False),
    help="Folder that outputs go into. [default: the first FOLDER]",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7860, show_default=True, help="Port to listen on."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on. Any other than this one lets other machines use the window.",
)
def ui(folders: tuple[Path, ...], output_folder: Path | None, port: int, host: str) -> None:
    """Open a window in the browser to plan, bake, merge and draw in.

    Models and adapters are taken from the FOLDERs (default: this one), and nothing outside of them can be
    reached. Everything runs on this machine, and nothing is sent to another.

    \b
    paramerge ui ~/models --output-folder ~/models/baked
    """
    require_gradio()
    from paramerge.ui.serve import LOCAL, serve

    folders = folders or (Path(),)
    output = (output_folder or folders[0]).resolve()
    output.mkdir(parents=True, exist_ok=True)
    if host != LOCAL:
        note(f"other machines that reach {host} can use this window, and see the names in these folders")
    note(f"http://{host}:{port}  (Ctrl-C ends it)")
    serve(folders, output, host, port)


def require_gradio() -> None:
    """Refuse to go on without gradio.

    Raises
    ------
    UsageError
    """
    if find_spec("gradio") is None:
        raise UsageError(
            "the window needs a package that is not installed",
            expected="gradio",
            hint="pip install 'paramerge[ui]'",
        )
