"""Every command and every Python block of the documents runs, on stand-ins for the files that they name.

What trains or draws for hours is planned or parsed; what the document itself says is not run
(``<!-- not run: ... -->``) is counted, and must be another program's.
"""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from baking import lora_file, para_file, random_bases, random_factors, shapes_of
from documents import REPOSITORY, Block, blocks, headings, inline_code, links
from family_cases import CASES
from PIL import Image
from safetensors.numpy import save_file
from tiny_pipelines import sd_pipeline

from paramerge import shipped
from paramerge.checkpoints.layout import open_base
from paramerge.cli.main import COMMANDS, cli, main
from paramerge.generation.loading import load_pipeline
from paramerge.training.config_file import config_from

BLOCKS = blocks()
SHELL = [block for block in BLOCKS if block.language in ("sh", "console")]
RUN = [block for block in SHELL if not block.reason]
NOT_RUN = [block for block in SHELL if block.reason]
PYTHON = [block for block in BLOCKS if block.language == "python"]
MOST_NOT_RUN = 8
"""Blocks that are marked. Raise it for a good reason only: what is not run rots."""

BASES = ("sdxl.safetensors", "base.safetensors", "one.safetensors", "two.safetensors")
PARAS = ("a", "cat", "dog", "para", "subject", "subject-para")
LORAS = ("b", "style", "detail")
BAKED = {"tuned": ("--lora", "b.safetensors"), "baked": ("--para", "a.safetensors")}
PICTURES = (
    *("pictures", "dog", "mine", "theirs", "photos-of-the-dog"),
    *(f"dreambooth/dataset/{number}" for number in range(30)),
)
FEWER = {"-n": "2", "--runs": "1", "--steps": "1", "--gamma": "1"}
"""Options that only make a command longer, or (the rank boundary) are meant for larger models."""
ADDED = {"generate": ("-n", "1", "--steps", "1"), "experiment": ("--dry-run",),
         "evaluate": ("--clip", shipped.CONTRASTIVE)}  # fmt: skip
