"""The examples in every verb's ``--help``: each parses, and what takes files alone runs on small ones."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import click
import pytest
from baking import lora_file, para_file, random_bases, random_factors, shapes_of
from tiny_pipelines import sd_pipeline

from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import COMMANDS, cli, main
from paramerge.training.config import config_from

RUN = ("bake", "convert", "extract", "resize", "inspect", "merge", "compare", "sizes")
"""Verbs whose examples run here; the others draw or train."""


def command_of(verb: str) -> click.Command:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    return command


def examples() -> list[str]:
    """Each line of a help that begins with the program's name, with the lines that continue it."""
    found = []
    for verb in COMMANDS:
        lines = (command_of(verb).help or "").replace("\\\n", " ").splitlines()
        found += [line.strip() for line in lines if line.strip().startswith("paramerge ")]
    return found


def test_every_verb_has_an_example() -> None:
    assert {shlex.split(example)[1] for example in examples()} == set(COMMANDS)


@pytest.mark.parametrize("example", examples())
def test_examples_parse(example: str) -> None:
    """Options that exist, with arguments they take; required ones are there."""
    verb, *arguments = shlex.split(example)[1:]
    context = command_of(verb).make_context(verb, arguments)
    if verb == "train":
        given = {name: value for name, value in context.params.items() if value not in (None, (), False)}
        config_from(given, "the command line")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the names that the examples have."""
    folder = tmp_path_factory.mktemp("files")
    model, single = sd_pipeline(folder / "made")
    shapes, architecture = shapes_of(model), open_base(model).architecture
    layers = [name for name in shapes if "attn2.to_q" in name]
    for name in ("sdxl", "base"):
        shutil.copy(single, folder / f"{name}.safetensors")
    for seed, name in enumerate(("a", "cat", "dog", "para", "subject-para")):
        para_file(folder / f"{name}.safetensors", random_bases(shapes, layers, 8, seed), architecture)
    for seed, name in enumerate(("b", "style", "detail")):
        lora_file(folder / f"{name}.safetensors", random_factors(shapes, layers, 8, seed))
    for kind, adapter, output in (("--lora", "b", "tuned"), ("--para", "a", "baked")):
        given = ["--base", folder / "base.safetensors", kind, folder / f"{adapter}.safetensors"]
        assert call("bake", *given, "-o", folder / f"{output}.safetensors") == 0
    return folder


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("example", [each for each in examples() if shlex.split(each)[1] in RUN])
def test_examples_run(
    example: str,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for path in files.glob("*.safetensors"):
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    # a fortieth of these layers is less than one direction, and their sizes are nobody's
    arguments = shlex.split(example.replace(" --gamma 1/40", ""))[1:]
    assert call(*arguments) == 0, capfd.readouterr().err
