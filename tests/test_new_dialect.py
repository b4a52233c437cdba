"""A dialect that paramerge does not know, defined in one place: every verb takes it.

The dialect is the one of ``docs/extending.md``, whose code is run as it stands there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from adapter_files import kohya_layer
from baking import load, shapes_of, small_model
from toy_packages import SLASHES, WAYS, run

from paramerge.errors import PluginError
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter, registry

PATHS = ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.proj_in")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "base.safetensors", dtype="F16")


@pytest.fixture(params=WAYS)
def known(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """The dialect, as an installed package adds it and as a call does."""
    with SLASHES.known(tmp_path / "site-packages", request.param):
        yield


@pytest.fixture
def kohya(base: Path, tmp_path: Path) -> Path:
    """A LoRA of two layers, with an alpha, in kohya's names."""
    rng = np.random.default_rng(0)
    tensors = {}
    for path in PATHS:
        out, width = shapes_of(base)[f"unet.{path}"][:2]
        up, down = rng.normal(0, 0.1, (out, 2)), rng.normal(0, 0.1, (2, width))
        stem = f"lora_unet_{path.replace('.', '_')}"
        tensors |= kohya_layer(stem, up.astype(np.float32), down.astype(np.float32), 1.5)
    write_safetensors(tmp_path / "kohya.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
    return tmp_path / "kohya.safetensors"


@pytest.fixture
def slashes(kohya: Path) -> Path:
    """The same in the new dialect, written by hand."""
    roles = {"lora_up.weight": "up", "lora_down.weight": "down", "alpha": "scale"}
    stems = {f"lora_unet_{path.replace('.', '_')}": f"unet/{path.replace('.', '/')}" for path in PATHS}
    tensors = {}
    for key, value in load(kohya).tensors.items():
        stem, _, ending = key.partition(".")
        tensors[f"{stems[stem]}~{roles[ending]}"] = value
    write_safetensors(kohya.with_name("slashes.safetensors"), tensors, {"ss_base_model_version": "sd_v1"})
    return kohya.with_name("slashes.safetensors")


@pytest.mark.usefixtures("known")
def test_every_verb(
    base: Path, kohya: Path, slashes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, "inspect", slashes, "--json")
    facts = json.loads(text)
    assert code == 0 and (facts["dialect"], facts["family"]) == ("slashes", "lora")
    assert {str(name) for name in open_adapter(slashes).modules} == {f"unet.{path}" for path in PATHS}

    outputs = []
    for given in (kohya, slashes):
        baked = tmp_path / f"baked-{given.name}"
        code, text = run(capsys, "bake", "--base", base, "--lora", given, "-o", baked)
        assert code == 0, text
        merged = tmp_path / f"merged-{given.name}"
        code, text = run(capsys, "merge", given, kohya, "-o", merged)
        assert code == 0, text
        small = tmp_path / f"small-{given.name}"
        code, text = run(capsys, "resize", given, "--rank", "1", "-o", small)
        assert code == 0, text
        outputs.append([load(path).raw for path in (baked, merged, small)])
    assert outputs[0][:2] == outputs[1][:2]
    assert sorted(outputs[0][2].values()) == sorted(outputs[1][2].values())  # each in its own dialect

    code, text = run(capsys, "compare", kohya, slashes, "--json")
    assert code == 0, text

    back = tmp_path / "back.safetensors"
    code, text = run(capsys, "convert", slashes, "--to", "kohya", "-o", back)
    assert code == 0, text
    assert load(back).raw == load(kohya).raw
    there = tmp_path / "there.safetensors"
    code, text = run(capsys, "convert", kohya, "--to", "slashes", "-o", there)
    assert code == 0, text
    assert load(there).raw == load(slashes).raw
    code, text = run(capsys, "convert", "--help")
    assert code == 0 and "slashes" in text

    code, text = run(capsys, "bake", "--base", slashes, "--lora", slashes, "-o", tmp_path / "not")
    assert code == 3 and "this is an adapter, not a base checkpoint" in text


@pytest.mark.usefixtures("known")
def test_other_families_under_its_names(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, width = shapes_of(base)[f"unet.{PATHS[0]}"][:2]
    rng = np.random.default_rng(1)
    sizes = {"hada_w1_a": (out, 2), "hada_w1_b": (2, width), "hada_w2_a": (out, 2), "hada_w2_b": (2, width)}
    stem = f"unet/{PATHS[0].replace('.', '/')}"
    tensors = {f"{stem}~{role}": rng.normal(size=size).astype(np.float32) for role, size in sizes.items()}
    write_safetensors(tmp_path / "loha.safetensors", tensors, {})
    assert open_adapter(tmp_path / "loha.safetensors").family == "loha"
    code, text = run(capsys, "convert", tmp_path / "loha.safetensors", "--to", "kohya", "-o", tmp_path / "k")
    assert code == 0, text
    code, text = run(capsys, "convert", tmp_path / "k.safetensors", "--to", "slashes", "-o", tmp_path / "s")
    assert code == 0, text
    written = load(tmp_path / "s.safetensors").raw
    assert all(written[key] == raw for key, raw in load(tmp_path / "loha.safetensors").raw.items())


@pytest.mark.usefixtures("known")
def test_damage_is_told_in_the_words_of_all_dialects(
    slashes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load(slashes).tensors
    stem = f"unet/{PATHS[0].replace('.', '/')}"
    kohyas = f"lora_unet_{PATHS[0].replace('.', '_')}.lora_up.weight"
    for tensors, said in (
        (
            {key: value for key, value in whole.items() if key != f"{stem}~down"},
            "1 of 2 layers are incomplete",
        ),
        ({**whole, f"{stem}~down": whole[f"{stem}~down"][:1]}, "ranks of up and down do not agree"),
        ({**whole, kohyas: whole[f"{stem}~up"]}, "mixes dialects"),
        ({**whole, f"{stem}~dora_scale": whole[f"{stem}~up"]}, "one magnitude for each row"),
    ):
        write_safetensors(slashes, tensors, {})
        code, text = run(capsys, "bake", "--base", slashes, "--lora", slashes, "--dry-run")
        assert code != 0
        code, text = run(capsys, "inspect", slashes)
        assert code == 4 and said in text, text
    write_safetensors(slashes, {**whole, f"{stem}~sparks": whole[f"{stem}~up"]}, {})
    adapter = open_adapter(slashes)
    assert len(adapter.modules) == 1, "a layer with a part that is not known is not applied"


def test_without_the_package_it_is_unknown(slashes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = run(capsys, "convert", slashes, "--to", "kohya", "-o", slashes.with_name("not"))
    assert code == 4 and "nothing in this file is known as an adapter" in text
    code, text = run(capsys, "convert", slashes, "--to", "slashes", "-o", slashes.with_name("not"))
    assert code == 2
    assert "slashes" not in {dialect.key for dialect in registry.dialects()}


RECORD = (
    "from paramerge.formats.dialect import Dialect\n"
    "DIALECT = Dialect(key={}, names='', claims=bool, place=lambda stem: None)\n"
)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no licence')", "no licence"),
        ("OTHER = 1", "cannot be loaded"),
        ("DIALECT = 'slashes'", "this is no dialect"),
        (RECORD.format("'kohya'"), "a dialect kohya already"),
        (RECORD.format("'lycoris'"), "a dialect lycoris already"),
        (RECORD.format("'Sla shes'"), "is small letters and digits"),
    ],
)
def test_a_package_that_offers_no_dialect_is_named(
    code: str, said: str, kohya: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with SLASHES.installed(tmp_path / "site-packages", code):
        exit_code, text = run(capsys, "inspect", kohya)
        assert (
            exit_code == 8 and "paramerge-slashes" in text and "slashes:DIALECT" in text and said in text
        ), text
        with pytest.raises(PluginError):
            registry.dialects()
