"""Folders and files that are replaced at one stroke: killed at any call, there is the old or the new one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paramerge.errors import OutputError
from paramerge.files import staging, writer
from paramerge.files.source import Source
from paramerge.files.stages import stage_name
from paramerge.files.staging import RECIPE_FILE, new_folder, restore_folder, strangers, write_recipe
from paramerge.files.writer import new_file, write_bytes, written_outputs

KILLED_AT_EVERY_CALL = """
import os, sys
from pathlib import Path
from paramerge.files import staging, writer
from paramerge.files.staging import RECIPE_FILE, new_folder, restore_folder, write_recipe

place, kind, way, there = Path(sys.argv[1]), *sys.argv[2:]
target = place / "out"
calls = "open mkdir rename replace link unlink rmdir fsync chmod fchmod close write listdir scandir".split()
real = {name: getattr(os, name) for name in calls}
if way == "no-exchange":
    staging.exchange_names = lambda a, b: False
if way == "named":
    writer._open_unnamed = lambda folder: None

def write(text):
    if kind == "file":
        writer.write_bytes(target, text)
        return
    with new_folder(target, overwrite=True) as stage:
        (stage / "part").mkdir()
        (stage / "part" / text.decode()).write_bytes(text)
        writer.write_bytes(stage / "same", text)
        write_recipe(stage, {})

def content():
    if not target.exists():
        return None
    if kind == "file":
        return target.read_bytes()
    return {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}

def killed(n):
    child = real_fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    count = 0
    def wrapped(name):
        def call(*args, **kwargs):
            nonlocal count
            if count == n:
                os._exit(9)
            count += 1
            return real[name](*args, **kwargs)
        return call
    for name in calls:
        setattr(os, name, wrapped(name))
    write(b"new")
    os._exit(0)

real_fork = os.fork
write(b"new"); new = content()
write(b"old"); old = content()
gone = points = 0
while True:
    if there == "nothing":
        staging._remove_tree(target) if kind == "folder" else target.unlink()
        old = None
    if not killed(points):
        break
    found = content()
    if found is None and old is not None:
        gone += 1
        restore_folder(target)
        found = content()
    assert found in (old, new), (points, found)
    write(b"old")
    assert os.listdir(place) == ["out"], (points, os.listdir(place))
    old = content()
    points += 1
