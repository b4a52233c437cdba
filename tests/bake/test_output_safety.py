"""Nothing is lost: whatever goes wrong, what stood at the output is still there, and nothing half done is."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from baking import load, lora_file, para_file, plan_of, random_bases, random_factors, shapes_of, small_model

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.bake.plan import Plan
from paramerge.errors import CheckpointError, NonFiniteError, OutputError, ParamergeError
from paramerge.files import staging, writer
from paramerge.files.staging import write_recipe
from paramerge.files.writer import write_safetensors


@dataclass(frozen=True)
class Place:
    """An output with something at it, and what has to be there after a failure."""

    base: Path
    adapter: Path
    output: Path
    before: dict[str, bytes]

    def plan(self, *, kind: str = "para", adapter: Path | None = None, strength: float = 1.0) -> Plan:
        return plan_of(self.base, Step(kind, adapter or self.adapter, strength))  # type: ignore[arg-type]

    def check_untouched(self, *, litter: bool = False) -> None:
        found = contents(self.output)
        assert found == self.before
        if not litter:
            assert [path.name for path in self.output.parent.iterdir()] == [self.output.name]


def contents(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


@pytest.fixture(params=["single-file", "diffusers-folder"])
def place(request: pytest.FixtureRequest, models, tmp_path: Path) -> Place:
    base = models(layout=request.param)
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    adapter = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    folder = tmp_path / "outputs"
    folder.mkdir()
    if request.param == "single-file":
        output = folder / "out.safetensors"
        output.write_bytes(b"precious")
    else:
        output = folder / "out"
        output.mkdir()
        (output / "model_index.json").write_text("precious")
        (output / "unet").mkdir()
        (output / "unet" / "config.json").write_text("precious, too")
        write_recipe(output, {})
    return Place(base, adapter, output, contents(output))


def test_the_output_replaces_what_stood_there(place: Place) -> None:
    bake(place.plan(), place.output, overwrite=True)
    assert contents(place.output) != place.before
    assert [path.name for path in place.output.parent.iterdir()] == [place.output.name]


def test_a_folder_is_replaced_where_names_cannot_trade_places(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "exchange_names", lambda a, b: False)
    bake(place.plan(), place.output, overwrite=True)
    assert contents(place.output) != place.before
    assert [path.name for path in place.output.parent.iterdir()] == [place.output.name]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["para", "lora"])
def test_nan_and_inf_in_an_adapter(place: Place, tmp_path: Path, value: float, kind: str) -> None:
    shapes = shapes_of(place.base)
    layers = [layer for layer in shapes if ".attn1.to_q" in layer]
    path = tmp_path / "bad.safetensors"
    if kind == "para":
        tensors = dict(load(place.adapter).tensors)
        key = next(key for key in tensors if "up_blocks" in key)
        tensors[key] = tensors[key].copy()
        tensors[key][0, 0] = value
        write_safetensors(path, tensors, load(place.adapter).metadata)
    else:
        factors = random_factors(shapes, layers, 2)
        factors[layers[-1]][1][0, 0] = value
        lora_file(path, factors)
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        bake(place.plan(kind=kind, adapter=path), place.output, overwrite=True)
    place.check_untouched()


def test_a_result_beyond_the_dtypes_range(place: Place, tmp_path: Path) -> None:
    layers = [layer for layer in shapes_of(place.base) if ".attn1.to_q" in layer]
    factors = random_factors(shapes_of(place.base), layers, 2)
    large = {layer: (up * 1e4, down * 1e4, *rest) for layer, (up, down, *rest) in factors.items()}
    lora = lora_file(tmp_path / "l.safetensors", large)
    with pytest.raises(NonFiniteError, match="not finite"):
        bake(place.plan(kind="lora", adapter=lora), place.output, overwrite=True)
    place.check_untouched()


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_base_that_is_not_finite_where_it_should_change(tmp_path: Path, value: float) -> None:
    base = small_model(tmp_path / "base.safetensors")
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    adapter = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    tensors = dict(load(base).tensors)
    key = next(key for key in tensors if key.endswith("attn1.to_q.weight"))
    tensors[key] = tensors[key].copy()
    tensors[key][-1, -1] = value
    write_safetensors(base, tensors, {})
    with pytest.raises(NonFiniteError) as caught:
        bake(plan_of(base, Step("para", adapter)), tmp_path / "out.safetensors")
    assert "attn1.to_q" in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_half_way(place: Place, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    real, calls = os.pwrite, 0

    def failing(descriptor: int, data: bytes, position: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(error, os.strerror(error))
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", failing)
    with pytest.raises(OutputError) as caught:
        bake(place.plan(), place.output, overwrite=True)
    assert caught.value.exit_code == 6
    monkeypatch.undo()
    place.check_untouched()


def test_writes_that_are_cut_short_are_written_on(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header too, which is written last: half of what was asked for, every time."""
    bake(place.plan(), place.output, overwrite=True)
    wanted, real = contents(place.output), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: -(-len(data) // 2)], at))
    bake(place.plan(), place.output, overwrite=True)
    assert contents(place.output) == wanted
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    with pytest.raises(OutputError):
        bake(place.plan(), place.output, overwrite=True)
    monkeypatch.undo()
    assert contents(place.output) == wanted


@pytest.mark.parametrize("text", [b"{", b"[]", b"null", b"[" * 10**5])
def test_a_configuration_that_cannot_say_the_new_dtype(models, tmp_path: Path, text: bytes) -> None:
    base = tmp_path / "base"
    shutil.copytree(models(layout="diffusers-folder"), base)
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    adapter = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    (base / "text_encoder" / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match="this configuration is not"):
        bake(plan_of(base, Step("para", adapter), dtype="bf16"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_too_little_room_shows_before_any_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place.output)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(OutputError, match="too little room"):
        bake(place.plan(), place.output, overwrite=True)
    place.check_untouched()


def test_an_error_in_the_callers_progress(place: Place) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bake(place.plan(), place.output, interrupt, overwrite=True)
    place.check_untouched()


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


KILLED_HALF_WAY = """
import os, signal, sys
from pathlib import Path
from paramerge.checkpoints.layout import open_base
from paramerge.formats import open_adapter
from paramerge.bake.bake import bake
from paramerge.bake.plan import make_plan
from paramerge.apply.steps import BakeOptions, Step
base, adapter, output = map(Path, sys.argv[1:])
plan = make_plan(open_base(base), [(Step("para", adapter), open_adapter(adapter))], BakeOptions())
def kill(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
bake(plan, output, kill, overwrite=True)
"""


def test_kill_9_half_way(place: Place) -> None:
    result = run(KILLED_HALF_WAY, place.base, place.adapter, place.output)
    assert result.returncode == -signal.SIGKILL, result.stderr
    # a file without a name vanishes with its process; a folder has to have a name, and stays as litter
    place.check_untouched(litter=place.output.is_dir())
    bake(place.plan(), place.output, overwrite=True)
    assert [path.name for path in place.output.parent.iterdir()] == [place.output.name]


UNDER_A_LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000))
from paramerge.cli.main import main
main(["bake", "--base", sys.argv[1], "--para", sys.argv[2], "-o", sys.argv[3], "--overwrite"])
"""


def test_a_limit_on_file_sizes(place: Place) -> None:
    result = run(UNDER_A_LIMIT, place.base, place.adapter, place.output)
    assert result.returncode == 6, result.stderr
    assert "larger than the system allows" in result.stderr
    assert "Traceback" not in result.stderr
    place.check_untouched()


def test_without_unnamed_files_and_direct_writes(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other systems: a temporary name, buffered writes; the bytes are the same."""
    from paramerge.files import positioned

    wanted = tmp_path / ("wanted" if place.output.is_dir() else "wanted.safetensors")
    bake(place.plan(), wanted)
    monkeypatch.setattr(writer, "_open_unnamed", lambda folder: None)
    monkeypatch.setattr(positioned, "_open_direct", lambda descriptor: None)
    report = bake(place.plan(), place.output, overwrite=True)
    assert not report.direct_writes
    assert contents(place.output) == contents(wanted)
    with pytest.raises(KeyboardInterrupt):
        bake(place.plan(), place.output, _interrupt, overwrite=True)
    assert [path.name for path in place.output.parent.iterdir()] == [place.output.name]


