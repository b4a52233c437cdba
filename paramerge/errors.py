"""The errors of paramerge: one tree, one shape.

Every error says *what* is wrong, *where*, what was *expected*, what was *found*, and a *hint*: what
to do next. Arguments are marked by :func:`paramerge.wording.option`. The command line prints exactly these
lines, with its flags for the arguments, and exits with :attr:`ParamergeError.exit_code`.
"""

from __future__ import annotations

from paramerge.wording import Worded

__all__ = [
    "AdapterError",
    "ArchitectureError",
    "CheckpointError",
    "FamilyError",
    "FileFormatError",
    "IncompleteLayerError",
    "InputChangedError",
    "InternalError",
    "LossError",
    "MissingCheckpointError",
    "MissingFileError",
    "MissingInputError",
    "NonFiniteError",
    "OutputError",
    "ParamergeError",
    "PluginError",
    "ShapeError",
    "StoppedError",
    "SystemFaultError",
    "UnmatchedError",
    "UnreadableError",
    "UsageError",
    "printable",
    "shortened",
]

LONGEST_NAME = 160
LONGEST_PART = 2_000


def printable(text: str) -> str:
    """``text`` with control characters, but for the ends of lines, made visible.

    Names come from files, and a file may put a terminal's control sequences into them.
    """
    return "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text)


def shortened(text: str, limit: int = LONGEST_NAME) -> str:
    """``text``, or its beginning and end with ``...`` between them where it is longer than ``limit``.

    A name in a file may have a hundred million characters.
    """
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 3]}...{text[-end:]}"


class ParamergeError(Exception):
    """Base of every error that paramerge raises on purpose.

    Parameters
    ----------
    what:
        One sentence: what is wrong.
    where:
        The file, tensor, layer or argument it is about.
    expected, found:
        The expected and the actual value.
    hint:
        The user's next step.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        self.what = _worded(what)
        self.where, self.expected, self.found = (
            None if part is None else _worded(part) for part in (where, expected, found)
        )
        if self.found == self.expected:  # says nothing: the fault is elsewhere
            self.found = None
        self.hint = None if hint is None else Worded(getattr(hint, "raw", hint))
        super().__init__(str(self))

    def lines(self) -> list[tuple[str, Worded]]:
        """The labelled parts that are present, in reading order, without ``what``."""
        parts = [
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("next", self.hint),
        ]
        return [(label, text) for label, text in parts if text]

    def __str__(self) -> str:
        return "\n".join([self.what, *(f"  {label}: {text}" for label, text in self.lines())])


def _worded(part: object) -> Worded:
    return Worded(shortened(getattr(part, "raw", str(part)), LONGEST_PART))


class UsageError(ParamergeError):
    """The call itself is wrong: an option, a strength, a combination of inputs."""

    exit_code = 2


class FileFormatError(ParamergeError):
    """A file is of another kind than its name says, damaged, or of a kind that is never opened (pickles)."""

    exit_code = 3


class MissingFileError(FileFormatError, FileNotFoundError):
    """There is no file or folder of this name; a :class:`FileNotFoundError`, too, as of any Python call."""


class InputChangedError(FileFormatError):
    """An input was written to, replaced or removed while it was in use."""


class UnreadableError(FileFormatError):
    """A file or folder exists and cannot be read: no permission, a fault of the disk, too many open files."""


class CheckpointError(ParamergeError):
    """A base checkpoint is missing, incomplete or of no known layout."""

    exit_code = 3


class MissingCheckpointError(CheckpointError, MissingFileError):
    """There is no file or folder of a base's name."""


class AdapterError(ParamergeError):
    """An adapter file is incomplete or its tensors do not fit together."""

    exit_code = 4


class IncompleteLayerError(AdapterError):
    """A layer of an adapter lacks a tensor that its family is nothing without."""


class FamilyError(AdapterError):
    """An adapter of a family that is recognised but not supported, or of the wrong family for the option."""


class UnmatchedError(AdapterError):
    """Keys of an adapter land nowhere in the base."""


class ShapeError(AdapterError):
    """A tensor of an adapter does not fit the weight it is meant for."""


class ArchitectureError(AdapterError):
    """An adapter made for another architecture than the base's."""


class NonFiniteError(ParamergeError):
    """NaN or Inf in an input or in a result."""

    exit_code = 5


class OutputError(ParamergeError):
    """The output cannot be written: it is an input, the disk is full, the folder is missing."""

    exit_code = 6


class SystemFaultError(ParamergeError):
    """The system refuses something that is no single file's fault: memory, threads, open files."""

    exit_code = 7


class PluginError(ParamergeError):
    """An addition of another package (a family, a dialect, an architecture) cannot be loaded, or is none."""

    exit_code = 8


class MissingInputError(ParamergeError):
    """Inputs that a recipe names by their hashes are in none of the places searched."""

    exit_code = 9
    unread: tuple[str, ...] = ()
    """Files and folders that could not be read on the way, each with the reason."""


class LossError(ParamergeError):
    """An output would keep less than half of what an adapter changes: its dtype is too coarse."""

    exit_code = 12


class InternalError(ParamergeError):
    """A fault of paramerge itself, which should be reported."""

    exit_code = 70


class StoppedError(ParamergeError):
    """The work was stopped from outside: how far it came, what is kept, and how it goes on."""

    exit_code = 130

    @classmethod
    def after(
        cls, stop: KeyboardInterrupt, what: str, *, where: object, found: object, hint: str
    ) -> StoppedError:
        """The error that says ``what`` became of the work; its exit code is that of the signal."""
        error = cls(what, where=where, found=found, hint=hint)
        error.exit_code = 128 + int(getattr(stop, "number", 2))
        return error