assert content() == new
print(points, gone)
"""


@pytest.mark.parametrize("there", ["something", "nothing"])
@pytest.mark.parametrize(
    ("kind", "way"),
    [("folder", "exchange"), ("folder", "no-exchange"), ("file", "unnamed"), ("file", "named")],
)
def test_killed_at_every_call(tmp_path: Path, kind: str, way: str, there: str) -> None:
    """Old or new, and no litter after the next run; without an exchange the old one is put back by it."""
    command = [sys.executable, "-c", KILLED_AT_EVERY_CALL, str(tmp_path), kind, way, there]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    points, gone = map(int, result.stdout.split())
    assert points >= (20 if kind == "folder" else 6)
    assert (gone > 0) == (way == "no-exchange" and there == "something")


def ours(folder: Path, text: str = "one") -> Path:
    """A folder that paramerge wrote."""
    with new_folder(folder) as stage:
        (stage / "inner").mkdir()
        (stage / "inner" / "a").write_text(text)
        (stage / "b").write_text(text)
        write_recipe(stage, {"note": text})
    return folder


def test_the_recipe_lists_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ours(tmp_path / "out")
    content = json.loads((folder / RECIPE_FILE).read_bytes())
    assert content["note"] == "one"
    assert [(entry["path"], entry["bytes"]) for entry in content["outputs"]] == [("b", 3), ("inner/a", 3)]
    assert strangers(folder) == []
    (folder / "mine.txt").write_text("x")
    (folder / "link").symlink_to("b")
    (folder / "empty").mkdir()
    (folder / "b").write_text("two")
    assert strangers(folder) == ["b", "empty", "link", "mine.txt"]
    monkeypatch.setattr(staging, "_WHOLE_BYTES", 2)
    monkeypatch.setattr(staging, "_SAMPLE_BYTES", 2)
    large = ours(tmp_path / "large")
    assert "sampled_sha256" in json.loads((large / RECIPE_FILE).read_bytes())["outputs"][0]
    assert strangers(large) == []
    (large / "b").write_text("onf")
    assert strangers(large) == ["b"]


@pytest.mark.parametrize("recipe", [b"", b"[]", b"{}", b'{"outputs": 3}', b'{"outputs": [3]}', b"[" * 10**5])
def test_a_recipe_that_lists_nothing_is_none_of_ours(tmp_path: Path, recipe: bytes) -> None:
    (tmp_path / RECIPE_FILE).write_bytes(recipe)
    assert strangers(tmp_path) is None


def test_files_that_come_meanwhile_are_kept(tmp_path: Path) -> None:
    folder = ours(tmp_path / "out")
    with pytest.raises(OutputError, match="meanwhile"), new_folder(folder, overwrite=True):
        (folder / "mine").write_text("x")
    assert (folder / "mine").read_text() == "x"
    with pytest.raises(OutputError, match="meanwhile"), new_folder(tmp_path / "new"):
        ours(tmp_path / "new", "two")
    assert (tmp_path / "new" / "b").read_text() == "two"
    with pytest.raises(OutputError, match="meanwhile"), new_file(tmp_path / "file", overwrite=False):
        (tmp_path / "file").write_text("x")
    assert (tmp_path / "file").read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new", "out"]


def test_modes_are_kept(tmp_path: Path) -> None:
    folder = ours(tmp_path / "out")
    folder.chmod(0o700)
    (folder / "inner" / "a").chmod(0o600)
    with new_folder(folder, overwrite=True) as stage:
        assert stage.stat().st_mode & 0o777 == 0o700
        (stage / "inner").mkdir()
        (stage / "inner" / "a").write_text("two")
        write_recipe(stage, {})
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "inner" / "a").stat().st_mode & 0o777 == 0o600


def test_the_stage_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    dead = tmp_path / ".other.0123456789ab.partial"
    dead.mkdir()
    (dead / "a").write_text("x")
    (tmp_path / ".a.0123456789ab.partial").write_text("dead, too")
    kept = tmp_path / ".mine.partial"
    kept.write_text("no stage")
    with new_folder(tmp_path / "out") as stage:
        write_bytes(tmp_path / "file", b"x")
        ours(tmp_path / "second")
        assert stage.is_dir()
        (stage / "a").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.partial", "file", "out", "second"]


def test_an_old_folder_is_put_back_only_for_the_dead(tmp_path: Path) -> None:
    target = ours(tmp_path / "out")
    stage, aside = (tmp_path / f".out.0123456789ab.{state}" for state in ("partial", "old"))
    target.rename(aside)
    stage.mkdir()
    lock = os.open(stage, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    restore_folder(target)
    assert aside.is_dir() and not target.exists()
    os.close(lock)
    restore_folder(target)
    assert target.is_dir() and not aside.exists()


@pytest.mark.parametrize("name", ["a" * 255, "模" * 85, "x.safetensors"])
def test_long_names(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_open_unnamed", lambda folder: None)
    write_bytes(tmp_path / name, b"x")
    (tmp_path / "folder").mkdir()
    ours(tmp_path / "folder" / name)
    assert stage_name(Path(name)) != stage_name(Path(name[:-1] + "b"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_sync_that_fails_after_the_rename_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def failing(folder: Path) -> None:
        if folder == tmp_path:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(writer, "sync_folder", failing)
    monkeypatch.setattr(staging, "sync_folder", failing)
    with pytest.raises(OutputError, match="is there and whole"):
        ours(tmp_path / "out") if kind == "folder" else write_bytes(tmp_path / "out", b"x")
    assert (tmp_path / "out").exists()
    assert written_outputs()[-1] == tmp_path / "out"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_all_is_synced_before_the_rename_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No kill can show it, a power failure would: every file and folder, then the rename, then the parent."""
    done: list[object] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        done.append(os.fstat(descriptor).st_ino)
        real_fsync(descriptor)

    def rename(a: Path, b: Path) -> None:
        done.append("renamed")
        real_rename(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    folder = ours(tmp_path / "out")
    before, after = done[: done.index("renamed")], done[done.index("renamed") :]
    assert {path.stat().st_ino for path in (folder, *folder.rglob("*"))} <= set(before)
    assert after[-1] == tmp_path.stat().st_ino
    writer.make_folder(tmp_path / "new" / "inner")
    assert done[-2:] == [tmp_path.stat().st_ino, (tmp_path / "new").stat().st_ino]


@pytest.mark.parametrize("count", [0, 1, 7])
def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Fewer bytes than asked for: written on, or an error where there are none at all."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:count]) if count else 0)
    if count:
        writer.write_safetensors(tmp_path / "a", {})
        write_bytes(tmp_path / "b", b"longer than seven")
        assert (tmp_path / "b").read_bytes() == b"longer than seven"
    else:
        with pytest.raises(OutputError):
            write_bytes(tmp_path / "b", b"x")
        assert not (tmp_path / "b").exists()


def test_a_header_that_reads_back_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = writer.read_at

    def changed(descriptor: int, view: memoryview, position: int) -> int:
        count = real(descriptor, view, position)
        view[:count] = bytes(view[:count]).replace(b"old", b"odd")
        return count

    monkeypatch.setattr(writer, "read_at", changed)
    with pytest.raises(OutputError, match="reads back as something else"):
        writer.write_safetensors(tmp_path / "a", {}, {"key": "old"})
    assert not (tmp_path / "a").exists()


def test_a_header_beyond_the_readers_limit_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paramerge.files.header.MAX_HEADER_BYTES", 100)
    with pytest.raises(OutputError, match="larger than any reader allows"):
        writer.write_safetensors(tmp_path / "a", {}, {"key": "x" * 100})
    assert not list(tmp_path.iterdir())


def test_a_stage_goes_where_no_descriptor_is_left(tmp_path: Path) -> None:
    """Those of inputs, kept for later, are given up for it."""
    resource = pytest.importorskip("resource")
    stage = tmp_path / "stage"
    (stage / "inner").mkdir(parents=True)
    (stage / "inner" / "file").write_bytes(b"x")
    inputs = []
    for number in range(4):
        (tmp_path / f"{number}").write_bytes(b"abc")
        inputs.append(Source.open(tmp_path / f"{number}"))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[0] + 20, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        staging._remove_tree(stage)
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not stage.exists()
    assert [source.read(0, 3) for source in inputs] == [b"abc"] * 4
