"""One call a verb: it writes what the command line writes, byte for byte, however adapters are given."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from baking import lora_file, para_file, random_bases, random_factors, shapes_of, small_model

import paramerge as pm
from paramerge.adapters import Adapter as OpenedAdapter
from paramerge.apply.steps import BakeOptions, Step
from paramerge.bake.plan import make_plan
from paramerge.cli.main import main
from paramerge.convert.request import ConvertOptions
from paramerge.errors import FamilyError, UsageError
from paramerge.extract.families import ExtractOptions
from paramerge.merge.request import Input

TO_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
LAYERS = [TO_Q, "unet.down_blocks.1.resnets.0.conv1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two PaRas and two LoRAs."""
    folder = tmp_path_factory.mktemp("files")
    base = small_model(folder / "base.safetensors", dtype="F16")
    shapes = shapes_of(base)
    for number, name in enumerate("ab"):
        para_file(folder / f"para-{name}.safetensors", random_bases(shapes, LAYERS, 2, seed=number), "sd15")
        factors = random_factors(shapes, LAYERS, 3, seed=10 + number)
        lora_file(folder / f"lora-{name}.safetensors", factors, alpha=2.0)
    return folder


def files(folder: Path) -> tuple[Path, Path, Path, Path, Path]:
    names = ("base", "para-a", "para-b", "lora-a", "lora-b")
    base, a, b, c, d = (folder / f"{name}.safetensors" for name in names)
    return base, a, b, c, d


def by_command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stop, contextlib.redirect_stdout(io.StringIO()):
        main([str(argument) for argument in arguments])
    assert not stop.value.code


def test_bake(folder: Path, tmp_path: Path) -> None:
    base, a, _, c, _ = files(folder)
    by_command("bake", "--base", base, "--para", a, "--lora", f"{c}@0.8", "-o", tmp_path / "cli.safetensors")
    ways: dict[str, list[Any]] = {
        "classes": [pm.Para(a), pm.Lora(c, 0.8)],
        "text": [str(a), f"{c}@0.8"],
        "any": [a, pm.Adapter(str(c), 0.8)],
        "opened": [pm.open_adapter(a), pm.Lora(pm.open_adapter(c), 0.8)],
    }
    expected = (tmp_path / "cli.safetensors").read_bytes()
    for name, adapters in ways.items():
        output = tmp_path / f"{name}.safetensors"
        report = pm.bake(base if name != "opened" else pm.open_base(base), adapters, output)
        assert report.output == output
        assert output.read_bytes() == expected, name
    plan = pm.plan_bake(base, ways["classes"])
    plan.write(tmp_path / "plan.safetensors")
    assert (tmp_path / "plan.safetensors").read_bytes() == expected


