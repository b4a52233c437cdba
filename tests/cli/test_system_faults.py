"""Faults of the system on the command line: said as what they are, nothing torn, never a traceback."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from fault_trials import Bench, Server, Tally, build_shim, sample
from fault_verbs import write_inputs

from paramerge.cli import main as command_line
from paramerge.errors import InternalError, SystemFaultError, UnreadableError, UsageError
from paramerge.system_faults import as_paramerge_error, reading

FEW = 3
"""Trials of each verb and kind in the default run; tools/campaign.py does them all."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("trials")
    shim = build_shim(folder)
    if shim is None:
        pytest.skip("no C compiler, or not Linux: the shim cannot be built")
    (folder / "trials").mkdir()
    server = Server(shim, folder / "trials")
    yield Bench(server)
    server.close()


@pytest.mark.parametrize("verb", ["bake-folder", "convert-peft", "compare"])
@pytest.mark.parametrize("signals", [(), (signal.SIGKILL, signal.SIGTERM)])
def test_a_few_system_calls_fail_or_are_where_a_signal_comes(
    bench: Bench, verb: str, signals: tuple[int, ...]
) -> None:
    tally = Tally()
    existing = random.Random(verb).random() < 0.5
    for trial in sample(list(bench.trials(verb, existing, signals)), FEW, seed=5):
        bench.carry_out(trial, tally)
    assert not tally.found
    assert tally.runs == FEW


def test_a_stopped_program_leaves_by_the_signals_number(bench: Bench) -> None:
    trials = list(bench.trials("resize", False, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)))
    tally = Tally()
    for trial in trials[:3]:
        bench.carry_out(trial, tally)
    assert tally.ends == {"143": 1, "129": 1, "130": 1}


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        command_line.main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def raising(error: BaseException) -> click.Command:
    def act() -> None:
        raise error

    return click.Command("inspect", callback=act)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.EMFILE, "", "some.file"), 7, "too many files are open"),
        (OSError(errno.ENFILE, ""), 7, "too many files are open in the whole system"),
        (OSError(errno.EIO, "", b"some.file"), 7, "the disk reports an error"),
        (OSError(errno.EROFS, "", "some.file"), 7, "read-only"),
        (OSError(errno.EPROTO, "Protocol error"), 7, "Protocol error"),
        (PermissionError(errno.EACCES, "", "some.file"), 7, "there is no permission"),
        (MemoryError(), 7, "memory is used up"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 7, "memory is used up"),
        (RuntimeError("can't start new thread"), 7, "another thread"),
        (ImportError("cannot open shared object file: Too many open files"), 7, "a library cannot be loaded"),
        (ValueError("embedded null byte"), 2, "NUL"),
        (np.linalg.LinAlgError("SVD did not converge"), 5, "cannot be decomposed"),
        (RecursionError("maximum recursion depth exceeded"), 70, "nested too deeply"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 70, "not valid Unicode"),
        (EOFError("no data left"), 70, "an internal error"),
        (KeyError("weight"), 70, "KeyError: 'weight'"),
    ],
)
def test_whatever_gets_through_is_an_error_and_no_traceback(
    error: Exception,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command_line.LazyGroup, "get_command", lambda *_: raising(error))
    assert call("inspect") == code
    shown = capfd.readouterr().err
    assert words in shown
    assert shown.count("error: ") == 1
    assert "Traceback" not in shown
    if b"some.file" in error.args or "some.file" in str(error):
        assert "some.file" in shown


def test_the_traceback_is_there_for_a_report(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command_line.LazyGroup, "get_command", lambda *_: raising(KeyError("weight")))
    monkeypatch.setenv("PARAMERGE_TRACEBACK", "1")
    assert call("inspect") == 70
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_and_later_ones_do_not_disturb(
    number: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cleaned = []

    def act() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), number)
            cleaned.append(True)

    monkeypatch.setattr(
        command_line.LazyGroup, "get_command", lambda *_: click.Command("inspect", callback=act)
    )
    before = signal.getsignal(number)
    assert call("inspect") == 128 + number
    assert cleaned
    assert "stopped; " in capfd.readouterr().err
    assert signal.getsignal(number) is before


def test_a_signal_that_comes_in_a_finaliser_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("finalised")

    def act() -> None:
        dying = Dying()
        del dying
        time.sleep(5)
        done.append("went on")

    done: list[str] = []
    monkeypatch.setattr(
        command_line.LazyGroup, "get_command", lambda *_: click.Command("inspect", callback=act)
    )
    assert call("inspect") == 143
    assert done == ["finalised"]


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    program = f'paramerge() {{ "{sys.executable}" -m paramerge.cli "$@"; }}; {line}'
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", "-c", program], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("paramerge --help >/dev/full", 6, "the standard output cannot be written: the disk is full"),
        ("PYTHONUNBUFFERED=1 paramerge --help >/dev/full", 6, "the standard output cannot be written"),
        ("paramerge inspect none --json >/dev/full", 3, "no such file"),
        ("paramerge inspect none 2>/dev/full", 3, ""),
        ("set -o pipefail; paramerge --help | (exec <&-; sleep 0.5)", 141, ""),
        ("paramerge --version >&-", 0, ""),
        ("mkdir x; cd x; rmdir ../x; paramerge inspect y", 7, "the current folder no longer exists"),
    ],
)
def test_what_cannot_be_printed_and_folders_that_are_gone(
    line: str, code: int, words: str, tmp_path: Path
) -> None:
    done = shell(line, tmp_path)
    assert done.returncode == code
    assert words in done.stderr
    assert done.stderr.count("error: ") == (1 if words else 0)
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    write_inputs(folder / "in")
    return folder / "in"


