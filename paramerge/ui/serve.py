"""The server of the window: on this machine alone unless told otherwise, and without any call to another."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paramerge.ui.library import read_library

LOCAL = "127.0.0.1"


def serve(
    folders: Sequence[Path], output: Path, host: str = LOCAL, port: int = 7860, *, block: bool = True
) -> str:
    """Serve the window until it is stopped; with ``block`` false, in the background.

    Parameters
    ----------
    folders:
        Models and adapters are taken from these, and from what lies below them.
    output:
        The folder that outputs go into.

    Returns
    -------
    The page's address.

    Raises
    ------
    FileFormatError
        A folder cannot be read.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import gradio as gr

    from paramerge.ui.page import STYLE, Page

    page = Page(lambda: read_library(folders, output)).blocks()
    page.queue(api_open=False, default_concurrency_limit=2)
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    options: dict[str, Any] = {"theme": theme, "css": STYLE, "footer_links": [], "ssr_mode": False}
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        show_error=True,
        prevent_thread_lock=not block,
        max_file_size=1,
        **options,
    )
    return str(address)
