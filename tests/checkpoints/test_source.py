"""Input files that are opened once: no mixture of two states of a file is ever taken for one."""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from paramerge.errors import FileFormatError, InputChangedError, UnreadableError, UsageError
from paramerge.files import source as module
from paramerge.files.header import read_header
from paramerge.files.source import Source

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "input.safetensors"
    path.write_bytes(CONTENT)
    return path


def overwrite(path: Path) -> None:
    with open(path, "r+b") as stream:
        stream.seek(100)
        stream.write(b"other")


def overwrite_and_put_the_times_back(path: Path) -> None:
    status = path.stat()
    overwrite(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def append(path: Path) -> None:
    with open(path, "ab") as stream:
        stream.write(b"more")


def truncate(path: Path) -> None:
    os.truncate(path, 5000)


def replace(path: Path) -> None:
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(CONTENT[::-1])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def remove(path: Path) -> None:
    path.unlink()


def into_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


CHANGES: list[Callable[[Path], None]] = [
    overwrite,
    overwrite_and_put_the_times_back,
    append,
    truncate,
    replace,
    remove,
    into_a_folder,
    into_a_pipe,
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("evicted", [False, True])
def test_every_change_is_seen(change: Callable[[Path], None], evicted: bool, path: Path) -> None:
    source = Source.open(path)
    assert source.read(10, 20) == CONTENT[10:20]
    source.check_unchanged()
    if evicted:
        module._DESCRIPTORS._close_down_to(0)
    change(path)
    if evicted:
        with pytest.raises(InputChangedError):
            source.read(0, 10)
    elif change in (replace, remove, into_a_folder, into_a_pipe):
        assert source.read(0, len(CONTENT)) == CONTENT  # the old file, whole
    with pytest.raises(InputChangedError, match="changed while it was in use") as caught:
        source.check_unchanged()
    assert caught.value.where == str(path)


def test_a_shorter_file_is_no_silence(path: Path) -> None:
    source = Source.open(path)
    truncate(path)
    with pytest.raises(InputChangedError, match="became shorter"):
        source.read(4990, 5010)


def test_a_change_within_a_tick_of_the_clock_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two changes with one time stamp: what was read is compared with what is there at the end."""
    monkeypatch.setattr(module, "_TICK_NS", 10**11)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    source = Source.open(path)
    source.read(90, 120)
    overwrite(path)
    monkeypatch.setattr(module.Stamp, "of", classmethod(lambda cls, status: source.stamp))
    with pytest.raises(InputChangedError, match="changed while"):
        source.check_unchanged()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def read_all(sources: list[Source], failures: list[BaseException]) -> None:
    try:
        for source in sources * 5:
            assert source.read(0, source.size) == source.path.name.encode() * 100
    except BaseException as error:
        failures.append(error)


def test_more_files_than_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of shards and thousands of adapters: those that rest are closed, and opened again."""
    monkeypatch.setattr(module._DESCRIPTORS, "limit", 4)
    paths = [tmp_path / str(number) for number in range(60)]
    for path in paths:
        path.write_bytes(path.name.encode() * 100)
    before = descriptors()
    sources = [Source.open(path) for path in paths]
    assert descriptors() <= before + 4
    failures: list[BaseException] = []
    threads = [threading.Thread(target=read_all, args=(sources, failures)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for source in sources:
        source.check_unchanged()
    del source, sources, threads
    gc.collect()
    assert descriptors() <= before


def test_none_left_to_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is at its limit: descriptors that are kept for later are closed for the new one."""
    kept = Source.open(path)
    really = os.open
    refused: list[int] = []

    def short_of_them(*arguments: object, **others: object) -> int:
        if not refused:
            refused.append(1)
            raise OSError(errno.EMFILE, "Too many open files")
        return really(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", short_of_them)
    assert Source.open(path).read(0, 5) == CONTENT[:5]
    assert kept.read(0, 5) == CONTENT[:5]
    monkeypatch.setattr(os, "open", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many")))
    with pytest.raises(UnreadableError, match="too many files are open"):
        Source.open(path)


def test_a_read_that_fails_says_which_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    source = Source.open(path)
    monkeypatch.setattr(os, "preadv", failing)
    with pytest.raises(UnreadableError, match="cannot be read: the disk reports an error"):
        source.read(0, 5)


def test_short_reads_are_repeated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.preadv
    source = Source.open(path)
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: really(fd, [views[0][:7]], at))
    assert source.read(3, 3000) == CONTENT[3:3000]


@pytest.mark.parametrize("name", ["missing", "folder", "pipe", "/dev/zero", "/dev/null", "x" * 300, "nul\0"])
def test_what_is_no_file_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for action in (Source.open, read_header):
        with pytest.raises((FileFormatError, UsageError)):
            action(tmp_path / name)