def test_names_that_are_not_utf8(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = {}
    for name in ("base", "a"):
        odd[name] = tmp_path / os.fsdecode(name.encode() + b"\xff.safetensors")
        odd[name].write_bytes((inputs / f"{name}.safetensors").read_bytes())
    output = os.fsdecode(b"o\xfe.safetensors")
    assert call("bake", "--base", odd["base"], "--lora", odd["a"], "-o", output) == 0
    assert call("bake", "--base", odd["base"], "--lora", odd["a"], "--json") == 0
    assert call("inspect", output) == 0
    assert "base\\xff" in capfd.readouterr().out
    assert call("compare", odd["a"], inputs / "b.safetensors", "--report", "r.html") == 0
    assert call("merge", odd["a"], inputs / "b.safetensors", "-o", "m.safetensors") == 0


def test_names_are_as_long_as_the_file_system_allows(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "\u0928\u093e" * 40 + ".safetensors"  # 252 bytes in UTF-8
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes((inputs / "a.safetensors").read_bytes())
    step = f"{tmp_path / 'in' / name}@0.5"
    assert call("bake", "--base", inputs / "base.safetensors", "--lora", step, "-o", name) == 0
    assert call("bake", "--base", inputs / "base.safetensors", "--lora", step) == 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    capfd.readouterr()
    for arguments in (("-o", "x" * 260 + ".safetensors"), ("-o", "x\0y.safetensors")):
        assert call("bake", "--base", inputs / "base.safetensors", "--lora", step, *arguments) in (2, 6)
        assert "error: " in capfd.readouterr().err.lower()
    assert call("inspect", "x" * 256) == 3
    assert "too long" in capfd.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs to become another user")
def test_a_user_without_a_home_and_folders_that_may_not_be_entered(inputs: Path, tmp_path: Path) -> None:
    for folder in (*tmp_path.parents, *inputs.parents):
        if folder.is_relative_to(Path(os.environ.get("TMPDIR", "/tmp"))) and folder.owner() == "root":
            folder.chmod(folder.stat().st_mode | 0o055)
    tmp_path.chmod(0o777)
    (tmp_path / "locked").mkdir(mode=0)
    user = f"setpriv --reuid 54321 --regid 54321 --clear-groups env -u HOME {sys.executable} -m paramerge.cli"
    bake = f"bake --base {inputs}/base.safetensors --lora"
    if shell(f"{user.partition(' -m ')[0]} -c pass", tmp_path).returncode:
        pytest.skip("this Python cannot be run by another user, or there is no setpriv")
    done = shell(f"{user} {bake} {inputs}/a.safetensors -o o.safetensors", tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "~").exists()
    for line in (
        "inspect locked/x",
        "inspect locked/x/a.safetensors",
        f"{bake} locked/x -o q.safetensors",
        f"bake --base locked/x --lora {inputs}/a.safetensors -o q.safetensors",
        f"merge locked/x {inputs}/a.safetensors -o q.safetensors",
        f"resize {inputs}/a.safetensors --rank 1 -o locked/q.safetensors",
        f"convert {inputs}/a.safetensors --to peft -o locked/q",
    ):
        done = shell(f"{user} {line}", tmp_path)
        assert done.returncode in (2, 3, 6), line
        assert "permission" in done.stderr or "may not be read" in done.stderr, done.stderr


def test_reading_names_the_file_and_what_the_system_says(tmp_path: Path) -> None:
    for number, words in ((errno.EIO, "disk reports an error"), (errno.EMFILE, "too many files")):
        with pytest.raises(UnreadableError, match=words) as caught, reading(tmp_path / "a"):
            raise OSError(number, os.strerror(number))
        assert caught.value.where == str(tmp_path / "a")
    with pytest.raises(UnreadableError) as caught, reading("a"):
        raise PermissionError(errno.EACCES, "", "b")
    assert caught.value.where == "b"
    with pytest.raises(UsageError), reading("a\0b"):
        open("a\0b")  # noqa: SIM115


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc here")
def test_a_folder_that_takes_no_files_is_called_that(inputs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call("resize", inputs / "a.safetensors", "--rank", 1, "-o", "/proc/x.safetensors") == 6
    assert "no file can be made in this folder" in capfd.readouterr().err


def test_errors_of_the_project_stay_as_they_are() -> None:
    error = UsageError("as it is")
    assert as_paramerge_error(error) is error
    assert type(as_paramerge_error(TypeError("x"))) is InternalError
    assert type(as_paramerge_error(TimeoutError(errno.ETIMEDOUT, "timed out"))) is SystemFaultError


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bake = ("bake", "--base", inputs / "model", "--lora", inputs / "lora.safetensors", "-o", tmp_path / "o")
    assert call(*bake) == 0
    (tmp_path / "o" / "mine").mkdir()
    (tmp_path / "o" / "mine" / "precious").touch()
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("mine"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert call(*bake, "--overwrite") == 6
    assert "permission" in capfd.readouterr().err
    assert (tmp_path / "o" / "mine" / "precious").exists()
