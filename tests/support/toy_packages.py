"""The kinds of ``docs/extending.md``, their code taken out of the document, as packages and registered."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from paramerge.adapters.registry import FAMILIES
from paramerge.cli.main import main
from paramerge.formats.registry import DIALECTS
from paramerge.kinds import Registry
from paramerge.merge.methods.registry import REGISTRY as METHODS
from paramerge.models.registry import ARCHITECTURES
from paramerge.storage.registry import SCHEMES

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
WAYS = ("entry point", "registered")
"""How a kind becomes known: as an installed package adds it, and as a call does."""


def block(language: str, holding: str) -> str:
    """The document's first code block of a language that holds a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return next(text for text in blocks if holding in text)


@dataclass(frozen=True)
class Toy:
    """A kind of the document: its module and record, its list, and a text that its code holds."""

    module: str
    record: str
    registry: Registry[Any]
    holding: str

    @property
    def entry_point(self) -> str:
        return f"{self.module}:{self.record}"

    def write_package(self, folder: Path, code: str | None = None) -> None:
        """Lay out ``folder`` as pip installs the document's package, or one with other code in it."""
        if code is None:
            stated = block("toml", self.registry.group)
            assert f'entry-points."{self.registry.group}"' in stated and f'"{self.entry_point}"' in stated
            code = block("python", self.holding)
        (folder / f"{self.module}.py").write_text(code)
        info = folder / f"paramerge_{self.module}-1.0.dist-info"
        info.mkdir(parents=True)
        name = f"paramerge-{self.module}"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        entry = f"[{self.registry.group}]\n{self.module} = {self.entry_point}\n"
        (info / "entry_points.txt").write_text(entry)

    @contextmanager
    def installed(self, folder: Path, code: str | None = None) -> Iterator[None]:
        """With the package in ``folder``, which is among the places of installed packages."""
        folder.mkdir(exist_ok=True)
        self.write_package(folder, code)
        with self._importable(folder):
            yield

    @contextmanager
    def known(self, folder: Path, way: str) -> Iterator[None]:
        """With the document's kind in its list, in one of the :data:`WAYS`."""
        if way == "entry point":
            with self.installed(folder):
                yield
            return
        folder.mkdir()
        (folder / f"{self.module}.py").write_text(block("python", self.holding))
        with self._importable(folder):
            record = getattr(importlib.import_module(self.module), self.record)
            self.registry.register(record)
            try:
                yield
            finally:
                self.registry.unregister(self.module)

    @contextmanager
    def _importable(self, folder: Path) -> Iterator[None]:
        sys.path.insert(0, str(folder))
        try:
            self._forget()
            yield
        finally:
            sys.path.remove(str(folder))
            self._forget()

    def _forget(self) -> None:
        importlib.invalidate_caches()
        sys.modules.pop(self.module, None)
        self.registry.refresh()


ROWGAIN = Toy("rowgain", "FAMILY", FAMILIES, "RowGainModule")
SLASHES = Toy("slashes", "DIALECT", DIALECTS, 'key="slashes"')
TOYDIT = Toy("toydit", "RECORD", ARCHITECTURES, "Toy DiT")
LOG8 = Toy("log8", "LOG8", SCHEMES, "class Log8")
HALFWAY = Toy("halfway", "HALFWAY", METHODS, "HALFWAY = Method")


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The exit code of a command, and all that it printed."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out + printed.err
