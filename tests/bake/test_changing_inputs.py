"""Inputs that change while a verb is at work: refused with nothing written, whichever verb, file and moment.

What a recipe says of its inputs is true, or there is no output: every hash in it is that of the bytes used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from baking import load, lora_file, para_file, plan_of, random_bases, random_factors, shapes_of

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.bake.job import Job
from paramerge.bake.recipe import RECIPE_KEY
from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import main
from paramerge.errors import InputChangedError, MissingInputError
from paramerge.files import hashing
from paramerge.files import source as source_module
from paramerge.files.hashing import file_sha256
from paramerge.files.source import Source
from paramerge.files.writer import write_safetensors
from paramerge.merge import given as given_module


def overwrite(path: Path) -> None:
    """Other values in the last tensor, in place; the time of writing is put back."""
    status = path.stat()
    with open(path, "r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(b"\x01\x02\x03\x04\x05\x06\x07\x08")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file of the same header and size takes the name."""
    other = path.with_name("other.tmp")
    content = bytearray(path.read_bytes())
    content[-64:] = bytes(64)
    other.write_bytes(content)
    other.replace(path)


def append(path: Path) -> None:
    with open(path, "ab") as stream:
        stream.write(b" ")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 8)


CHANGES = [overwrite, replace, append, truncate]


@dataclass(frozen=True)
class Files:
    """Inputs of every verb, small."""

    base: Path
    tuned: Path
    subject: Path
    style: Path
    other: Path


