"""What is said of files is true: of those that are easily mistaken, and of what was kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from baking import small_model
from checkpoint_files import blueprint, shapes_of, write_holes

from paramerge.apply.steps import BakeOptions, Step
from paramerge.bake.plan import make_plan
from paramerge.checkpoints.layout import open_base
from paramerge.errors import AdapterError, CheckpointError, ParamergeError, ShapeError, UnmatchedError
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.inspect.inspection import AdapterFacts, CheckpointFacts, inspect_path
from paramerge.merge.combine import combine
from paramerge.merge.request import CombineOptions, Input
from paramerge.models.registry import record_of
from paramerge.resize.resize import resize

UNET = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
TEXT = "lora_te_text_model_encoder_layers_3_mlp_fc1"
FLUX = "transformer.single_transformer_blocks.0.proj_mlp"


def pair(
    stem: str, out: int, columns: int, ends: tuple[str, str] = ("lora_up", "lora_down")
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        f"{stem}.{ends[0]}.weight": rng.normal(size=(out, 2)).astype(np.float32),
        f"{stem}.{ends[1]}.weight": rng.normal(size=(2, columns)).astype(np.float32),
    }


def lora(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    write_safetensors(path, tensors, metadata or {})
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("words") / "base.safetensors")


def plan(base: Path, adapter: Path) -> None:
    make_plan(open_base(base), [(Step("adapter", adapter), open_adapter(adapter))], BakeOptions())


def test_nothing_is_found_that_was_expected() -> None:
    assert "found" not in str(ParamergeError("it is wrong", expected="192 x 48", found="192 x 48"))


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({f"{TEXT}.dora_scale": np.ones((1, 7), np.float32)}, "input channels"),
        ({f"{TEXT}.dora_scale": np.ones((7, 1), np.float32)}, "rows"),
    ],
)
def test_a_magnitude_that_does_not_fit(
    base: Path, tmp_path: Path, extra: dict[str, np.ndarray], said: str
) -> None:
    shape = next(
        t.shape for f in open_base(base).files for n, t in f.targets.items() if n.path.endswith("3.mlp.fc1")
    )
    path = lora(tmp_path / "l.safetensors", pair(TEXT, *shape) | extra)
    with pytest.raises(ParamergeError) as caught:
        plan(base, path)
    error = caught.value
    assert said in str(error.expected) + str(error.found) and "dora_scale" in str(error.found)
    assert error.expected != error.found


def test_a_shape_that_does_not_fit_says_both_sizes(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ShapeError) as caught:
        plan(base, lora(tmp_path / "l.safetensors", pair(TEXT, 7, 9)))
    assert caught.value.found == "7 x 9" and "7 x 9" not in str(caught.value.expected)


@pytest.mark.parametrize(
    "stem", ["unet.nonsense.input_blocks.9.9.to_q", "lora_unet_clip_g_text_model_encoder_layers_0_fc"]
)
def test_an_adapter_of_the_bases_own_kind_is_not_for_another(base: Path, tmp_path: Path, stem: str) -> None:
    with pytest.raises(UnmatchedError) as caught:
        plan(base, lora(tmp_path / "l.safetensors", pair(stem, 8, 8)))
    assert "; the base is sd15" not in str(caught.value)


def test_structure_decides_and_metadata_advise(tmp_path: Path) -> None:
    stated = {"ss_base_model_version": "sd_v1", "modelspec.architecture": "stable-diffusion-v1/lora"}
    flux = lora(tmp_path / "f.safetensors", pair(FLUX, 8, 8, ("lora_B", "lora_A")), stated)
    assert open_adapter(flux).architecture == "flux"
    flux = lora(
        tmp_path / "g.safetensors",
        pair(FLUX, 8, 8, ("lora_B", "lora_A")),
        {"modelspec.architecture": "flux-1-dev"},
    )
    assert open_adapter(flux).architecture == "flux"
    assert open_adapter(lora(tmp_path / "s.safetensors", pair(UNET, 8, 8), stated)).architecture == "sd15"


def test_half_a_lora_says_what_it_can_be_for(tmp_path: Path) -> None:
    facts = inspect_path(lora(tmp_path / "l.safetensors", pair(UNET, 640, 640)))
    assert isinstance(facts, AdapterFacts)
    assert facts.possible == ("sd15", "sd2", "sdxl")
    first = UNET.replace("blocks_1_", "blocks_0_")
    facts = inspect_path(lora(tmp_path / "m.safetensors", pair(first, 320, 320)))
    assert isinstance(facts, AdapterFacts) and facts.possible == ("sd15", "sd2")


def test_ema_alone_is_called_so(tmp_path: Path) -> None:
    shapes = shapes_of(blueprint("sd15", 16).single_file())
    start = "model.diffusion_model."
    ema = {
        ("model_ema." + k[6:].replace(".", "") if k.startswith(start) else k): v for k, v in shapes.items()
    }
    with pytest.raises(CheckpointError) as caught:
        open_base(write_holes(tmp_path / "e.safetensors", ema))
    assert caught.value.what.endswith("it is EMA weights and a VAE")


def test_a_stray_key_makes_no_adapter_of_a_checkpoint(tmp_path: Path) -> None:
    shapes = shapes_of(blueprint("sd15", 16).single_file())
    for number, key in enumerate((f"{TEXT}.alpha", f"{TEXT}.lora_up.weight", "lora_unet_x.hada_w1_a")):
        path = write_holes(tmp_path / f"{number}.safetensors", shapes | {key: (2, 2)})
        found = open_base(path)
        assert found.architecture == "sd15" and any("1 keys of an adapter" in text for text in found.warnings)
        assert isinstance(inspect_path(path), CheckpointFacts)
        with pytest.raises(AdapterError, match="checkpoint, not an adapter"):
            open_adapter(path)


def test_one_name_for_one_architecture() -> None:
    assert record_of("sd2").modelspec == "stable-diffusion-v2"


METADATA = {
    "ss_tag_frequency": '{"10_pet":{"pet":10,"dog":2}}',
    "modelspec.trigger_phrase": "sks pet",
    "modelspec.title": "Pet",
    "ss_output_name": "pet",
    "ss_sd_model_hash": "6ce0161689",
    "sshs_model_hash": "0" * 64,
    "modelspec.hash_sha256": "0x" + "1" * 64,
    "ss_network_dim": "2",
}


def test_resize_keeps_what_stays_true(tmp_path: Path) -> None:
    adapter = open_adapter(lora(tmp_path / "l.safetensors", pair(UNET, 8, 8), METADATA))
    resize(adapter, tmp_path / "r.safetensors", rank=1)
    kept = open_adapter(tmp_path / "r.safetensors").metadata
    for key in (
        "ss_tag_frequency",
        "modelspec.trigger_phrase",
        "modelspec.title",
        "ss_output_name",
        "ss_sd_model_hash",
    ):
        assert kept[key] == METADATA[key]
    assert kept["ss_network_dim"] == "1"
    assert "sshs_model_hash" not in kept and "modelspec.hash_sha256" not in kept


def test_a_merge_speaks_for_all_of_its_inputs(tmp_path: Path) -> None:
    other = {
        **METADATA,
        "modelspec.trigger_phrase": "a tower",
        "modelspec.title": "Tower",
        "ss_tag_frequency": '{"10_pet":{"dog":1},"5_tower":{"tower":5}}',
    }
    paths = [
        lora(tmp_path / f"{i}.safetensors", pair(UNET, 8, 8), m) for i, m in enumerate((METADATA, other))
    ]
    adapters = [open_adapter(path) for path in paths]
    combine([Input(path) for path in paths], adapters, tmp_path / "m.safetensors", CombineOptions())
    told = open_adapter(tmp_path / "m.safetensors").metadata
    assert told["modelspec.trigger_phrase"] == "sks pet, a tower"
    assert json.loads(told["ss_tag_frequency"]) == {"10_pet": {"pet": 10, "dog": 3}, "5_tower": {"tower": 5}}
    assert "modelspec.title" not in told and told["ss_output_name"] == "pet"
    assert [one["modelspec.title"] for one in json.loads(told["merge.metadata"])] == ["Pet", "Tower"]
