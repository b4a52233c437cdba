"""The family of ``docs/extending.md``: its code taken out of the document, as a module and as a package."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paramerge.adapters import registry

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


def block(language: str, holding: str) -> str:
    """The document's first code block of a language that holds a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return next(text for text in blocks if holding in text)


def write_module(folder: Path) -> None:
    """The document's family as a module in ``folder``."""
    (folder / "rowgain.py").write_text(block("python", "RowGainModule"))


def write_package(folder: Path, code: str | None = None) -> None:
    """Lay out ``folder`` as pip installs the document's package, or one with other code in it."""
    stated = block("toml", "paramerge.families")
    assert 'entry-points."paramerge.families"' in stated and '"rowgain:FAMILY"' in stated
    write_module(folder)
    if code is not None:
        (folder / "rowgain.py").write_text(code)
    info = folder / "paramerge_rowgain-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: paramerge-rowgain\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[paramerge.families]\nrowgain = rowgain:FAMILY\n")


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """With ``folder`` among the places of installed packages."""
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    _forget()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        _forget()


def _forget() -> None:
    sys.modules.pop("rowgain", None)
    registry._installed.cache_clear()
    registry._all.cache_clear()
