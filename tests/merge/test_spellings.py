"""One LoRA in two spellings is one LoRA, where there is no base to tell the names."""

from __future__ import annotations

from pathlib import Path

import diffusion_transformers as small
import numpy as np
import pytest
from dialect_files import SPELLINGS, write_lora
from lora_factors import factors_of
from merging import merge
from single_files import namings

from paramerge.compare.compare import compare
from paramerge.compare.pairs import LoraPair
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.resolve.spellings import in_one_spelling

PATHS = ("blocks.0.self_attn.q", "blocks.0.self_attn.k", "layers.1.feed_forward.w1")
DIALECTS = {
    "kohya": ("lora_unet_{}", "lora_up.weight", "lora_down.weight"),
    "kohya transformer": ("lora_transformer_{}", "lora_up.weight", "lora_down.weight"),
    "comfy": ("diffusion_model.{}", "lora_B.weight", "lora_A.weight"),
    "diffusers": ("transformer.{}", "lora_B.weight", "lora_A.weight"),
    "bare": ("{}", "lora_B.weight", "lora_A.weight"),
}


def written(path: Path, dialect: str, seed: int = 0, paths: tuple[str, ...] = PATHS) -> Path:
    stem, up, down = DIALECTS[dialect]
    rng, tensors = np.random.default_rng(seed), {}
    for name in paths:
        here = stem.format(name.replace(".", "_") if stem.startswith("lora_") else name)
        tensors[f"{here}.{up}"] = rng.standard_normal((8, 2)).astype(np.float32)
        tensors[f"{here}.{down}"] = rng.standard_normal((2, 8)).astype(np.float32)
    write_safetensors(path, tensors, {})
    return path


@pytest.mark.parametrize("other", DIALECTS)
@pytest.mark.parametrize("one", DIALECTS)
def test_two_spellings_of_one_lora_are_the_same_layers(one: str, other: str, tmp_path: Path) -> None:
    files = [written(tmp_path / f"{i}.safetensors", name) for i, name in enumerate((one, other))]
    (pair,) = compare([open_adapter(file) for file in files]).pairs
    assert (len(pair.layers), pair.only_first, pair.only_second) == (len(PATHS), 0, 0)
    for layer in pair.layers:
        assert isinstance(layer, LoraPair)
        assert layer.cosine == pytest.approx(1)
    adapters = in_one_spelling([open_adapter(file) for file in files])
    told = any(not name.startswith("kohya") for name in (one, other))
    names = {name.path for adapter in adapters for name in adapter.modules}
    assert names == {path if told else path.replace(".", "_") for path in PATHS}


def test_what_two_names_of_one_file_could_mean_stays(tmp_path: Path) -> None:
    both = written(tmp_path / "a.safetensors", "diffusers", paths=("blocks.0.q_x", "blocks.0.q.x"))
    adapters = [open_adapter(both), open_adapter(written(tmp_path / "b.safetensors", "kohya"))]
    assert in_one_spelling(adapters)[0] is adapters[0]


def test_spellings_are_added_up_in_a_merge(tmp_path: Path) -> None:
    """With names of Stable Diffusion, which a LoRA file can hold."""
    paths = ("mid_block.attentions.0.proj_in",)
    files = [
        written(tmp_path / f"{name}.safetensors", name, paths=paths) for name in ("kohya", "comfy", "bare")
    ]
    report = merge(tmp_path / "out.safetensors", *files)
    assert [layer.ranks for layer in report.layers] == [(2, 2, 2)]


MODELS = ("flux", "flux2", "z-image", "wan", "sd3", "lumina2", "krea2", "auraflow")


@pytest.mark.parametrize("name", MODELS)
def test_one_lora_in_both_of_a_models_namings_is_one_lora(name: str, tmp_path: Path) -> None:
    """Stacked in one, divided in the other."""
    shapes = small.small_shapes(name)
    own, single = factors_of(namings(name, shapes)[0], shapes)
    files = [
        write_lora(tmp_path / "a.safetensors", SPELLINGS["sd-scripts"], single),
        write_lora(tmp_path / "b.safetensors", SPELLINGS["diffusers, SimpleTuner"], own),
    ]
    (pair,) = compare([open_adapter(file) for file in files]).pairs
    assert (len(pair.layers), pair.only_first, pair.only_second) == (len(own), 0, 0)
    for layer in pair.layers:
        assert isinstance(layer, LoraPair)
        assert layer.cosine == pytest.approx(1)
        assert layer.norms[0] == pytest.approx(layer.norms[1])
