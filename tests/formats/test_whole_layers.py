"""A layer is read whole or not at all, whatever its dialect and whatever verb reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from adapter_files import Array, random_factors, save
from family_cases import CASES
from safetensors.numpy import load_file

from paramerge.adapters.dora import DoraModule
from paramerge.compare.compare import compare
from paramerge.convert.convert import convert
from paramerge.convert.request import ConvertOptions
from paramerge.errors import ParamergeError, UnmatchedError
from paramerge.extract.from_lora import extract_para
from paramerge.formats import open_adapter
from paramerge.inspect.inspection import ForeignFacts, inspect_path
from paramerge.merge.combine import combine
from paramerge.merge.request import CombineOptions, Input
from paramerge.resize.resize import resize

PATHS = ("down_blocks.0.attentions.0.proj_in", "mid_block.attentions.0.proj_in")
KOHYA = tuple(f"lora_unet_{path.replace('.', '_')}" for path in PATHS)
STEMS = {
    "kohya": (KOHYA, "lora_up.weight", "lora_down.weight"),
    "diffusers": (tuple(f"unet.{path}" for path in PATHS), "lora_B.weight", "lora_A.weight"),
    "bare": (PATHS, "lora.up.weight", "lora.down.weight"),
    "old": (
        tuple(f"unet.{p[:-8]}.transformer_blocks.0.attn1.processor.to_q_lora" for p in PATHS),
        "up.weight",
        "down.weight",
    ),
    "other model": (
        ("transformer.blocks.0.ffn.0", "transformer.blocks.1.ffn.0"),
        "lora_B.weight",
        "lora_A.weight",
    ),
}
ENDINGS = (
    "magnitude",
    "bias",
    "lora_up.bias",
    "lora_mid",
    "w_mod",
    "rank",
    "scale",
    "foo",
    "x.y.z",
)


def two_layers(dialect: str) -> dict[str, Array]:
    """A LoRA of two layers."""
    stems, up, down = STEMS[dialect]
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    for stem in stems:
        B, A = random_factors(rng, 8, 8, 2)
        tensors |= {f"{stem}.{up}": B, f"{stem}.{down}": A}
    return tensors


def with_stranger(tmp_path: Path, dialect: str, ending: str) -> Path:
    """Such a LoRA with one key more at its first layer."""
    tensors = two_layers(dialect) | {f"{STEMS[dialect][0][0]}.{ending}": np.ones(8, np.float32)}
    return save(tmp_path / "strange.safetensors", tensors)


OF_PEFT = ("diffusers", "other model")
"""Where factors have PEFT's names, ai-toolkit's magnitudes are understood."""


@pytest.mark.parametrize(
    ("dialect", "ending"),
    [(each, end) for each in STEMS for end in ENDINGS if end != "magnitude" or each not in OF_PEFT],
)
def test_a_key_that_is_not_understood_leaves_its_whole_layer_out(
    dialect: str, ending: str, tmp_path: Path
) -> None:
    path = with_stranger(tmp_path, dialect, ending)
    adapter = open_adapter(path)
    (kept,) = adapter.modules.values()
    assert kept.name in open_adapter(save(tmp_path / "plain.safetensors", two_layers(dialect))).modules
    first = STEMS[dialect][0][0]
    left = [key for leftover in adapter.leftovers for key in leftover.keys]
    assert sorted(left) == sorted(key for key in load_file(path) if key.startswith(first))
    assert all("not understood" in leftover.reason for leftover in adapter.leftovers)


def test_a_name_that_only_begins_as_a_layers_does_leaves_the_layer(tmp_path: Path) -> None:
    tensors = two_layers("other model")
    deeper = {key.replace("ffn.0.", "ffn.0.deeper."): value for key, value in tensors.items()}
    adapter = open_adapter(save(tmp_path / "a.safetensors", tensors | deeper))
    assert (len(adapter.modules), adapter.leftovers) == (4, ())
    stray = {
        f"{PATHS[0]}.deeper.{end}": v
        for end, v in (("lora.up.weight", np.ones((8, 2))), ("lora.down.weight", np.ones((2, 8))))
    }
    adapter = open_adapter(save(tmp_path / "b.safetensors", two_layers("bare") | stray))
    assert len(adapter.modules) == 2
    assert sorted(key for left in adapter.leftovers for key in left.keys) == sorted(stray)


def test_a_copy_of_the_bases_own_weight_changes_nothing(tmp_path: Path) -> None:
    copy = {f"{STEMS['diffusers'][0][0]}.base_layer.weight": np.ones((8, 8), np.float32)}
    adapter = open_adapter(save(tmp_path / "a.safetensors", two_layers("diffusers") | copy))
    assert len(adapter.modules) == 2
    trained = {f"{STEMS['diffusers'][0][0]}.base_layer.bias": np.ones(8, np.float32)}
    assert len(open_adapter(save(tmp_path / "b.safetensors", two_layers("diffusers") | trained)).modules) == 1


@pytest.mark.parametrize("case", [case for case in CASES if case.config is None], ids=str)
def test_no_family_is_applied_in_part(case: object, tmp_path: Path) -> None:
    path, _ = case.write(tmp_path / "f", {"unet.mid_block.attentions.0.proj_in": (16, 16)})  # type: ignore[attr-defined]
    stem = next(iter(load_file(path))).partition(".")[0]
    strange = save(tmp_path / "s.safetensors", load_file(path) | {f"{stem}.foo": np.ones(3, np.float32)})
    with pytest.raises(ParamergeError):
        open_adapter(strange)


def test_a_magnitude_whose_key_kept_its_dots_makes_a_dora(tmp_path: Path) -> None:
    """As diffusers' converter to kohya's names leaves it: all but the last two dots become underscores."""
    tensors = two_layers("kohya")
    magnitudes = {}
    for stem, path in zip(KOHYA, PATHS, strict=True):
        head, _, tail = path.rpartition(".")
        magnitudes[f"lora_unet_{head.replace('.', '_')}.{tail}.lora_magnitude_vector"] = np.ones(
            8, np.float32
        )
        assert stem.startswith("lora_unet_")
    adapter = open_adapter(save(tmp_path / "a.safetensors", tensors | magnitudes))
    assert adapter.family == "dora"
    assert [type(module) for module in adapter.modules.values()] == [DoraModule, DoraModule]
    with pytest.raises(ParamergeError, match="DoRA"):
        open_adapter(tmp_path / "a.safetensors", "lora")


@pytest.mark.parametrize("dialect", OF_PEFT)
def test_ai_toolkits_magnitudes_beside_pefts_factors_make_a_dora_of_scale_1(
    dialect: str, tmp_path: Path
) -> None:
    """Its trainer: m (W + B A) / ||W + B A||, the norm of each row, nothing added to it."""
    rng = np.random.default_rng(1)
    (first, second), up, down = STEMS[dialect]
    tensors = two_layers(dialect)
    m = rng.uniform(0.5, 2, 8).astype(np.float32)
    adapter = open_adapter(save(tmp_path / "a.safetensors", tensors | {f"{first}.magnitude": m}))
    dora, lora = adapter.modules.values()
    assert (type(dora), lora.family, adapter.leftovers) == (DoraModule, "lora", ())
    W = rng.standard_normal((8, 8))
    V = W + tensors[f"{first}.{up}"].astype(np.float64) @ tensors[f"{first}.{down}"].astype(np.float64)
    expected = V * (m / np.sqrt(np.sum(V * V, axis=1)))[:, None]
    np.testing.assert_allclose(dora.transform(W), expected, rtol=1e-13)
    of_peft = save(tmp_path / "b.safetensors", tensors | {f"{first}.lora_magnitude_vector": m})
    same = next(iter(open_adapter(of_peft).modules.values()))
    assert np.array_equal(dora.transform(W), same.transform(W))
    assert second in lora.keys[0]


def test_two_magnitudes_of_one_layer_are_refused(tmp_path: Path) -> None:
    both = {f"{KOHYA[0]}.{end}": np.ones(8, np.float32) for end in ("dora_scale", "lora_magnitude_vector")}
    with pytest.raises(ParamergeError, match="do not go with its family"):
        open_adapter(save(tmp_path / "a.safetensors", two_layers("kohya") | both))


def test_inspect_says_that_no_layer_is_understood(tmp_path: Path) -> None:
    stems = STEMS["kohya"][0]
    one = {key: value for key, value in two_layers("kohya").items() if key.startswith(stems[0])}
    facts = inspect_path(
        save(tmp_path / "a.safetensors", one | {f"{stems[0]}.magnitude": np.ones(8, np.float32)})
    )
    assert isinstance(facts, ForeignFacts)
    assert facts.families == {"DoRA": 1}
    assert "ai-toolkit" in str(facts.hint)


def _verbs(adapter: Path, other: Path, out: Path) -> dict[str, Callable[[bool], object]]:
    def opened() -> list[object]:
        return [open_adapter(adapter), open_adapter(other)]

    inputs = [Input(adapter), Input(other)]
    return {
        "merge": lambda allow: combine(inputs, opened(), out, CombineOptions(allow_unmatched=allow)),  # type: ignore[arg-type]
        "resize": lambda allow: resize(open_adapter(adapter), out, rank=1, allow_unmatched=allow),
        "extract": lambda allow: extract_para(open_adapter(adapter), rank=1, allow_unmatched=allow),
        "compare": lambda allow: compare(opened(), allow_unmatched=allow),  # type: ignore[arg-type]
        "convert": lambda allow: convert(
            inputs[:1], [open_adapter(adapter)], out, ConvertOptions("kohya", partial=allow)
        ),
    }


@pytest.mark.parametrize("verb", ["merge", "resize", "extract", "compare", "convert"])
@pytest.mark.parametrize("stranger", ["a key of a layer", "a layer of no known name"])
def test_every_verb_refuses_what_it_would_leave_out_unless_allowed(
    verb: str, stranger: str, tmp_path: Path
) -> None:
    tensors = two_layers("kohya")
    if stranger == "a key of a layer":
        tensors[f"{KOHYA[0]}.lora_up.bias"] = np.ones(8, np.float32)
    else:
        tensors |= {
            f"{KOHYA[0]}n.{key.partition('.')[2]}": value for key, value in two_layers("kohya").items()
        }
    path = save(tmp_path / "a.safetensors", tensors)
    run = _verbs(path, save(tmp_path / "b.safetensors", two_layers("kohya")), tmp_path / "out.safetensors")[
        verb
    ]
    with pytest.raises(UnmatchedError, match=r"of this adapter (is|are) not understood") as caught:
        run(False)
    assert "allow_unmatched" in str(caught.value.hint)
    assert not (tmp_path / "out.safetensors").exists()
    run(True)
