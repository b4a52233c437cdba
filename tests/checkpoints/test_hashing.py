"""Remembered hashes: believed of the very same file only, and a cache of whatever content harms nobody."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from paramerge.files import hashing
from paramerge.files.hashing import (
    HashBeside,
    cached_sha256,
    distrust_cache,
    file_sha256,
    legacy_hash,
    source_sha256,
)
from paramerge.files.source import Source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; files count as settled as soon as they are written."""
    path = tmp_path / "cache" / "sha256.json"
    monkeypatch.setattr(hashing, "_cache_file", lambda: path)
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 0)
    return path


def known(path: Path) -> str | None:
    return cached_sha256(Source.open(path))


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_hashes_are_remembered_by_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert known(path) is None
    assert file_sha256(path) == known(path) == digest_of(b"one")
    link = tmp_path / "b"
    link.symlink_to(path)
    assert known(link) == digest_of(b"one")
    path.write_bytes(b"longer")
    assert known(path) is None


def test_an_edit_with_its_times_put_back_is_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    file_sha256(path)
    with open(path, "r+b") as stream:
        stream.write(b"two")
    os.utime(path, ns=times)
    assert known(path) is None
    assert file_sha256(path) == digest_of(b"two")


@pytest.mark.parametrize("place", [0, 500_000, 999_999])
def test_samples_are_read_where_the_times_say_nothing(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system without a time of change: blocks of the bytes still tell most edits."""
    monkeypatch.setattr(hashing, "_identity", lambda source: "the same")
    content = bytearray(os.urandom(1_000_000))
    path = tmp_path / "a"
    path.write_bytes(content)
    assert file_sha256(path) == known(path) == digest_of(content)
    content[place] ^= 1
    path.write_bytes(content)
    assert known(path) is None
    assert file_sha256(path) == digest_of(content)


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_SETTLED_SECONDS", 100)
    path = tmp_path / "a"
    path.write_bytes(b"fresh")
    os.utime(path, (1, 1))
    file_sha256(path)
    assert known(path) is None


def test_a_distrusted_cache_is_mended(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    file_sha256(path)
    cache.write_text(cache.read_text().replace(digest_of(b"one"), "0" * 64, 1))
    assert known(path) == "0" * 64
    with distrust_cache():
        assert known(path) is None
        assert file_sha256(path) == digest_of(b"one")
    assert known(path) == digest_of(b"one")


def entry_of(path: Path, value: object) -> bytes:
    return json.dumps({hashing._identity(Source.open(path)): value}).encode()


DIGEST = digest_of(b"one")
FAULTS = {
    "empty": b"",
    "a list": b"[]",
    "no text": b"\xff",
    "deep": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "null": b"null",
}
VALUES: list[object] = [
    3,
    None,
    [],
    {},
    "\x1b[31m" * 16,
    "z" * 64,
    "Z" * 64 + ":" + "0" * 64,
    DIGEST,
    DIGEST + ":",
    DIGEST + ":" + "0" * 64,
    DIGEST.upper() + ":" + DIGEST,
    DIGEST + ":" + DIGEST + "\n",
]


@pytest.mark.parametrize("content", FAULTS.values(), ids=FAULTS)
def test_a_broken_cache_costs_only_time(content: bytes, tmp_path: Path, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert file_sha256(path) == digest_of(b"one")
    assert isinstance(json.loads(cache.read_bytes()), dict)


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_an_entry_that_is_no_hash_is_not_believed(value: object, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"two")
    cache.parent.mkdir()
    cache.write_bytes(entry_of(path, value))
    assert known(path) is None
    assert file_sha256(path) == digest_of(b"two") == known(path)


@pytest.mark.parametrize(
    "digest", ["\x1b[31m" + "0" * 59, "f" * 63, "F" * 64, "g" * 64, "0" * 65, "0" * 63 + "\n"]
)
def test_a_digest_that_is_none_is_not_believed_beside_true_samples(
    digest: str, tmp_path: Path, cache: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"two")
    cache.parent.mkdir()
    cache.write_bytes(entry_of(path, f"{digest}:{digest_of(b'two')}"))
    assert known(path) is None


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "huge", "dangling"])
def test_a_cache_that_is_no_small_file_neither_hangs_nor_fails(
    kind: str, tmp_path: Path, cache: Path
) -> None:
    cache.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(cache)
    elif kind == "folder":
        cache.mkdir()
    elif kind == "huge":
        with open(cache, "wb") as stream:
            stream.truncate(1 << 40)
    else:
        cache.symlink_to("/dev/zero" if kind == "device" else tmp_path / "nowhere")
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert file_sha256(path) == file_sha256(path) == digest_of(b"one")
    assert kind == "folder" or known(path) == digest_of(b"one")  # rewritten
    assert Path("/dev/zero").is_char_device()


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(hashing, "_cache_file", lambda: tmp_path / "file" / "sha256.json")
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert file_sha256(path) == digest_of(b"one")


def test_several_writers_lose_no_entry(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(12)]
    for path in paths:
        path.write_bytes(path.name.encode())
    threads = [threading.Thread(target=file_sha256, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [known(path) for path in paths] == [digest_of(path.name.encode()) for path in paths]


def test_hashing_beside_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the others within its window, goes on when they are done, and gives up when told."""
    monkeypatch.setattr(HashBeside, "_WINDOW", 1 << 20)
    content = os.urandom(6 << 20)
    path = tmp_path / "a"
    path.write_bytes(content)
    reached = 0
    beside = HashBeside(Source.open(path), lambda: reached)
    time.sleep(0.1)
    assert beside._digest is None
    reached = 3 << 20
    assert beside.result() == digest_of(content) == known(path)
    stopped = HashBeside(Source.open(path), lambda: 0)
    stopped.stop()
    stopped._thread.join(5)
    assert not stopped._thread.is_alive()
    with pytest.raises(RuntimeError):
        stopped.result()


def test_the_short_hash(tmp_path: Path) -> None:
    content = os.urandom(0x100000 + 0x20000)
    path = tmp_path / "a"
    path.write_bytes(content)
    assert legacy_hash(path) == digest_of(content[0x100000:0x110000])[:8]
    path.write_bytes(b"short")
    assert legacy_hash(path) == digest_of(b"")[:8]


def test_an_open_source_is_hashed_by_its_descriptor(tmp_path: Path) -> None:
    """A file that was put in its place is not mixed with it, and not remembered under its name."""
    path = tmp_path / "a"
    path.write_bytes(b"one")
    source = Source.open(path)
    (tmp_path / "b").write_bytes(b"two")
    (tmp_path / "b").replace(path)
    assert source_sha256(source) == digest_of(b"one")
    assert file_sha256(path) == digest_of(b"two")