@pytest.fixture(scope="module")
def originals(models, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("originals")
    shapes = shapes_of(models())
    layers = [layer for layer in shapes if ".attn1.to_" in layer][:6]
    kept = {key: value for key, value in load(models()).tensors.items() if "first_stage" not in key}
    base, tuned = folder / "base.safetensors", folder / "tuned.safetensors"
    write_safetensors(base, kept, {})
    para = para_file(folder / "para.safetensors", random_bases(shapes, layers, 2))
    lora = lora_file(folder / "lora.safetensors", random_factors(shapes, layers, 3))
    other = lora_file(folder / "other.safetensors", random_factors(shapes, layers, 2, seed=1))
    bake(plan_of(base, Step("lora", lora, 1.0)), tuned)
    return Files(base, tuned, para, lora, other)


VERBS: dict[str, str] = {
    "bake": "bake --base base --para subject --lora style -o out.safetensors",
    "merge": "merge style other -o out.safetensors",
    "merge mixed": "merge subject style --base base -o out.safetensors",
    "convert": "convert style --to diffusers -o out.safetensors",
    "convert peft": "convert style --to peft -o out",
    "convert para": "convert subject --to kohya --base base -o out.safetensors",
    "extract": "extract --from tuned --base base --family lora --rank 4 -o out.safetensors",
    "extract lora": "extract --from-lora style --rank 2 -o out.safetensors",
    "resize": "resize style --rank 1 -o out.safetensors",
    "resize para": "resize subject --energy 0.9 --base base -o out.safetensors",
    "compare": "compare style other --base base --report out.html",
}
NAMES = ("base", "tuned", "subject", "style", "other")
CASES = [(verb, name) for verb, text in VERBS.items() for name in NAMES if name in text.split()]


@pytest.fixture
def folder(originals: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own copies, in the current folder."""
    for name in NAMES:
        shutil.copyfile(getattr(originals, name), tmp_path / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(verb: str, *more: str) -> int:
    words = [f"{word}.safetensors" if word in NAMES else word for word in VERBS[verb].split()]
    with pytest.raises(SystemExit) as caught:
        main([*words, *more, "--json"])
    return int(caught.value.code or 0)


class Reads:
    """Counts what is read of one file, and does something just before a given reading."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.count = 0
        self.at = -1
        self.counts = True
        self.action: Callable[[], None] = lambda: None
        really, lock = Source.read_into, threading.Lock()

        def counted(source: Source, view: memoryview, start: int) -> None:
            if source.path.name == name and self.counts:
                with lock:
                    self.count += 1
                    if self.count == self.at + 1:
                        self.action()
            really(source, view, start)

        monkeypatch.setattr(source_module.Source, "read_into", counted)
        tells = given_module._is_checkpoint

        def uncounted(given: object) -> bool:
            """A look that tells adapters from checkpoints comes before the file is opened to be used."""
            self.counts = False
            try:
                return tells(given)
            finally:
                self.counts = True

        monkeypatch.setattr(given_module, "_is_checkpoint", uncounted)


@pytest.mark.parametrize(("verb", "name"), CASES, ids=[f"{verb}, {name}" for verb, name in CASES])
def test_a_change_at_any_moment_is_refused(
    verb: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / f"{name}.safetensors"
    monkeypatch.setattr(source_module, "_TICK_NS", 0)  # else files written just now are read once more
    reads = Reads(monkeypatch, path.name)
    assert run(verb) == 0
    total = reads.count
    out = next(path for path in (folder / "out", *folder.glob("out.*")) if path.exists())
    shutil.rmtree(out) if out.is_dir() else out.unlink()
    original = path.read_bytes()
    moments = [1, 2, total // 2, total - 1]  # 0 is the first look at the file
    rotation = CASES.index((verb, name))
    for place, moment in enumerate(dict.fromkeys(moments)):
        change = CHANGES[(place + rotation) % len(CHANGES)]
        path.write_bytes(original)
        reads.count, reads.at, reads.action = 0, moment, lambda change=change: change(path)  # type: ignore[misc]
        before = {entry for entry in folder.iterdir() if entry.name != "other.tmp"}
        capsys.readouterr()
        code = run(verb)
        assert code == InputChangedError.exit_code, (verb, name, change.__name__, moment, total)
        assert path.name in json.loads(capsys.readouterr().out)["error"]["where"]
        assert {entry for entry in folder.iterdir() if entry.name != "other.tmp"} == before


@pytest.mark.parametrize(
    ("verb", "name"),
    [("replay", "base"), ("replay", "style"), ("verify", "base"), ("verify", "style"), ("verify", "tuned")],
)
def test_a_change_while_a_recipe_is_done_again(
    verb: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An input that changes before it is found is not there; a later change is refused."""
    path, out = folder / f"{name}.safetensors", folder / "out.safetensors"
    words = [verb, "tuned.safetensors", "--models", ".", *(["-o", out.name] if verb == "replay" else [])]
    monkeypatch.setattr(source_module, "_TICK_NS", 0)

    def ended() -> int:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([*words, "--json"])
        return int(caught.value.code or 0)

    reads = Reads(monkeypatch, path.name)
    assert ended() == 0
    total, original, really = reads.count, path.read_bytes(), Job.check_inputs
    early = {"replay": {MissingInputError.exit_code}, "verify": {11, 12}}[verb]
    for place, moment in enumerate((2, total // 2, None)):
        out.unlink(missing_ok=True)
        path.write_bytes(original)
        change = CHANGES[(place + len(name)) % len(CHANGES)]
        reads.count, reads.at, reads.action = 0, -1 if moment is None else moment, partial(change, path)
        if moment is None:  # at the very end

            def late(job: Job, change: Callable[[Path], None] = change) -> None:
                change(path)
                really(job)

            monkeypatch.setattr(Job, "check_inputs", late)
        code = ended()
        if moment is not None and reads.count <= moment:
            continue  # the hashes were known by now, and less was read
        assert not out.exists()
        assert code in {InputChangedError.exit_code, *(early if moment is not None else ())}, moment


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_between_opening_and_baking(
    change: Callable[[Path], None], folder: Path, originals: Files
) -> None:
    for name in ("base", "subject"):
        plan = plan_of(folder / "base.safetensors", Step("para", folder / "subject.safetensors", 1.0))
        change(folder / f"{name}.safetensors")
        with pytest.raises(InputChangedError):
            bake(plan, folder / "out.safetensors")
        assert not (folder / "out.safetensors").exists()
        shutil.copyfile(getattr(originals, name), folder / f"{name}.safetensors")


def test_the_hashes_are_those_of_the_bytes(folder: Path) -> None:
    """Nothing that an earlier run remembered is believed of an adapter, and nothing untrue of a base."""
    for name in NAMES:
        file_sha256(folder / f"{name}.safetensors")
    for name in ("base", "subject", "style"):
        overwrite(folder / f"{name}.safetensors")
    assert run("bake") == 0
    recipe = json.loads(load(folder / "out.safetensors").metadata[RECIPE_KEY])
    files = [*recipe["base"]["files"], *(file for step in recipe["steps"] for file in step["files"])]
    assert {file["name"]: file["sha256"] for file in files} == {
        file["name"]: hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest() for file in files
    }
    assert len(files) == 3


@pytest.mark.parametrize("verb", ["bake", "convert para", "extract"])
def test_rehash_believes_nothing(verb: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that lies about the base, as no file system with a time of change lets it."""
    base, untrue = folder / "base.safetensors", "0" * 64
    source = Source.open(base)
    cache = folder / "cache.json"
    monkeypatch.setattr(hashing, "_cache_file", lambda: cache)
    cache.write_text(json.dumps({hashing._identity(source): f"{untrue}:{hashing._sampled(source)}"}))
    assert run(verb) == 0
    (out,) = folder.glob("out*")
    assert untrue in str(load(out).metadata)
    out.unlink()
    assert run(verb, "--rehash") == 0
    assert hashlib.sha256(base.read_bytes()).hexdigest() in str(load(out).metadata)
    assert untrue not in str(load(out).metadata)


def test_a_shard_that_changes_is_refused(models, tmp_path: Path) -> None:
    """A folder's files are all of the inputs, also those in which nothing is changed."""
    base = tmp_path / "base"
    shutil.copytree(models(layout="diffusers-folder", max_shard_bytes=4_000_000), base)
    layer = next(layer for layer in shapes_of(base) if ".attn1.to_q" in layer)
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), [layer], 2))
    files = open_base(base).files
    for file in (files[0], files[-1]):
        original = file.header.path.read_bytes()
        plan = plan_of(base, Step("para", para, 1.0))
        overwrite(file.header.path)
        with pytest.raises(InputChangedError, match=file.header.path.name):
            bake(plan, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        file.header.path.write_bytes(original)


def test_a_companion_that_changes_is_refused(models, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(models(layout="diffusers-folder"), base)
    (base / "notes.txt").write_text("one")
    layer = next(layer for layer in shapes_of(base) if ".attn1.to_q" in layer)
    para = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), [layer], 2))
    for name in ("notes.txt", "unet/config.json"):
        plan = plan_of(base, Step("para", para, 1.0))
        append(base / name)
        with pytest.raises(InputChangedError, match=Path(name).name):
            bake(plan, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    bake(plan_of(base, Step("para", para, 1.0)), tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_bytes() == b"one "
