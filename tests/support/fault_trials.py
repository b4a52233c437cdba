"""Trials of every verb with a system call that fails, comes up short, or is where a signal arrives.

``fault_shim.c`` is compiled into a temporary folder and preloaded into ``fault_server.py``. A trial is a verb
(or format), a call's number on files below its folder, and a fault; afterwards all files are compared.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fault_verbs import VERBS, write_inputs, write_models

from paramerge.system_faults import meaning

SHIM = Path(__file__).parents[2] / "tools" / "fault_shim.c"
HOWS = {"once": 0, "sticky": 1, "short": 2, "signal": 3}
ERRORS = {
    "open": ("EIO", "EMFILE", "ENFILE", "EACCES", "ESTALE", "ENOMEM", "EINTR"),
    "read": ("EIO", "ESTALE", "EINTR", "ENOMEM"),
    "write": ("ENOSPC", "EDQUOT", "EIO", "EINTR", "EFBIG"),
    "stat": ("EIO", "EACCES", "ESTALE"),
    "fsync": ("EIO", "ENOSPC", "EDQUOT"),
    "close": ("EIO", "ENOSPC", "EDQUOT"),
    "rename": ("ENOSPC", "EROFS", "EACCES", "EIO"),
    "link": ("ENOSPC", "EROFS", "EACCES", "EMFILE"),
    "mkdir": ("ENOSPC", "EROFS", "EACCES"),
    "unlink": ("EROFS", "EIO", "EACCES"),
    "truncate": ("ENOSPC", "EFBIG", "EIO"),
    "allocate": ("ENOSPC", "EDQUOT", "EFBIG"),
    "mmap": ("ENOMEM", "EACCES"),
    "copy": ("EIO", "ENOSPC"),
    "chmod": ("EROFS", "EACCES"),
    "statvfs": ("EIO", "EACCES"),
    "list": ("EIO", "ESTALE"),
    "access": ("EACCES",),
    "lock": ("ENOLCK", "EWOULDBLOCK"),
    "readlink": ("EIO", "EACCES"),
}
"""The errors that each kind of call can end with, by the manual pages."""
_CUT = ("read", "write", "copy")


@dataclass(frozen=True)
class Trial:
    """A verb, whether an output stands there before, and the fault: at which call, how, which error."""

    verb: str
    existing: bool
    at: int
    call: str
    how: str
    number: int

    def __str__(self) -> str:
        names = {"signal": signal.Signals, "short": lambda _: "short"}
        name = names.get(self.how, lambda n: errno.errorcode.get(n, n))(self.number)
        kind = getattr(name, "name", name)
        return f"{self.verb}{' onto one' if self.existing else ''}: {self.call} #{self.at} {self.how} {kind}"


@dataclass
class Tally:
    """What the trials came to: how many there were, how they ended, and each fault found with its trial."""

    ends: Counter[str] = field(default_factory=Counter)
    found: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """The number of trials."""
        return sum(self.ends.values())

    def faults(self) -> Counter[str]:
        """The faults found, by kind."""
        return Counter(kind for kind, _, _ in self.found)


def build_shim(folder: Path) -> Path | None:
    """Compile the shim; None where there is no compiler, or it is not made for this system."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    library = folder / "fault_shim.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    return library if subprocess.run(command, check=False, capture_output=True).returncode == 0 else None


