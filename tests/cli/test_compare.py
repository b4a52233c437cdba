"""``paramerge compare`` as a user types it, and on adapters that people trained."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from baking import lora_file, para_file, random_bases, random_factors, shapes_of, small_model

from paramerge.cli.main import main

A, B, L, M = (f"{name}.safetensors" for name in "ablm")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    shapes = shapes_of(small_model(folder / "base.safetensors"))
    layers = [layer for layer in shapes if ".attn1." in layer or ".conv1" in layer]
    para_file(folder / A, random_bases(shapes, layers, 2, seed=0))
    para_file(folder / B, random_bases(shapes, layers[:50], 3, seed=1))
    lora_file(folder / L, random_factors(shapes, layers, 3, seed=2), alpha=1.5)
    lora_file(folder / M, random_factors(shapes, layers[20:], 2, seed=3), alpha=2.0)
    return folder


@pytest.fixture(autouse=True)
def in_the_folder(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base.safetensors", A, B, L, M):
        (tmp_path / name).hardlink_to(files / name)
    monkeypatch.chdir(tmp_path)


def call(*arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return int(caught.value.code or 0)


def test_paras(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("compare", A, B) == 0
    text = capfd.readouterr().out
    assert "PaRa and PaRa" in text and "50 layers in common" in text
    assert "merged one after the other they are off the joint merge by up to" in text
    rows = [line.split() for line in text.splitlines() if line.startswith(("unet ", "all "))]
    assert [row[-8:-3] for row in rows][-1] == ["100", "150", "0", "250", "150"]


def test_a_para_and_a_lora_in_either_order(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("compare", A, L) == 0
    first = capfd.readouterr().out
    assert call("compare", L, A) == 0
    assert capfd.readouterr().out == first
    assert "PaRa first, the LoRA loses nothing" in first
    assert re.search(r"LoRA first, the PaRa takes \d+\.\d% of it", first)


def test_loras(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("compare", L, M) == 0
    text = capfd.readouterr().out
    assert "LoRA and LoRA" in text and "they are nearly independent" in text
    assert call("compare", L, L) == 0
    text = capfd.readouterr().out
    assert "cosine +1.000 (1.000 with, 0.000 against): they reinforce each other" in text


def test_with_a_base(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("compare", A, B, L, "--base", "base.safetensors") == 0
    text = capfd.readouterr().out
    assert "on W0" in text and "on this base by up to" in text
    assert "refilled" in text and "writes back up to" in text


def test_all_layers_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("compare", A, B) == 0
    few = capfd.readouterr().out
    assert call("compare", A, B, "--layers") == 0
    many = capfd.readouterr().out
    pattern = r"^(?:down|up|mid)\."
    assert len(re.findall(pattern, few, re.MULTILINE)) == 6
    assert len(re.findall(pattern, many, re.MULTILINE)) == 50


@pytest.mark.parametrize(
    "arguments", [(A, B), (A, L), (L, M), (A, B, L, "--base", "base.safetensors", "--layers")]
)
def test_everything_fits_80_columns(arguments: tuple[str, ...]) -> None:
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    command = [sys.executable, "-m", "paramerge.cli", "compare", *arguments]
    process = subprocess.Popen(command, stdout=follower, stderr=subprocess.DEVNULL, env=environment)
    os.close(follower)
    data = b""
    while True:
        try:
            block = os.read(leader, 65536)
        except OSError:
            break
        data += block
        if not block:
            break
    assert process.wait() == 0
    os.close(leader)
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", data.decode()).replace("\r", "").splitlines()
    assert len(lines) > 10 and max(map(len, lines)) <= 80
    titles = [line for line in lines if line.startswith("unet ")]
    assert titles and all(re.match(r"unet [a-z/-]+ ?[a-z/-]* +\d+ ", line) for line in titles)


def test_json_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("compare", A, B, L, "--json") == 0
    captured = capfd.readouterr()
    content = json.loads(captured.out)
    assert captured.err == ""
    assert [adapter["family"] for adapter in content["adapters"]] == ["para", "para", "lora"]
    assert [pair["kind"] for pair in content["pairs"]] == ["para-para", "para-lora", "para-lora"]
    layer = content["pairs"][0]["layers"][0]
    assert len(layer["angles"]) == 2 and 0 <= layer["friedrichs"] <= 1 and layer["joint_rank"] == 5
    assert content["pairs"][0]["total"]["joint_rank"] == 250


def test_the_report_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    assert call("compare", A, B, L, "--report", "out.html") == 0
    text = Path("out.html").read_text(encoding="utf-8")
    assert text.lstrip().startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert text.count("<section ") == 3 and text.count("<svg ") >= 3
    assert "report: out.html" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((A,), 2, "nothing to compare"),
        ((), 2, "an argument is missing"),
        ((A, "absent.safetensors"), 3, "no such file"),
        ((A, "base.safetensors"), 4, "this is a checkpoint"),
        ((A, B, "--base", A), 3, "adapter"),
        ((A, B, "--report", "out.txt"), 6, ".html"),
        ((A, B, "--report", "absent/out.html"), 6, "does not exist"),
    ],
)
def test_errors_say_what_to_do(
    arguments: tuple[str, ...], code: int, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("compare", *arguments) == code
    assert words in capfd.readouterr().err


def test_a_report_never_overwrites_an_adapter(capfd: pytest.CaptureFixture[str]) -> None:
    before = Path(A).read_bytes()
    Path("page.html").symlink_to(A)
    Path("hard.html").hardlink_to(A)
    for name in ("page.html", "hard.html"):
        assert call("compare", A, B, "--report", name) == 6
        assert "the output is one of the inputs" in capfd.readouterr().err
    assert Path(A).read_bytes() == before


def test_comparing_needs_no_torch() -> None:
    code = (
        "import sys; from paramerge.cli.main import main\n"
        "try: main(['compare', 'a.safetensors', 'l.safetensors', '--report', 'out.html'])\n"
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
    arguments = ["compare", "a.safetensors", "l.safetensors", "--report", "out.html"]
    command = [sys.executable, "-c", code % (arguments, taken)]
    subprocess.run(command, check=True, capture_output=True, env=clean | given)


def test_real_loras_from_different_people(shared_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two styles: independent as changes, though they write to the same outputs more than chance would."""
    folder = shared_dir / "fixtures" / "adapters"
    names = ("diffusers_old_catundchat_sd15.safetensors", "cloneofsimo_analog_svd_rank4.safetensors")
    assert call("compare", *(folder / name for name in names), "--json", "--report", "real.html") == 0
    total = json.loads(capfd.readouterr().out)["pairs"][0]["total"]
    assert total["relation"] == "independent" and abs(total["cosine"]) < 0.01
    assert total["output_overlap"] > 4 * total["output_chance"]
    assert total["input_overlap"] < 1.5 * total["input_chance"]


def test_a_para_extracted_from_a_real_lora_takes_all_of_it(
    shared_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lora = shared_dir / "fixtures" / "adapters" / "cloneofsimo_analog_svd_rank4.safetensors"
    assert call("extract", "--from-lora", lora, "--rank", 4, "-o", "para.safetensors", "--json") == 0
    capfd.readouterr()
    assert call("compare", "para.safetensors", lora, "--json") == 0
    total = json.loads(capfd.readouterr().out)["pairs"][0]["total"]
    assert total["layers"] == 192 and total["lost_lora_then_para"] == pytest.approx(1.0, abs=1e-5)