def test_the_options_of_a_bake(folder: Path, tmp_path: Path) -> None:
    base, a, b, c, _ = files(folder)
    flags = ["--merge", "sequential", "--gamma", "0.02", "--only", "unet", "--dtype", "bf16", "--private"]
    by_command(
        "bake", "--base", base, "--para", f"{a}@0.5:MID=0.5", "--para", b, "--lora", c, *flags,
        "-o", tmp_path / "cli.safetensors",
    )  # fmt: skip
    adapters = [pm.Para(a, 0.5, {"MID": 0.5}), pm.Para(b), pm.Lora(c)]
    options: dict[str, Any] = {"merge": "sequential", "gamma": 0.02, "dtype": "bfloat16", "private": True}
    calls: list[tuple[int, int]] = []
    pm.bake(
        base, adapters, tmp_path / "api.safetensors", only="unet", **options, rehash=True,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert (tmp_path / "api.safetensors").read_bytes() == (tmp_path / "cli.safetensors").read_bytes()
    assert calls[-1][0] == calls[-1][1]


def test_the_other_verbs(folder: Path, tmp_path: Path) -> None:
    base, a, b, c, d = files(folder)
    baked = tmp_path / "baked.safetensors"
    pm.bake(base, [pm.Lora(c)], baked)
    outputs = {name: tmp_path / f"{name}.safetensors" for name in ("api", "cli")}
    api, cli = outputs["api"], outputs["cli"]
    cases: list[tuple[Any, list[object]]] = [
        (lambda: pm.merge([a, b], api), ["merge", a, b]),
        (lambda: pm.merge([c, pm.Lora(d, 0.3)], api, rank=2), ["merge", c, f"{d}@0.3", "--rank", "2"]),
        (lambda: pm.merge([a, c], api, base=base), ["merge", a, c, "--base", base]),
        (
            lambda: pm.convert([c], api, to="diffusers", dtype="F32"),
            ["convert", c, "--to", "diffusers", "--dtype", "fp32"],
        ),
        (
            lambda: pm.convert([pm.Para(a), f"{c}@0.5"], api, to="kohya", base=base),
            ["convert", a, f"{c}@0.5", "--to", "kohya", "--base", base],
        ),
        (lambda: pm.resize(c, api, rank=1), ["resize", c, "--rank", "1"]),
        (lambda: pm.resize(a, api, energy=0.7, base=base), ["resize", a, "--energy", "0.7", "--base", base]),
        (
            lambda: pm.extract(baked, base, api, family="lora", rank=3),
            ["extract", "--from", baked, "--base", base, "--family", "lora", "--rank", "3"],
        ),
    ]
    near = base.parent
    cases += [
        (
            lambda: pm.replay(baked, api, models=[near], set={1: 0.4}, dtype="bf16"),
            ["replay", baked, "--models", near, "--set", "1=0.4", "--dtype", "bf16"],
        ),
        (
            lambda: pm.bake(base, [pm.Lora(c)], api, content_hash=False, card=True, overwrite=True),
            ["bake", "--base", base, "--lora", c, "--no-content-hash", "--card", "--overwrite"],
        ),
    ]
    for call, command in cases:
        for path in outputs.values():
            path.unlink(missing_ok=True)
        call()
        by_command(*command, "-o", cli)
        assert api.read_bytes() == cli.read_bytes(), command


def test_the_verbs_that_write_nothing(folder: Path) -> None:
    base, a, b, c, _ = files(folder)
    (pair,) = pm.compare([a, str(b)], base).pairs
    assert pair.kind == "para-para"
    assert type(pm.inspect(c)).__name__ == "AdapterFacts"
    (size,) = pm.sizes("sd15", families=["lora"], ranks=[4], dtype="fp32")
    (half,) = pm.sizes("sd15", families=["lora"], ranks=[4])
    assert size.nbytes == 2 * half.nbytes == 4 * size.parameters


def test_verify(folder: Path, tmp_path: Path) -> None:
    """The data of the call are those that the command prints."""
    base, a, _, _, _ = files(folder)
    baked, text = tmp_path / "baked.safetensors", io.StringIO()
    pm.bake(base, [a], baked)
    found = pm.verify(str(baked), models=[folder], rehash=True, progress=lambda done, total: None)
    assert found.verdict == "identical"
    with pytest.raises(SystemExit), contextlib.redirect_stdout(text):
        main(["verify", str(baked), "--models", str(folder), "--json"])
    printed = json.loads(text.getvalue())
    assert printed.pop("paramerge")["inputs"][0] == str(baked)
    assert {**printed, "seconds": 0} == json.loads(json.dumps({**found.as_dict(), "seconds": 0}))


def test_the_old_forms_work_and_warn(folder: Path, tmp_path: Path) -> None:
    base, a, _, c, _ = files(folder)
    opened, checkpoint = pm.open_adapter(c), pm.open_base(base)
    plan = make_plan(checkpoint, [(Step("lora", c), opened)], BakeOptions())
    with pytest.warns(DeprecationWarning, match="this form of paramerge.bake"):
        baked = pm.bake(plan, tmp_path / "old.safetensors").output  # type: ignore[call-arg, arg-type]
    pm.bake(base, [c], tmp_path / "new.safetensors")
    assert baked.read_bytes() == (tmp_path / "new.safetensors").read_bytes()
    with pytest.warns(DeprecationWarning, match="this form of paramerge.convert"):
        pm.convert([Input(c)], [opened], tmp_path / "k.safetensors", ConvertOptions("kohya"))  # type: ignore
    options = ExtractOptions("lora", rank=1)
    with pytest.warns(DeprecationWarning, match="this form of paramerge.extract"):
        pm.extract(pm.open_base(baked), checkpoint, tmp_path / "e.safetensors", options)  # type: ignore
    assert pm.resize(opened, tmp_path / "r.safetensors", rank=1).output.exists()
    assert len(pm.compare([opened, pm.open_adapter(a)], checkpoint).pairs) == 1


@pytest.mark.parametrize(
    ("adapters", "match"),
    [
        ("b.safetensors", "in the place of a list"),
        (pm.Lora("b.safetensors"), "in the place of a list"),
        ([], "nothing to bake"),
        ([3], "this is no adapter"),
        ([None], "this is no adapter"),
    ],
)
def test_what_is_no_list_of_adapters_is_refused(folder: Path, adapters: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match) as error:
        pm.bake(folder / "base.safetensors", adapters, folder / "out.safetensors")
    assert error.value.where == "adapters"
    assert not (folder / "out.safetensors").exists()


def test_strengths_are_checked_when_they_are_given() -> None:
    for wrong in (
        lambda: pm.Para("a", 1.5),
        lambda: pm.Lora("a", float("nan")),
        lambda: pm.Lora("a", 1, "X"),
    ):
        with pytest.raises(UsageError):
            wrong()


def test_an_adapter_that_is_open_is_held_to_its_family(folder: Path, tmp_path: Path) -> None:
    base, a, _, c, _ = files(folder)
    for given in (pm.Lora(a), pm.Lora(pm.open_adapter(a)), pm.Para(c), pm.Para(pm.open_adapter(c))):
        with pytest.raises(FamilyError):
            pm.bake(base, [given], tmp_path / "out.safetensors")


def test_a_strength_where_it_says_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    _, a, b, c, d = files(folder)
    output = tmp_path / "out.safetensors"
    for call in (
        lambda: pm.compare([pm.Lora(c, 0.5), d]),
        lambda: pm.resize(f"{c}@0.5", output, rank=1),
        lambda: pm.merge([pm.Para(a, 0.5), b], output),
        lambda: pm.merge([pm.Lora(c, 1, "MID=0"), d], output),
        lambda: pm.convert([pm.Lora(c, 0.5)], output, to="kohya"),
    ):
        with pytest.raises(UsageError):
            call()
    assert not output.exists()


def test_the_recipe_tells_what_the_adapters_were_opened_with(folder: Path, tmp_path: Path) -> None:
    """A caller cannot say one thing where an adapter is opened and another where it is baked."""
    base, _, _, c, d = files(folder)
    told = pm.Interpretation(lokr_scale=0.25)

    def opened(path: Path, interpretation: pm.Interpretation = pm.Interpretation()) -> OpenedAdapter:  # noqa: B008
        return pm.open_adapter(path, interpretation=interpretation)

    def recipe(name: str, *adapters: OpenedAdapter) -> Any:
        return pm.bake(base, adapters, tmp_path / f"{name}.safetensors").recipe

    plain = recipe("plain", opened(c), opened(d))
    assert "lokr_scale" not in plain["options"]
    alike = recipe("alike", opened(c, told), opened(d, told))
    assert alike["options"]["lokr_scale"] == 0.25
    assert "interpretation" not in alike["steps"][0]
    mixed = recipe("mixed", opened(c), opened(d, told))
    assert "lokr_scale" not in mixed["options"]
    assert [step.get("interpretation") for step in mixed["steps"]] == [None, {"lokr_scale": 0.25}]
