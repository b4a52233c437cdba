"""The files that the window may use: those below the folders that were given, by names relative to them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from paramerge import shipped
from paramerge.errors import UsageError
from paramerge.inspect.folder import inspect_folder

ENDING = ".safetensors"
_LONGEST_NAME = 200
"""Characters; file systems allow 255 bytes, of which a temporary file's name needs some."""


@dataclass(frozen=True)
class Library:
    """Models and adapters by the names that the page shows.

    Attributes
    ----------
    bases, adapters, others:
        Name to file or folder; ``others`` are neither, or damaged.
    output:
        The folder that outputs go into.
    """

    bases: dict[str, Path]
    adapters: dict[str, Path]
    others: dict[str, Path]
    output: Path

    @property
    def all(self) -> dict[str, Path]:
        """Everything, for a look at it."""
        return {**self.bases, **self.adapters, **self.others}

    def base(self, name: str | None) -> Path:
        """The checkpoint of this name; raises as :meth:`adapter` does."""
        return _found(self.bases, name, "checkpoint")

    def adapter(self, name: str | None) -> Path:
        """The adapter of this name.

        Raises
        ------
        UsageError
            There is none: whatever a browser sends, no other file is opened.
        """
        return _found(self.adapters, name, "adapter")

    def any(self, name: str | None) -> Path:
        """The file of this name; raises as :meth:`adapter` does."""
        return _found(self.all, name, "file")

    def new_file(self, name: str) -> Path:
        """The place of an output of this name.

        Raises
        ------
        UsageError
            The name is empty, leads elsewhere, or has another ending than ``.safetensors``.
        """
        name = name.strip()
        if not name or name != Path(name).name or "\\" in name or name.startswith("."):
            raise UsageError(
                "this is no name of a file in the output folder",
                where=self.output,
                expected="a name without folders",
                found=repr(name),
            )
        if len(name) > _LONGEST_NAME:
            raise UsageError("the name is too long", where=self.output, found=f"{len(name)} characters")
        path = self.output / name
        if not name.endswith(ENDING) and not path.is_dir():
            path = self.output / f"{name}{ENDING}"
        return path


def _found(files: dict[str, Path], name: str | None, what: str) -> Path:
    if not name:
        raise UsageError(f"no {what} is chosen", hint=f"choose a {what} from the list")
    if name not in files:
        raise UsageError(
            f"there is no {what} of this name in the folders of this window",
            found=repr(name),
            hint="refresh the list, or start paramerge ui with its folder",
        )
    return files[name]


def read_library(folders: Iterable[Path], output: Path) -> Library:
    """Look at all files below ``folders`` by their headers; the shipped model and adapters come with them.

    Raises
    ------
    FileFormatError
        A folder cannot be read.
    """
    folders = [folder.resolve() for folder in folders]
    bases: dict[str, Path] = {}
    adapters: dict[str, Path] = {}
    others: dict[str, Path] = {}
    kinds = {"checkpoint": bases, "adapter": adapters}
    for folder in folders:
        for entry in inspect_folder(folder):
            place = entry.path.resolve()
            if not any(place.is_relative_to(each) for each in folders):  # a link that leads out
                continue
            name = str(entry.path.relative_to(folder))
            if len(folders) > 1:
                name = f"{folder.name}/{name}"
            files = kinds.get(entry.what, others) if not entry.problem or entry.what == "adapter" else others
            files[name] = entry.path
    if shipped.folder() is not None:
        bases.setdefault(shipped.MODEL_NAME, shipped.model())
        for name in shipped.ADAPTERS:
            adapters.setdefault(name, shipped.adapter_file(name))
    return Library(bases, adapters, others, output)
