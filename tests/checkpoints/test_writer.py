"""Files that appear whole or not at all, positioned writes, and remembered hashes."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from paramerge.errors import OutputError
from paramerge.files import positioned, writer
from paramerge.files.positioned import ALIGNMENT, PositionedWriter, aligned_buffer
from paramerge.files.writer import append_line, exchange_names, new_file, write_bytes


@pytest.fixture(params=["unnamed", "named"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "named":
        monkeypatch.setattr(writer, "_open_unnamed", lambda folder: None)


@pytest.mark.usefixtures("way")
def test_new_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"one")
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o604)
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o604
    with pytest.raises(ZeroDivisionError), new_file(path) as descriptor:
        os.write(descriptor, b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a"]  # noqa: PTH208


def test_errors_say_what_and_what_next(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="folder does not exist"):
        write_bytes(tmp_path / "missing" / "a", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="the output is a folder"):
        write_bytes(tmp_path / "folder", b"")


def test_names_trade_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    if not exchange_names(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange names")
    assert (tmp_path / "a" / "file").read_text() == "b"
    assert (tmp_path / "b" / "file").read_text() == "a"
    assert not exchange_names(tmp_path / "a", tmp_path / "missing")
    assert (tmp_path / "a" / "file").read_text() == "b"


@pytest.mark.parametrize("direct", [True, False])
def test_positioned_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    """Pieces of every length and alignment, from two threads, give the same file as writing in order."""
    if not direct:
        monkeypatch.setattr(positioned, "_open_direct", lambda descriptor: None)
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, 300_000, dtype=np.uint8).tobytes()
    cuts = sorted({0, len(content), *rng.integers(0, len(content), 12), 8192, 12288, 12289})
    pieces = list(itertools.pairwise(cuts))
    path = tmp_path / "a"
    with open(path, "w+b") as stream:
        target = PositionedWriter(stream.fileno(), len(content))

        def work(mine: list[tuple[int, int]]) -> None:
            for start, stop in mine:
                shift = start % ALIGNMENT
                view = memoryview(aligned_buffer(stop - start + ALIGNMENT))[shift : shift + stop - start]
                view[:] = content[start:stop]
                target.write(view, start)

        threads = [threading.Thread(target=work, args=(pieces[i::2],)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        target.close()
    assert path.read_bytes() == content


def test_direct_writes_that_stop_working_are_finished_by_buffered_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(5 * ALIGNMENT)
    with open(tmp_path / "a", "w+b") as stream:
        target = PositionedWriter(stream.fileno(), len(content))
        if not target.is_direct:
            pytest.skip("this file system has no direct writes")
        real, direct = os.pwrite, target._direct

        def refusing(descriptor: int, data: memoryview, position: int) -> int:
            if descriptor == direct and position >= 2 * ALIGNMENT:
                raise OSError(22, "no")
            return real(descriptor, data[:ALIGNMENT], position)

        monkeypatch.setattr(os, "pwrite", refusing)
        view = memoryview(aligned_buffer(len(content)))[: len(content)]
        view[:] = content
        target.write(view, 0)
        target.close()
    assert (tmp_path / "a").read_bytes() == content


def test_lines_are_added_to_the_last_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    for line in (b"the first\n", b"the second\n"):
        append_line(tmp_path / "log", line)
    assert (tmp_path / "log").read_bytes() == b"the first\nthe second\n"
    monkeypatch.setattr(os, "write", lambda descriptor, data: 0)
    with pytest.raises(OutputError, match="disk reports an error"):
        append_line(tmp_path / "log", b"x\n")
