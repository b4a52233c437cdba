"""The contract of every verb that writes: what an output may not be, and what stays as it was."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from baking import lora_file, para_file, random_bases, random_factors, shapes_of, small_model

from paramerge.cli.main import main
from paramerge.files import writer
from paramerge.files.staging import write_recipe
from paramerge.merge import combine

BASE, FOLDER, PARA, LORA, OTHER, PEFT, BAKED = (
    "base.safetensors",
    "model",
    "p.safetensors",
    "l.safetensors",
    "m.safetensors",
    "peft",
    "baked.safetensors",
)


@dataclass(frozen=True)
class Verb:
    """A call that writes; ``inputs`` are its files and folders, ``suffix`` is empty for a folder."""

    arguments: tuple[str, ...]
    inputs: tuple[str, ...]
    suffix: str = ".safetensors"
    option: str = "-o"


VERBS = {
    "bake": Verb(("bake", "--base", BASE, "--para", PARA), (BASE, PARA)),
    "bake-folder": Verb(("bake", "--base", FOLDER, "--lora", LORA), (FOLDER, LORA), ""),
    "convert": Verb(("convert", PEFT, "--to", "kohya"), (f"{PEFT}/adapter_model.safetensors", PEFT)),
    "convert-peft": Verb(("convert", LORA, "--to", "peft"), (LORA,), ""),
    "merge": Verb(("merge", LORA, OTHER), (LORA, OTHER)),
    "merge-base": Verb(("merge", PARA, LORA, "--base", FOLDER), (PARA, LORA, FOLDER)),
    "merge-models": Verb(("merge", BASE, FOLDER, "--only", "text_encoder"), (BASE, FOLDER)),
    "merge-folders": Verb(("merge", FOLDER, BASE, "--only", "text_encoder"), (FOLDER, BASE), ""),
    "extract": Verb(("extract", "--from-lora", LORA, "--rank", "1"), (LORA,)),
    "extract-tuned": Verb(("extract", "--from", BASE, "--base", FOLDER), (BASE, FOLDER)),
    "resize": Verb(("resize", LORA, "--rank", "1"), (LORA,)),
    "resize-para": Verb(("resize", PARA, "--energy", "0.5", "--base", FOLDER), (PARA, FOLDER)),
    "replay": Verb(("replay", BAKED), (BAKED, BASE, LORA)),
    "compare": Verb(("compare", LORA, OTHER), (LORA, OTHER), ".html", "--report"),
}
QUICK = (
    *("bake", "bake-folder", "convert", "convert-peft", "merge", "merge-models", "merge-folders"),
    *("extract", "resize", "replay", "compare"),
)
"""Verbs whose whole work is quick here."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    small_model(folder / BASE)
    small_model(folder / FOLDER, layout="diffusers-folder")
    shapes = shapes_of(folder / BASE)
    layers = [layer for layer in shapes if "mid_block" in layer and ".attn1." in layer]
    para_file(folder / PARA, random_bases(shapes, layers, 2))
    lora_file(folder / LORA, random_factors(shapes, layers, 2))
    lora_file(folder / OTHER, random_factors(shapes, layers, 2, seed=1))
    with pytest.raises(SystemExit):
        main(["convert", str(folder / LORA), "--to", "peft", "-o", str(folder / PEFT)])
    with pytest.raises(SystemExit):
        main(["bake", "--base", f"{folder / BASE}", "--lora", f"{folder / LORA}", "-o", str(folder / BAKED)])
    return folder


@pytest.fixture
def place(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with all inputs."""
    for path in files.iterdir():
        if path.is_dir():
            shutil.copytree(path, tmp_path / path.name, copy_function=os.link)
        else:
            (tmp_path / path.name).hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(verb: Verb, output: str | Path, *options: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main([*verb.arguments, verb.option, str(output), *options])
    return int(caught.value.code or 0)


def state(folder: Path) -> dict[str, object]:
    """What is there: names, kinds, and what links and files hold (files by identity, size and times)."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else (status.st_size, status.st_mtime_ns)  # noqa: PTH115
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_ino, path.is_dir() or content)
    return found


