"""Kinds that other packages add: families, dialects and architectures, as entry points.

A package names its objects in its metadata, under a group such as ``paramerge.architectures``; installing it
is all that a user does. They are loaded when a registry is first asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from paramerge.errors import PluginError


class Package(NamedTuple):
    """An installed package, as pip names it."""

    name: str
    version: str


def plugins(group: str) -> Iterator[tuple[str, Any, Package | None]]:
    """The additions of installed packages under ``group``, in order: the package, for messages, the object,
    and the package where it is known.

    Raises
    ------
    PluginError
        An object cannot be imported.
    """
    if not any(_mentions(folder, group) for folder in sys.path):
        return
    from importlib.metadata import entry_points  # 70 ms, which a dry run without plugins does not pay

    for entry in sorted(entry_points(group=group), key=lambda found: (found.name, found.value)):
        package = entry.dist.name if entry.dist is not None else "an installed package"
        try:
            offered = entry.load()
        except Exception as error:  # the package's own code: any exception is its fault, and reported so
            raise PluginError(
                f"the package {package} adds something to paramerge that cannot be loaded",
                where=f"entry point {entry.name} of {group}: {entry.value}",
                found=f"{type(error).__name__}: {error}",
                hint=f"update {package}, or uninstall it",
            ) from error
        found = None if entry.dist is None else Package(entry.dist.name, entry.dist.version)
        yield f"{package} ({entry.value})", offered, found


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except (PackageNotFoundError, ValueError):  # no name of a package
        return None


def _mentions(folder: str, group: str) -> bool:
    """Whether an installed package in ``folder`` may have entry points of ``group``."""
    try:
        with os.scandir(folder or ".") as entries:
            infos = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:  # not there, or a zip
        return False
    return any(_holds(f"{info}/entry_points.txt", group.encode()) for info in infos)


def _holds(path: str, text: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return text in file.read()
    except OSError:
        return False
