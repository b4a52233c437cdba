"""Names of files as people type them, understood where only one thing can be meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

_ENDING = ".safetensors"


class InputPath(click.Path):
    """The path of a file or folder that is read; its names are understood as :func:`spelled` says."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path that is meant."""
        return super().convert(spelled(os.fspath(value)), param, ctx)


class OutputPath(click.Path):
    """The path of what is written; a ``~`` that the shell left alone is the home."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(path_type=Path, **settings)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path that is meant."""
        return super().convert(_from_home(os.fspath(value)), param, ctx)


class FileText(click.ParamType):
    """A text that begins with the name of a file, which shells complete: ``style.safetensors@0.8``."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, its file as :func:`spelled` understands it."""
        return spelled(str(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Leave it to the shell, which knows the files."""
        return [CompletionItem(incomplete, type="file")]


def spelled(text: str) -> str:
    """``text``, the name of a file that is read, perhaps with ``@STRENGTH`` behind it.

    Where there is no such file, ``~`` is the home (a shell leaves it alone within quotes), and the ending
    ``.safetensors`` may be left out.
    """
    text = _from_home(text)
    if os.path.exists(text):  # noqa: PTH110 (Path.exists raises where text is too long for a name)
        return text
    name, at, strength = text.rpartition("@")
    if not at:
        name, strength = text, ""
    if name and not os.path.exists(name) and os.path.exists(name + _ENDING):  # noqa: PTH110
        name += _ENDING
    return name + at + strength


def file_of(text: str) -> str:
    """The file in ``FILE@STRENGTH``."""
    name, at, _ = text.rpartition("@")
    return name if at and not os.path.exists(text) else text  # noqa: PTH110


def _from_home(text: str) -> str:
    return os.path.expanduser(text) if text.startswith("~") and not os.path.exists(text) else text  # noqa: PTH110, PTH111