def _interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


Link = Callable[[Path, Path], None]


@pytest.mark.parametrize(
    "link",
    [lambda new, old: new.symlink_to(old), lambda new, old: new.hardlink_to(old)],
    ids=["symbolic", "hard"],
)
@pytest.mark.parametrize("which", ["base", "adapter"])
def test_the_output_may_not_be_an_input(models, tmp_path: Path, link: Link, which: str) -> None:
    base = tmp_path / "base.safetensors"
    shutil.copyfile(models(), base)
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    adapter = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    source = base if which == "base" else adapter
    before = source.read_bytes()
    alias = tmp_path / "alias.safetensors"
    link(alias, source)
    plan = plan_of(base, Step("para", adapter))
    for output in (source, alias, tmp_path / "x" / ".." / source.name):
        with pytest.raises(OutputError, match="one of the inputs"):
            bake(plan, output)
    assert source.read_bytes() == before


def test_outputs_inside_or_around_a_folder_are_refused(models, tmp_path: Path) -> None:
    base = tmp_path / "models" / "base"
    shutil.copytree(models(layout="diffusers-folder"), base)
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    adapter = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    before = contents(base)
    plan = plan_of(base, Step("para", adapter))
    (tmp_path / "link").symlink_to(base)
    for output in (
        base,
        base / "new",
        base / "unet",
        tmp_path / "models",
        tmp_path / "link",
        tmp_path / "link" / "new",
    ):
        with pytest.raises(OutputError):
            bake(plan, output)
    with pytest.raises(OutputError, match="the name of a file"):
        bake(plan, tmp_path / "out.safetensors")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"x")
    with pytest.raises(OutputError, match="is not empty"):
        bake(plan, tmp_path / "photos")
    assert contents(base) == before


def test_a_single_file_is_not_written_over_a_folder(models, tmp_path: Path) -> None:
    base = models()
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    adapter = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="the output is a folder"):
        bake(plan_of(base, Step("para", adapter)), tmp_path / "out")
    with pytest.raises(OutputError, match="does not exist"):
        bake(plan_of(base, Step("para", adapter)), tmp_path / "missing" / "out.safetensors")


def test_a_link_at_the_output_is_followed(models, tmp_path: Path) -> None:
    """The link stays a link, its target is replaced, and the mode is kept."""
    base = models()
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    adapter = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    target, link = tmp_path / "target.safetensors", tmp_path / "link.safetensors"
    target.write_bytes(b"old")
    target.chmod(0o640)
    link.symlink_to(target.name)
    bake(plan_of(base, Step("para", adapter)), link, overwrite=True)
    assert link.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o640
    assert len(load(target).tensors) == len(load(base).tensors)


def test_a_base_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    base = small_model(tmp_path / "base.safetensors")
    layers = [layer for layer in shapes_of(base) if ".attn1.to_q" in layer]
    adapter = para_file(tmp_path / "p.safetensors", random_bases(shapes_of(base), layers, 2))
    plan = plan_of(base, Step("para", adapter))
    os.truncate(base, base.stat().st_size // 2)
    with pytest.raises(ParamergeError, match="shorter"):
        bake(plan, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
