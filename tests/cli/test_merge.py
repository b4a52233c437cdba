"""``paramerge merge`` as a user types it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from baking import load, lora_file, para_file, random_bases, random_factors, shapes_of, small_model

from paramerge.cli.main import main
from paramerge.formats import open_adapter, write_para
from paramerge.merge.methods.method import Method
from paramerge.merge.methods.registry import REGISTRY
from paramerge.models.names import ModuleName


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two PaRas and two LoRAs."""
    folder = tmp_path_factory.mktemp("files")
    shapes = shapes_of(small_model(folder / "base.safetensors"))
    layers = [layer for layer in shapes if ".attn1." in layer or ".proj_in" in layer]
    para_file(folder / "p.safetensors", random_bases(shapes, layers, 2, seed=0))
    para_file(folder / "q.safetensors", random_bases(shapes, layers[:40], 3, seed=1))
    lora_file(folder / "l.safetensors", random_factors(shapes, layers, 3, seed=2), alpha=1.5)
    lora_file(folder / "m.safetensors", random_factors(shapes, layers[20:], 2, seed=3), alpha=2.0)
    return folder


@pytest.fixture(autouse=True)
def in_the_folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base", "p", "q", "l", "m"):
        (tmp_path / f"{name}.safetensors").hardlink_to(files / f"{name}.safetensors")
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


P, Q, L, M = (f"{name}.safetensors" for name in "pqlm")
OUT = ("-o", "out.safetensors")