"""What makes a command quick enough, and keeps it off the network."""
PARSED = ("train", "demo", "ui")
"""Verbs that take minutes or serve until they are stopped, and have tests of their own."""
SUBJECTS = ["paramerge.training.experiments.emoji", "emoji-subjects"]
"""A module and its arguments; it draws for some seconds, so all blocks share what it wrote once."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stand-ins of the names that the documents use."""
    folder = tmp_path_factory.mktemp("files")
    model, single = sd_pipeline(tmp_path_factory.mktemp("made"))
    (folder / "sd15").symlink_to(model)
    for name in BASES:
        (folder / name).symlink_to(single)
    shapes, architecture = shapes_of(model), open_base(model).architecture
    layers = [name for name in shapes if "attn2.to_q" in name]
    (recipe,) = (block for block in BLOCKS if block.document.name == "merge.md" and block.language == "toml")
    (folder / "recipe.toml").write_text(recipe.text)
    for seed, name in enumerate(PARAS):
        para_file(folder / f"{name}.safetensors", random_bases(shapes, layers, 8, seed), architecture)
    for seed, name in enumerate(LORAS):
        lora_file(folder / f"{name}.safetensors", random_factors(shapes, layers, 8, seed))
    lokr = next(case for case in CASES if case.family == "lokr" and case.config is None)
    written, _ = lokr.write(tmp_path_factory.mktemp("lokr"), {name: shapes[name] for name in layers})
    (folder / "lokr.safetensors").symlink_to(written)
    for name, (kind, adapter) in BAKED.items():
        words = f"bake --base {folder / BASES[0]} {kind} {folder / adapter} -o {folder / name}.safetensors"
        assert call(shlex.split(words)) == 0
    (folder / "loras").mkdir()
    for name in LORAS:
        (folder / "loras" / f"{name}.safetensors").symlink_to(folder / f"{name}.safetensors")
    rng = np.random.default_rng(0)
    for name in PICTURES:
        (folder / name).mkdir(parents=True)
        for number in range(2):
            image = Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            image.save(folder / name / f"{number}.png")
    weights = {f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    save_file(weights, folder / "layers.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_module(SUBJECTS, patch)
    return folder


@pytest.fixture
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with all stand-ins."""
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def call(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def run(verb: str, arguments: list[str]) -> None:
    if verb in PARSED:
        parse(verb, arguments)
        return
    for option, fewer in FEWER.items():
        if option in arguments:
            arguments[arguments.index(option) + 1] = fewer
    if verb in ("generate", "evaluate") and "sdxl.safetensors" in arguments:
        arguments += ["--config", "sd15"]  # only published single files are drawn from without their folder
    if verb == "merge" and "--gamma" in arguments:
        arguments += ["--base", "sdxl.safetensors"]  # the sizes of a published architecture are known
    assert call([verb, *arguments, *ADDED.get(verb, ())]) == 0


def parse(verb: str, arguments: list[str]) -> None:
    """Options that exist, with arguments they take; required ones are there."""
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    context = command.make_context(verb, list(arguments))
    if verb == "train":
        given = {name: value for name, value in context.params.items() if value not in (None, (), False)}
        config_from(given, "the command line")


def run_module(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``python -m package.module argument ...``."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    assert not caught.value.code


@pytest.mark.parametrize("block", RUN, ids=str)
def test_commands_run(block: Block, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert block.commands
    for program, *arguments in block.commands:
        if program == "paramerge":
            run(arguments[0], arguments[1:])
        else:
            assert (program, arguments[0]) == ("python", "-m")
            assert arguments[1:] == SUBJECTS


def test_few_blocks_are_not_run() -> None:
    assert len(RUN) >= 20 and sum(len(block.commands) for block in RUN) >= 35
    assert len(NOT_RUN) <= MOST_NOT_RUN, [f"{block}: {block.reason}" for block in NOT_RUN]


@pytest.mark.parametrize("block", NOT_RUN, ids=str)
def test_what_is_not_run_is_another_program_and_its_script_is_there(block: Block) -> None:
    for program, *arguments in block.commands:
        assert program != "paramerge"
        if program == "python":
            source = (REPOSITORY / arguments[0]).read_text()
            assert all(word in source for word in arguments if word.startswith("--"))
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_runs(block: Block, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)  # dataclasses ask for it
    vars(module).update(GIVEN.get(block.document.name, dict)())
    exec(compile(block.text, str(block), "exec"), vars(module))


def pipeline_with_a_lora() -> dict[str, object]:
    """``docs/peft.md``: a pipeline with the LoRA of that text, and another UNet to be trained."""
    pipe, other = (load_pipeline(open_base(Path("sd15")), torch.float32) for _ in range(2))
    pipe.load_lora_weights("style.safetensors", adapter_name="my_lora")
    return {"pipe": pipe, "unet": other.unet}


GIVEN: dict[str, Callable[[], dict[str, object]]] = {"peft.md": pipeline_with_a_lora}
"""What the Python of a document takes as there."""


def test_scripts_in_a_sentence_are_there_with_their_flags() -> None:
    scripts = [code.split() for _, code in inline_code() if re.match(r"python \S+\.py ", code)]
    assert scripts
    for _, script, *words in scripts:
        source = (REPOSITORY / script).read_text()
        assert all(word in source for word in words if word.startswith("--")), script


def test_links_lead_somewhere() -> None:
    """Links to files of the repository, and to headings of a page."""
    found = list(links())
    assert len(found) > 40
    for document, target in found:
        path, _, heading = target.partition("#")
        page = (document.parent / path).resolve() if path else document
        assert page.exists(), f"{document.name}: {target}"
        assert not heading or heading in headings(page), f"{document.name}: {target}"


def test_blocks_are_of_a_language_that_is_known() -> None:
    assert {block.language for block in BLOCKS} <= {
        "sh",
        "console",
        "python",
        "python signature",
        "toml",
        "text",
    }


OTHERS = ("accelerate ", "torchrun ", "tensorboard ", "python ")
FLAG = re.compile(r"(?<![\w-])--[a-z0-9]+(?:-[a-z0-9]+)*(?![\w-])")
ELSEWHERE = {
    "--verb": "tools/campaign.py", "--count": "tools/campaign.py", "--examples": "tools/mutate_algebra.py",
    "--sample": "tools/mutate_algebra.py",
}  # fmt: skip
"""Flags of the project's own scripts."""


def flags_of(verb: str) -> set[str]:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    options = command.get_params(click.Context(command))
    return {flag for option in options for flag in (*option.opts, *option.secondary_opts)}


def test_every_flag_in_a_sentence_is_there() -> None:
    """Of the verb that the text names before it, or of any."""
    flags = {verb: flags_of(verb) for verb in COMMANDS}
    every = set().union(*flags.values())
    checked = 0
    for document, code in inline_code():
        if code.startswith(OTHERS):
            continue
        words = code.removeprefix("paramerge ").split()
        known = flags.get(words[0], every) if words else every
        for flag in FLAG.findall(code):
            checked += 1
            if flag in ELSEWHERE:
                assert flag in (REPOSITORY / ELSEWHERE[flag]).read_text()
            else:
                assert flag in known, f"{document.name}: `{code}`"
    assert checked > 60
