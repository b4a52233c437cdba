"""``explain`` on what ``bake`` wrote: other families, recipes, and the command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from baking import lora_file, para_file, random_bases, random_factors, shapes_of
from blueprints import sd15
from family_cases import CASES
from random_checkpoint import write_random_checkpoint

import paramerge as pm
from paramerge.cli.main import main
from paramerge.explain.findings import AdapterFinding, Explanation

LAYERS = (
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v",
    "unet.down_blocks.0.attentions.1.proj_in",
    "unet.down_blocks.1.resnets.0.conv1",
)
QUICK = ("loha", "dora-out", "oft", "svdiff")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, a folder of adapters of it, and in the folder a file that is none."""
    folder = tmp_path_factory.mktemp("bakes")
    write_random_checkpoint(sd15(16, vocabulary=50), folder / "base.safetensors", seed=1, dtype="F16")
    shapes = shapes_of(folder / "base.safetensors")
    (folder / "adapters").mkdir()
    para_file(folder / "adapters/p.safetensors", random_bases(shapes, LAYERS, 2))
    for seed, name in enumerate(("l", "m"), 1):
        lora_file(folder / f"adapters/{name}.safetensors", random_factors(shapes, LAYERS, 2, seed))
    (folder / "adapters/none.safetensors").write_bytes(b"nothing")
    for case in CASES:
        suited = {layer: shapes[layer] for layer in LAYERS if case.suits(shapes[layer])}
        case.write(folder / "families" / case.name, suited, "F16", seed=4)
    return folder


def findings(found: Explanation) -> dict[str, AdapterFinding]:
    return {finding.name.removesuffix(".safetensors"): finding for finding in found.adapters}


def check_family(folder: Path, name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    path = folder / "families" / name
    path = path if case.config is not None else path / "adapter.safetensors"
    steps = [pm.Adapter(path, 0.7), pm.Lora(folder / "adapters/l.safetensors", 0.5)]
    pm.bake(folder / "base.safetensors", steps, tmp_path / "tuned.safetensors")
    found = pm.explain(
        tmp_path / "tuned.safetensors", folder / "base.safetensors", [path, folder / "adapters"]
    )
    own = next(finding for finding in found.adapters if finding.family not in ("para", "lora"))
    lora = findings(found)["l"]
    assert (own.verdict, lora.verdict) == ("there", "there"), found
    assert abs(own.strength - 0.7) < 2 * own.bar, own
    assert abs(lora.strength - 0.5) < 2 * lora.bar, lora
    assert found.unexplained < 1e-3
    assert [claim.agrees for claim in found.claims] == [True, True]
    assert not found.warnings


@pytest.mark.parametrize("name", QUICK)
def test_other_families(folder: Path, name: str, tmp_path: Path) -> None:
    check_family(folder, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [c.name for c in CASES if c.name not in QUICK and c.family != "lora"])
def test_every_family(folder: Path, name: str, tmp_path: Path) -> None:
    check_family(folder, name, tmp_path)


def call(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([os.fspath(word) if isinstance(word, Path) else str(word) for word in words])
    return int(stop.value.code or 0)


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapters = folder / "base.safetensors", folder / "adapters"
    tuned = tmp_path / "tuned.safetensors"
    steps = [pm.Para(adapters / "p.safetensors"), pm.Lora(adapters / "l.safetensors", 0.5)]
    pm.bake(base, steps, tuned)
    assert call("explain", tuned, "--base", base, "--adapters", adapters) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "order: p.safetensors, then l.safetensors" in text
    assert "not in it (at most" in text
    assert "unexplained: nothing beyond rounding" in text
    assert "recipe: l.safetensors @ 0.5 agrees" in text
    assert "none.safetensors" in text
    assert call("explain", tuned, "--base", base, "--adapters", adapters, "--layers", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["name"][0] for one in found["adapters"]] == ["p", "l", "m"]
    assert found["adapters"][0]["directions"]["all"] == 8
    assert found["adapters"][1]["strength"] == pytest.approx(0.5, abs=2 * found["adapters"][1]["bar"])
    assert len(found["layers"]) == 4 and found["unexplained"] == 0


def test_a_recipe_that_is_untrue_is_found_out(folder: Path, tmp_path: Path) -> None:
    """The numbers of one bake with the recipe of another."""
    base, adapters = folder / "base.safetensors", folder / "adapters"
    files = {}
    for name, strength in (("told", 0.8), ("done", 0.3)):
        files[name] = tmp_path / f"{name}.safetensors"
        pm.bake(base, [pm.Lora(adapters / "l.safetensors", strength)], files[name])
    told, done = (files[name].read_bytes() for name in ("told", "done"))
    start = 8 + int.from_bytes(told[:8], "little")
    untrue = tmp_path / "untrue.safetensors"
    untrue.write_bytes(told[:start] + done[8 + int.from_bytes(done[:8], "little") :])
    found = pm.explain(untrue, base, adapters)
    (claim,) = found.claims
    assert claim.agrees is False and "0.3" in claim.reason
    assert findings(found)["l"].strength == pytest.approx(0.3, abs=1e-3)


def test_an_adapter_for_another_model_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    lora_file(tmp_path / "other.safetensors", {"unet.no.such.layer": random_factors(
        {"x": (8, 8)}, ["x"], 2)["x"]})  # fmt: skip
    base = folder / "base.safetensors"
    with pytest.raises(pm.ParamergeError):
        pm.explain(base, base, [tmp_path / "other.safetensors"])
    found = pm.explain(base, base, tmp_path)  # in a folder it is said and left out
    assert list(found.left_out) == ["other.safetensors"] and not found.adapters