def test_two_paras(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("merge", P, Q, *OUT) == 0
    text = capfd.readouterr().out
    assert "A  p.safetensors: para, 80 layers" in text and "B  q.safetensors: para, 40 layers" in text
    assert "out.safetensors  para, 80 layers" in text
    row = next(line for line in text.splitlines() if line.startswith("unet self-attention"))
    assert row.split()[2:] == ["64", "2", "0-3", "2-5", "2-5"]
    assert len(load(Path("out.safetensors")).tensors) == 80


def test_two_loras_and_what_was_lost(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("merge", f"{L}@0.8", M, *OUT, "--rank", 2) == 0
    text = capfd.readouterr().out
    assert "A  l.safetensors @ 0.8: lora" in text
    assert "most lost to truncation" in text and "lost to truncation" in text and "to rounding as F16" in text
    assert open_adapter("out.safetensors").dialect == "kohya"


@pytest.mark.parametrize(
    "arguments",
    [
        (P, Q),
        (P, Q, "--gamma", "1/10", "--base", "base.safetensors"),
        (L, M, "--rank", "2"),
        (P, Q, L, M, "--base", "base.safetensors"),
    ],
)
def test_a_table_fits_80_columns(arguments: tuple[str, ...]) -> None:
    """In a terminal of that width: a pseudo terminal."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    command = [sys.executable, "-m", "paramerge.cli", "merge", *arguments, *OUT]
    process = subprocess.Popen(command, stdout=follower, stderr=subprocess.DEVNULL, env=environment)
    os.close(follower)
    data = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:
            break
        if not block:
            break
        data += block
    assert process.wait() == 0
    os.close(leader)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode()).replace("\r", "").splitlines()
    table = [line for line in lines if line.startswith(("layers", "unet", "te1"))]
    assert len(table) >= 3
    assert max(map(len, lines)) <= 80


def test_every_layer_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("merge", P, Q, *OUT, "--rank", 4, "--base", "base.safetensors", "--layers") == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if " -> " in line]
    assert len(lines) == 80
    assert any("2 + 3 -> 4 of 5, limit 4" in line and "of the energy" in line for line in lines)


def test_json_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("merge", P, Q, *OUT, "--rank", 4, "--json") == 0
    captured = capfd.readouterr()
    content = json.loads(captured.out)
    assert captured.err == ""
    assert content["family"] == "para" and content["options"]["keep"] == "consensus"
    assert len(content["layers"]) == 80
    joint = next(layer for layer in content["layers"] if layer["ranks"] == [2, 3])
    assert (joint["joint_rank"], joint["limit"], joint["rank"]) == (5, 4, 4)
    assert call("merge", L, M, *OUT, "--energy", 0.9, "--json", "--overwrite") == 0
    content = json.loads(capfd.readouterr().out)
    assert content["family"] == "lora" and 0 < content["truncation_error"] < 0.4


def test_the_same_call_gives_the_same_bytes() -> None:
    for arguments in ((P, Q, "--rank", 4), (f"{L}@0.7", M, "--rank", 2), (L, M)):
        assert call("merge", *arguments, "-o", "1.safetensors", "--overwrite") == 0
        assert call("merge", *arguments, "-o", "2.safetensors", "--overwrite") == 0
        assert Path("1.safetensors").read_bytes() == Path("2.safetensors").read_bytes()


def test_a_sequential_merge_is_refused_with_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("merge", P, Q, *OUT, "--merge", "sequential") == 2
    text = capfd.readouterr().err
    assert "a sequential merge of PaRas is no PaRa: a product of projectors is no projector" in text
    assert "bake --merge sequential" in text and "jointly" in text
    assert not Path("out.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((P, L, *OUT), 4, "without a base"),
        ((P, Q, *OUT, "--gamma", "0"), 2, "gamma is out of range"),
        ((P, Q, *OUT, "--gamma", "1/40", "--keep", "energy"), 2, "depends on its weights"),
        ((P, Q, *OUT, "--gamma", "1/40", "--rank", "x"), 2, "'x' is not a valid integer"),
        ((L, M, *OUT, "--gamma", "1/40"), 2, "--gamma does not apply to a merge of LoRAs"),
        ((f"{P}@0.5", Q, *OUT), 2, "a strength was given for a PaRa"),
        ((f"{L}@much", M, *OUT), 2, "not a number"),
        (("absent.safetensors", P, *OUT), 3, "no such file"),
        (("base.safetensors", P, *OUT), 2, "not merged with each other"),
        ((P, Q, "-o", "out.pt"), 6, ".safetensors"),
        ((P, Q, "-o", "absent/out.safetensors"), 6, "does not exist"),
        ((P, Q), 2, "-o"),
        ((*OUT,), 2, "an argument is missing"),
    ],
)
def test_errors_say_what_to_do(
    arguments: tuple[str, ...], code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("merge", *arguments) == code
    assert words in capfd.readouterr().err
    assert not Path("out.safetensors").exists()


def test_an_input_is_never_overwritten(capfd: pytest.CaptureFixture[str]) -> None:
    """By its name, a symbolic link, a hard link, and another spelling of the path; the base, too."""
    before = {name: Path(name).read_bytes() for name in (P, Q)}
    Path("soft.safetensors").symlink_to(Q)
    Path("hard.safetensors").hardlink_to(Q)
    for output in (P, "soft.safetensors", "hard.safetensors", f"./../{Path.cwd().name}/{P}"):
        assert call("merge", P, Q, "-o", output) == 6
        assert "the output is one of the inputs" in capfd.readouterr().err
    assert call("merge", P, Q, "--base", "base.safetensors", "-o", "base.safetensors") == 6
    assert {name: Path(name).read_bytes() for name in (P, Q)} == before


def test_what_stood_there_is_replaced_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out.safetensors").write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left")))
        assert call("merge", P, Q, *OUT, "--overwrite") == 6
    assert Path("out.safetensors").read_bytes() == b"old"
    assert call("merge", P, Q, *OUT) == 6
    assert Path("out.safetensors").read_bytes() == b"old"
    assert call("merge", P, Q, *OUT, "--overwrite") == 0
    assert len(load(Path("out.safetensors")).tensors) == 80


def test_warnings_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    for letter in "ab":
        write_para(
            f"{letter}.safetensors",
            {ModuleName("unet", "conv_in"): np.ones((8, 1))},
            architecture="sd15",
            base_sha256=letter * 64,
        )
    assert call("merge", "a.safetensors", "b.safetensors", *OUT) == 0
    captured = capfd.readouterr()
    assert "made for different bases" in captured.err.replace("\n", " ")
    assert "different bases" not in captured.out


def test_merging_needs_no_torch() -> None:
    code = (
        "import sys; from paramerge.cli.main import main\n"
        "try: main(['merge', 'p.safetensors', 'q.safetensors', '-o', 'out.safetensors'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(("given", "taken"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "3"}, "3")])
def test_many_small_matrices_take_one_thread_each(given: dict[str, str], taken: str) -> None:
    """Set before NumPy is imported, or it would have no effect; what the user set stays."""
    code = (
        "import os, sys; from paramerge.cli.main import main\n"
        "try: main(%s)\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'numpy' in sys.modules\n"
        "assert os.environ['OPENBLAS_NUM_THREADS'] == '%s'"
    )
    clean = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    arguments = ["merge", "p.safetensors", "q.safetensors", "-o", "out.safetensors"]
    command = [sys.executable, "-c", code % (arguments, taken)]
    subprocess.run(command, check=True, capture_output=True, env=clean | given)


def test_checkpoints_by_the_command(capfd: pytest.CaptureFixture[str]) -> None:
    """Weights behind a name, an adapter in the same pass, the plan without writing, JSON."""
    arguments = ("merge", "base.safetensors", "base.safetensors@0.25", "--lora", f"{L}@0.5", *OUT)
    assert call(*arguments, "--dry-run") == 0
    text = capfd.readouterr().out
    assert "weighted-sum of model 1, model 2; weights 0.25" in text and "nothing was written" in text
    assert not Path("out.safetensors").exists()
    assert call(*arguments, "--json") == 0
    content = json.loads(capfd.readouterr().out)
    assert content["plan"]["merged"]["steps"][0]["weights"] == [0.25]
    assert any("given twice" in warning for warning in content["plan"]["warnings"])
    assert call("bake", "--base", "base.safetensors", "--lora", f"{L}@0.5", "-o", "baked.safetensors") == 0
    merged, baked = load(Path("out.safetensors")).tensors, load(Path("baked.safetensors")).tensors
    assert all(np.allclose(merged[key], baked[key], rtol=2e-3, atol=1e-6) for key in baked)


def test_a_formula_needs_no_name_before_it(capfd: pytest.CaptureFixture[str]) -> None:
    def halfway(blocks, draws):  # type: ignore[no-untyped-def]
        """The mean of both."""

    with REGISTRY.added(Method("halfway", halfway, "elements", (2, 2), "nobody")):
        assert call("merge", "--method", "help") == 0
    assert "halfway  2 models\n  The mean of both." in capfd.readouterr().out


def test_methods_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("merge", "--method", "help") == 0
    text = capfd.readouterr().out
    for method in REGISTRY.all():
        assert method.name in text and all(f"--{p.name}" in text for p in method.parameters)
        assert method.formula and "``" not in text
    assert (
        call("merge", "base.safetensors", "base.safetensors", "--density", "2", "--method", "ties", *OUT) == 2
    )
    assert "--density" in capfd.readouterr().err