def bind_socket(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(path.name)  # the whole path may be too long for a socket


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")


Make = Callable[[Verb], str]


def _at(make: Callable[[Path], None]) -> Make:
    def made(verb: Verb) -> str:
        make(Path("out" + verb.suffix))
        return "out" + verb.suffix

    return made


def _linked(verb: Verb) -> str:
    Path("out" + verb.suffix).symlink_to(verb.inputs[0])
    return "out" + verb.suffix


def _hard_linked(verb: Verb) -> str:
    source = next(name for name in verb.inputs if Path(name).is_file())
    if verb.suffix:
        Path("out" + verb.suffix).hardlink_to(source)
        return "out" + verb.suffix
    Path("out").mkdir()
    Path("out", "adapter_model.safetensors").hardlink_to(source)
    return "out"


def _linked_inside(verb: Verb) -> str:
    """A folder with a link to the input, where a file of the output would stand."""
    if verb.suffix:
        return _linked(verb)
    Path("out").mkdir()
    source = next(name for name in verb.inputs if Path(name).is_file())
    Path("out", "adapter_model.safetensors").symlink_to(Path(source).absolute())
    return "out"


def _around(verb: Verb) -> str:
    """The folder that the inputs are in (which is the current one), or an input by a detour."""
    return str(Path("..") / Path.cwd().name) if not verb.suffix else f"{PEFT}/../{verb.inputs[0]}"


def _inside(verb: Verb) -> str:
    folder = next((name for name in verb.inputs if Path(name).is_dir()), None)
    if folder is None:
        pytest.skip("this call has no folder among its inputs")
    Path("alias").symlink_to(folder)
    return f"alias/out{verb.suffix}"


REFUSED: dict[str, Make] = {
    "an input": lambda verb: verb.inputs[0],
    "a link to an input": _linked,
    "a hard link to an input": _hard_linked,
    "a link to an input inside": _linked_inside,
    "inside an input": _inside,
    "around the inputs": _around,
    "is not empty": _at(fill),
    "a named pipe": _at(make_fifo),
    "a socket": _at(bind_socket),
    "a device": _at(lambda path: path.symlink_to("/dev/null")),
    "standard output": lambda verb: "/dev/stdout",
    "a descriptor": lambda verb: "/dev/fd/1",
    "a dash": lambda verb: "-",
    "a folder that is missing": lambda verb: f"missing/out{verb.suffix}",
    "a file for a folder": lambda verb: f"{OTHER}/out{verb.suffix}",
    "a name that is too long": lambda verb: "a" * 300 + verb.suffix,
    "a link to itself": _at(lambda path: path.symlink_to(path.name)),
    **{
        f"a name in {ending}": lambda verb, ending=ending: f"out{ending}"
        for ending in (".ckpt", ".pt", ".bin")
    },
}


OF_INPUTS = tuple(REFUSED)[:6]
"""Kinds that depend on the inputs: the others are tried with the verbs that have the fewest of them."""


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in VERBS for kind in REFUSED if name in QUICK or kind in OF_INPUTS],
)
def test_what_an_output_may_not_be(
    name: str, kind: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refused before any work, even with --overwrite, and nothing has changed."""
    output = REFUSED[kind](VERBS[name])
    before = state(place)
    assert call(VERBS[name], output, "--overwrite") == 6
    lines = capfd.readouterr().err.splitlines(keepends=True)
    text = "".join(line for line in lines if not line.startswith("hashing "))  # replay looks for its inputs
    assert text.startswith("error: ") and "Traceback" not in text and len(text.splitlines()) > 1
    assert state(place) == before


@pytest.mark.parametrize("name", VERBS)
def test_what_stands_there_is_not_replaced(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verb = VERBS[name]
    output = place / ("out" + verb.suffix)
    if verb.suffix:
        output.write_text("precious")
    else:
        fill(output)
        write_recipe(output, {})
    before = state(place)
    assert call(verb, output) == 6
    assert "--overwrite" in capfd.readouterr().err
    assert state(place) == before
    if name in QUICK:
        assert call(verb, output, "--overwrite") == 0
        assert not (output / "mine.txt").exists()
        assert set(state(place)) - set(before) <= {str(p.relative_to(place)) for p in output.rglob("*")}
        assert call(verb, output, "--overwrite") == 0
        if not verb.suffix:
            (output / "mine.txt").write_text("mine")
            assert call(verb, output, "--overwrite") == 6
            assert "mine.txt" in capfd.readouterr().err


@pytest.mark.parametrize("name", [name for name in QUICK if VERBS[name].suffix])
def test_an_ending_is_added_and_told(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    verb = VERBS[name]
    assert call(verb, "style-v1.5") == 0
    assert f"has no ending: written to style-v1.5{verb.suffix}" in capfd.readouterr().err
    assert (place / f"style-v1.5{verb.suffix}").is_file()
    assert call(verb, "style-v1.5") == 6


@pytest.mark.parametrize("name", ["bake-folder", "convert-peft"])
def test_an_empty_folder_is_filled_and_keeps_its_mode(name: str, place: Path) -> None:
    (place / "out").mkdir(mode=0o700)
    assert call(VERBS[name], "out") == 0
    assert (place / "out").stat().st_mode & 0o777 == 0o700
    assert (place / "out" / "paramerge_recipe.json").is_file()


def test_the_default_name_says_what_makes_two_bakes_differ(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = (
        (),
        ("--only", "unet"),
        ("--only", "unet.*"),
        ("--only", "unet.?*"),
        ("--dtype", "fp32"),
        ("--gamma", "0.5"),
        ("--merge", "sequential"),
        ("--lokr-scale", "0.5"),
    )
    names = set()
    for lora in (f"{LORA}", f"{LORA}@0.30000001", f"{LORA}@0.3", f"{LORA}@1:MID=0.5", f"{LORA}@1:MID=0.25"):
        for options in calls if lora == LORA else calls[:1]:
            with pytest.raises(SystemExit) as caught:
                main(["bake", "--base", BASE, "--lora", lora, *options, "--dry-run"])
            text = capfd.readouterr().out
            assert not caught.value.code
            line = next(line for line in text.splitlines() if line.startswith("output"))
            names.add(line.split()[1].rstrip(","))
    assert len(names) == len(calls) + 4


def test_a_stop_says_what_was_written(
    place: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_placed", {})
    monkeypatch.setattr("paramerge.cli.merge_table.show_merge", stop)
    assert call(VERBS["merge"], "out.safetensors") == 130
    assert f"stopped; written: {place / 'out.safetensors'}" in capfd.readouterr().err
    monkeypatch.setattr(writer, "_placed", {})
    monkeypatch.setattr(combine, "write_lora", stop)
    assert call(VERBS["merge"], "other.safetensors") == 130
    assert "stopped; nothing was written" in capfd.readouterr().err
