"""The dialect of ``docs/extending.md``: its code taken out of the document, as a module and as a package."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from toy_family import block

from paramerge.formats import registry

_INFO = "paramerge_slashes-1.0.dist-info"


def write_module(folder: Path) -> None:
    """The document's dialect as a module in ``folder``."""
    (folder / "slashes.py").write_text(block("python", 'key="slashes"'))


def write_package(folder: Path, code: str | None = None) -> None:
    """Lay out ``folder`` as pip installs the document's package, or one with other code in it."""
    stated = block("toml", "paramerge.dialects")
    assert 'entry-points."paramerge.dialects"' in stated and '"slashes:DIALECT"' in stated
    write_module(folder)
    if code is not None:
        (folder / "slashes.py").write_text(code)
    (folder / _INFO).mkdir()
    (folder / _INFO / "METADATA").write_text("Metadata-Version: 2.1\nName: paramerge-slashes\nVersion: 1.0\n")
    (folder / _INFO / "entry_points.txt").write_text("[paramerge.dialects]\nslashes = slashes:DIALECT\n")


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
    sys.modules.pop("slashes", None)
    registry.forget()