class Server:
    """A process that carries out trials in ``folder``; with ``models``, of verbs that load models, too."""

    def __init__(self, shim: Path, folder: Path, *, models: bool = False) -> None:
        self.folder = folder.resolve()
        self.models = models
        self._aside = self.folder.with_name(self.folder.name + "-said")
        self._aside.mkdir(exist_ok=True)
        environment = os.environ | {
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "TERM": "dumb",
            "HF_HUB_OFFLINE": "1",
        }
        program = [sys.executable, str(Path(__file__).with_name("fault_server.py"))]
        self._process = subprocess.Popen(
            [*program, *(["models"] if models else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def run(self, arguments: Sequence[str], trial: Trial | None = None, *, count: bool = False) -> Any:
        """Carry out a command line; gives its exit code (see ``fault_server._run``)."""
        fault = {"how": None, "at": 0, "number": 0}
        if trial is not None:
            fault = {"how": HOWS[trial.how], "at": trial.at, "number": trial.number}
        elif count:
            fault["how"] = 0
        places = {name: str(self._aside / name) for name in ("out", "err", "log")}
        request = {"folder": str(self.folder), "arguments": list(arguments), **fault, **places}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def said(self, name: str) -> str:
        """What the last run printed (``out``, ``err``) or called (``log``)."""
        return (self._aside / name).read_text(errors="replace")

    def calls(self) -> list[tuple[bool, str, str]]:
        """The calls of the last run: whether the fault was there, which call, on which file."""
        lines = (line.split(" ", 2) for line in self.said("log").splitlines())
        return [(line[0] == "!", line[1], line[2]) for line in lines]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


class Bench:
    """Tiny inputs, each verb's right output, and trials on them, in the server's folder."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.folder = server.folder
        self._write_inputs()
        self._inputs = contents(self.folder / "in")
        self._right: dict[str, dict[str, str]] = {}

    def arguments(self, verb: str, existing: bool) -> list[str]:
        """The verb's command line, onto an earlier output or not."""
        case = VERBS[verb]
        return [*case.line.split(), *((case.again or "").split() if existing else [])]

    def states(self, verb: str) -> tuple[bool, ...]:
        """Whether an earlier output stands there: without and with, where there can be one."""
        case = VERBS[verb]
        return (False,) if case.again is None or (case.grows and not case.earlier) else (False, True)

    def prepare(self, verb: str, existing: bool) -> dict[str, str]:
        """Put the place of the output in order: empty, or with an earlier output; gives what is there."""
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        (self.folder / "out").mkdir()
        if existing:
            old = self.folder / "old" / verb
            if not old.exists():
                self._make_old(verb, old)
            shutil.copytree(old, self.folder / "out", dirs_exist_ok=True)
        return contents(self.folder / "out")

    def right(self, verb: str) -> dict[str, str]:
        """What a run without a fault leaves."""
        if verb not in self._right:
            self.prepare(verb, False)
            code = self.server.run(self.arguments(verb, False))
            assert code == 0, self.server.said("err")
            self._right[verb] = contents(self.folder / "out")
        return self._right[verb]

    def trials(
        self, verb: str, existing: bool, signals: Sequence[int] = (), each: int | None = None
    ) -> Iterator[Trial]:
        """All trials of a verb: each call with each of its errors, or with each of ``signals``.

        With ``each``, a seed, each call has one of them alone.
        """
        self.right(verb)
        self.prepare(verb, existing)
        assert self.server.run(self.arguments(verb, existing), count=True) == 0, self.server.said("err")
        for at, (_, call, _) in enumerate(self.server.calls(), start=1):
            faults = [("signal", number) for number in signals] or list(_faults_of(call))
            for how, number in faults if each is None else [random.Random(f"{each} {at}").choice(faults)]:
                yield Trial(verb, existing, at, call, how, number)

    def carry_out(self, trial: Trial, tally: Tally) -> None:
        """Run a trial and note all that is wrong afterwards."""
        right = self.right(trial.verb)
        before = self.prepare(trial.verb, trial.existing)
        code = self.server.run(self.arguments(trial.verb, trial.existing), trial)
        text = self.server.said("err") + self.server.said("out")
        hit = any(there for there, _, _ in self.server.calls())
        tally.ends[str(code)] += 1

        def wrong(kind: str, what: object = "") -> None:
            tally.found.append((kind, str(trial), f"{what}\n{text}"))

        if code == "hang":
            wrong("hang")
        elif "Traceback" in text or code in (1, 70, 99):
            wrong("traceback")
        elif code < 0 and not (trial.how == "signal" and code == -trial.number):
            wrong("crash", code)
        elif hit and code > 0 and trial.how in ("once", "sticky"):
            words = (meaning(OSError(trial.number, "", "x"))[0], os.strerror(trial.number))
            if not any(word in text for word in words) and not _says_it_otherwise(trial, text):
                wrong("unsaid", words)
        elif hit and code > 0 and trial.how == "short":
            wrong("short count is not repeated")
        if contents(self.folder / "in") != self._inputs:
            wrong("input changed")
            shutil.rmtree(self.folder / "in")
            self._write_inputs()
        found = contents(self.folder / "out")
        if code == 0 and outputs(found) != right:
            wrong("success with another output", differences(found, right))
        elif code != 0 and VERBS[trial.verb].grows:
            self._check_next_run(trial, wrong)
        elif code != 0 and outputs(found) not in (before, right):
            wrong("torn output", sorted(found))
        elif found.keys() - right.keys() - before.keys():
            self._check_next_run(trial, wrong)

    def _check_next_run(self, trial: Trial, wrong: Any) -> None:
        """The next run without a fault clears away what stands beside the output, and ends as it should.

        One that fills a folder over time goes on, and ends as if nothing had happened.
        """
        code = self.server.run(self.arguments(trial.verb, True))
        found, right = contents(self.folder / "out"), self.right(trial.verb)
        if code != 0:
            wrong("the next run fails", self.server.said("err"))
        elif left := found.keys() - right.keys():
            wrong("litter", sorted(left))
        elif VERBS[trial.verb].grows and found != right:
            wrong("the next run ends otherwise", differences(found, right))

    def _make_old(self, verb: str, old: Path) -> None:
        """An output of ours that differs: of the same verb with other options, or on other inputs."""
        words = self.arguments(verb, False)
        if VERBS[verb].earlier:
            words += VERBS[verb].earlier.split()
        else:
            words = ["in/b.safetensors" if word == "in/a.safetensors" else word for word in words]
        code = self.server.run(words)
        assert code == 0, self.server.said("err")
        shutil.copytree(self.folder / "out", old)
        shutil.rmtree(self.folder / "out")
        (self.folder / "out").mkdir()

    def _write_inputs(self) -> None:
        write_inputs(self.folder / "in")
        if self.server.models:
            write_models(self.folder / "in")


def _faults_of(call: str) -> Iterator[tuple[str, int]]:
    """How a call can fail."""
    for name in ERRORS[call]:
        yield from ((how, getattr(errno, name)) for how in ("once", "sticky")[: 1 if name == "EINTR" else 2])
    if call in _CUT:
        yield "short", 0


def differences(found: dict[str, str], right: dict[str, str]) -> str:
    """What is there and should not be, is not there, or is otherwise."""
    names = sorted(found.keys() | right.keys())
    return ", ".join(
        f"{name} is {'missing' if name not in found else 'too much' if name not in right else 'different'}"
        for name in names
        if found.get(name) != right.get(name)
    )


def _says_it_otherwise(trial: Trial, text: str) -> bool:
    words = {
        errno.EACCES: ("permission", "may not be", "not readable"),
        errno.ENOSPC: ("room", "full"),
    }.get(trial.number, ())
    # libraries that load models take what they cannot see for what is not there, and say so in their words
    library = ("diffusers cannot load", "no CLIP", "CLIP cannot be") if VERBS[trial.verb].models else ()
    return any(word in text for word in (*words, *library))


def outputs(found: dict[str, str]) -> dict[str, str]:
    """What is no temporary file or folder: names that begin with a dot are."""
    return {
        name: value
        for name, value in found.items()
        if not any(part.startswith(".") for part in Path(name).parts)
    }


def contents(folder: Path) -> dict[str, str]:
    """Each file below ``folder`` with the hash of its bytes, and each folder."""
    return {
        str(path.relative_to(folder)): "folder"
        if path.is_dir()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
    }


def sample(trials: Sequence[Trial], count: int, seed: int) -> list[Trial]:
    """So many trials by chance, or all."""
    return random.Random(seed).sample(list(trials), count) if 0 < count < len(trials) else list(trials)
