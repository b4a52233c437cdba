"""What is no regular file, or has no end, under the name of each text that people give: refused at once."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from paramerge.errors import ParamergeError
from paramerge.files.writer import append_line, write_safetensors
from paramerge.formats import open_adapter
from paramerge.inspect.folder import inspect_folder
from paramerge.merge.call import merge
from paramerge.regular_files import SMALL_BYTES, is_there, read_text, read_whole
from paramerge.replay.call import replay
from paramerge.strict_json import read_object
from paramerge.strict_toml import read_toml

_SECONDS = 20

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes with names, and no /dev")


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """Let a test that waits for ever fail."""

    def stop(*_: object) -> None:
        raise TimeoutError("it waits, or reads without an end")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def endless(path: Path) -> None:
    with open(path, "wb") as stream:
        stream.truncate(1 << 40)


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may not be long
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def circle(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def folder(path: Path) -> None:
    path.mkdir()


HOSTILE = [pipe, device, endless, listening, circle, nowhere, folder]


def _adapter(folder: Path) -> None:
    write_safetensors(folder / "adapter_model.safetensors", {"a.lora_A.weight": np.zeros((1, 2), "f4")})


def _train(path: Path) -> None:
    from paramerge.training.config_file import config_from_toml

    config_from_toml(path)


def _subjects(path: Path) -> None:
    from paramerge.training.sources import read_sources

    read_sources(path)


def _dataset(path: Path) -> None:
    from paramerge.training.experiments.dataset import open_dataset

    open_dataset(path.parent)


def _captions(path: Path) -> None:
    from paramerge.training.pictures import captions_of

    path.with_name("other.txt").write_text("another")
    captions_of([path.with_suffix(".png"), path.with_name("other.png")])


def _pictures(path: Path) -> None:
    from paramerge.training.pictures import find_pictures, read_picture

    for picture in find_pictures(path.parent, "instance_folder"):
        read_picture(picture, 8)


def _records(path: Path) -> None:
    from paramerge.training.evaluation.records import Records

    Records(path.parent).read()


def _settings(path: Path) -> None:
    from paramerge.training.evaluation.records import claim_folder

    claim_folder(path.parent, {"seed": 1})


def _results(path: Path) -> None:
    from paramerge.training.experiments.report import results_page

    results_page([path.parent], path.parent / "page.md")


def _clip(path: Path) -> None:
    from paramerge.training.evaluation.clip import load_clip

    (path.parent / "preprocessor_config.json").write_text("{}")
    load_clip(str(path.parent))


def _tokenizer(path: Path) -> None:
    from paramerge.generation.small_files import tokenizers_of

    tokenizers_of(path.parents[1], {"tokenizer": ["transformers", "CLIPTokenizer"]})


def _base(path: Path) -> None:
    from paramerge.checkpoints.layout import open_base

    open_base(path.parent)


def _lora(path: Path) -> None:
    _adapter(path.parent)
    open_adapter(path.parent / "adapter_model.safetensors")


READERS: dict[str, Callable[[Path], object]] = {
    "whole.txt": read_whole,
    "text.txt": read_text,
    "object.json": read_object,
    "tables.toml": read_toml,
    "merge.toml": lambda path: merge(path, path.parent / "o.safetensors"),  # type: ignore[arg-type]
    "replay.toml": lambda path: replay(path, path.parent / "o.safetensors"),
    "recipe.json": lambda path: replay(path, path.parent / "o.safetensors"),
    "folder/paramerge_recipe.json": lambda path: replay(path.parent, path.parent / "o.safetensors"),
    "adapter_config.json": _lora,
    "model_index.json": _base,
    "config.json": _base,
    "train.toml": _train,
    "subjects.toml": _subjects,
    "dataset.toml": _dataset,
    "prompts_and_classes.txt": _dataset,
    "picture.txt": _captions,
    "picture.png": _pictures,
    "0000.jsonl": _records,
    "0001.jsonl": _records,
    "settings.json": _settings,
    "summary.json": _results,
    "tokenizer.json": _clip,
    "tokenizer/vocab.json": _tokenizer,
}
"""The names of texts that people give, and what reads each."""


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make, name)
        for make in HOSTILE
        for name in READERS
        if (make, name) != (folder, "tokenizer/vocab.json")  # no file
    ],
    ids=lambda given: getattr(given, "__name__", given),
)
def test_no_text_is_waited_for_or_read_without_an_end(
    make: Callable[[Path], None], name: str, tmp_path: Path
) -> None:
    path = tmp_path / "given" / name
    path.parent.mkdir(parents=True)
    make(path)
    assert is_there(path)
    with pytest.raises(ParamergeError) as caught:
        READERS[name](path)
    assert path.name in str(caught.value) or make in (nowhere, folder), caught.value


@pytest.mark.parametrize("make", [pipe, device, listening, circle, folder])
def test_a_log_that_is_no_file_is_refused(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "log.jsonl")
    with pytest.raises(ParamergeError):
        append_line(tmp_path / "log.jsonl", b"{}\n")


@pytest.mark.parametrize("make", HOSTILE[:-1], ids=lambda make: make.__name__)
def test_a_listing_passes_over_nothing(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "a.safetensors")
    (entry,) = inspect_folder(tmp_path)
    assert entry.path.name == "a.safetensors"
    assert entry.problem


def test_a_listing_goes_on_past_what_nobody_may_look_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": np.zeros(2, "f4")})
    real = os.stat

    def stat(path: object, *rest: object, **options: object) -> os.stat_result:
        if str(path).endswith("a.safetensors"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(os, "stat", stat)
    assert [entry.path.name for entry in inspect_folder(tmp_path)] == ["a.safetensors", "b.safetensors"]


def test_a_file_may_be_longer_than_it_says() -> None:
    with pytest.raises(ParamergeError, match="too long"):
        read_whole("/proc/self/maps", limit=10)  # 0 bytes by its status


def test_a_text_may_have_a_mark_and_any_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(path) == "a\nb\nc\n"
    path.write_bytes(b"x" * SMALL_BYTES)
    assert len(read_whole(path)) == SMALL_BYTES
    path.write_bytes(b"x" * (SMALL_BYTES + 1))
    with pytest.raises(ParamergeError, match="too long"):
        read_whole(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=" + "[" * 100_000, "nested too deeply"),
        ("a." * 500_000 + "b=1", "too many full stops"),
        ("a = 1\n" + "a." * 5 + "b = 2", "not valid TOML"),
        ("a = " + "9" * 5000, "not valid TOML"),
    ],
)
def test_toml_takes_bounded_time(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ParamergeError, match=words):
        read_toml(tmp_path / "a.toml")
