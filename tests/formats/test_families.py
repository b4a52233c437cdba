"""Families told apart by all keys and shapes: what LyCORIS and PEFT write, DiffuseKronA, other files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapter_files import Array, deltas, kohya_layer, random_factors, relative_distance, save
from hypothesis import given
from hypothesis import strategies as st
from lora_oracles import small_unet
from lycoris_networks import lycoris_network, saved
from strategies import law

from paramerge.errors import AdapterError, FamilyError, FileFormatError, ParamergeError
from paramerge.formats import open_adapter, write_para
from paramerge.models.names import ModuleName

TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
STEM = f"lora_unet_{TO_Q.replace('.', '_')}"


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("locon", {}),
        ("locon", {"use_tucker": True}),
        ("locon", {"rs_lora": True}),
        ("locon", {"use_scalar": True}),
    ],
)
def test_networks_that_lycoris_trains_are_read_as_it_reads_them(
    algorithm: str, options: dict[str, Any], tmp_path: Path
) -> None:
    network = lycoris_network(algorithm, **options)
    found = deltas(open_adapter(saved(network, tmp_path / "n.safetensors"), family="lora"))
    expected = {}
    for layer in network.loras:
        change = layer.get_diff_weight()[0]
        expected[layer.lora_name] = change.detach().double().numpy().reshape(change.shape[0], -1)
    assert {"lora_" + name.replace(".", "_") for name in found} == expected.keys()
    assert len(expected) == 77
    for name, delta in found.items():
        assert relative_distance(delta, expected["lora_" + name.replace(".", "_")]) < 1e-6


TUNERS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdaLoRA": ("AdaLoraConfig", {"total_step": 10}),
    "DEFT": ("DeftConfig", {}),
    "FOURIERFT": ("FourierFTConfig", {"n_frequency": 4}),
    "HRA": ("HRAConfig", {}),
    "LN_TUNING": ("LNTuningConfig", {}),
    "PVERA": ("PveraConfig", {}),
    "RANDLORA": ("RandLoraConfig", {}),
    "SUPERTUNING": ("SupertuningConfig", {}),
    "UNILORA": ("UniLoraConfig", {}),
    "VeRA": ("VeraConfig", {}),
}


@pytest.mark.parametrize("named", TUNERS)
def test_tuners_of_peft_are_refused_with_and_without_their_configuration(named: str, tmp_path: Path) -> None:
    config, options = TUNERS[named]
    if not hasattr(peft, config):
        pytest.skip(f"this version of peft has no {config}")
    model = peft.get_peft_model(
        small_unet(), getattr(peft, config)(**{"target_modules": ["to_q", "to_v"], **options})
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(FamilyError, match=f"(?i){named}"):
        open_adapter(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(FamilyError, match=f"(?i){named}"):
        open_adapter(tmp_path / "adapter_model.safetensors")


SD15_WIDTHS = (320, 640, 1280)


def krona_file(
    path: Path, a1: int, a2: int, widths: tuple[int, ...] = SD15_WIDTHS, context: int = 768
) -> Path:
    """DiffuseKronA as its published code saves it: down (a2, a1), up (b1, b2), a1 b1 = out, a2 b2 = in."""
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    for level, width in enumerate(widths):
        for attention, source in (("attn1", width), ("attn2", context)):
            stem = f"unet.down_blocks.{level}.attentions.0.transformer_blocks.0.{attention}.processor"
            for layer, wide in (("q", width), ("k", source), ("v", source), ("out", width)):
                down = rng.standard_normal((a2, a1)).astype(np.float16)
                up = rng.standard_normal((width // a1, wide // a2)).astype(np.float16)
                tensors[f"{stem}.to_{layer}_lora.down.weight"] = down
                tensors[f"{stem}.to_{layer}_lora.up.weight"] = up
    return save(path, tensors)


@pytest.mark.parametrize(("a1", "a2"), [(64, 4), (32, 16), (64, 8), (4, 64), (2, 2), (16, 32), (1, 1)])
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_diffuse_krona_is_told_from_lora_by_its_shapes(a1: int, a2: int, model: str, tmp_path: Path) -> None:
    widths, context = (SD15_WIDTHS, 768) if model == "sd15" else ((640, 1280), 2048)
    path = krona_file(tmp_path / "k.safetensors", a1, a2, widths, context)
    with pytest.raises(FamilyError, match="this is a DiffuseKronA, not a LoRA") as caught:
        open_adapter(path, family="lora")
    assert "paramerge.Adapter" in str(caught.value.hint)
    adapter = open_adapter(path)
    assert (adapter.family, adapter.architecture) == ("krona", model)
    assert len(adapter.modules) == 8 * len(widths)
    assert not adapter.leftovers


def test_diffuse_krona_whose_inner_sizes_agree_by_chance(tmp_path: Path) -> None:
    # a2 = 32 on SD2, whose text is 1024 wide: there up (b1, 32) and down (32, 4) fit like a LoRA of rank 32
    adapter = open_adapter(krona_file(tmp_path / "k.safetensors", 4, 32, context=1024))
    assert (adapter.family, len(adapter.modules)) == ("krona", 24)


def test_diffuse_krona_of_unknown_widths_is_told_by_all_its_shapes(tmp_path: Path) -> None:
    assert open_adapter(krona_file(tmp_path / "k.safetensors", 8, 4, (48, 96), context=56)).family == "krona"


def test_a_damaged_lora_is_not_taken_for_krona(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    for index, (rank, other) in enumerate([(4, 4), (4, 8)]):
        stem = f"unet.down_blocks.{index}.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora"
        tensors[f"{stem}.up.weight"] = rng.standard_normal((320, rank)).astype(np.float32)
        tensors[f"{stem}.down.weight"] = rng.standard_normal((other, 320)).astype(np.float32)
    with pytest.raises(AdapterError, match="ranks of up and down do not agree"):
        open_adapter(save(tmp_path / "l.safetensors", tensors))


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("lllite_unet_input_blocks_4_1.depth.0.weight", "ControlNet-LLLite"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("lora_controlnet", "Control-LoRA"),
        ("image_proj.proj.weight", "IP-Adapter"),
        ("768.0.linear.0.weight", "hypernetwork"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight", "AnimateDiff"),
        ("emb_params", "textual inversion"),
        ("clip_g", "textual inversion"),
        (f"{STEM}.oft_diag", "OFT of an early version"),
        (f"{STEM}.reshape_weight", "weight of another shape"),
        (f"{STEM}.lambda_layer", "T-LoRA"),
        (f"base_model.model.{TO_Q}.xlora_weight", "XLORA"),
    ],
)
def test_other_files_are_named(key: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match=named):
        open_adapter(save(tmp_path / "f.safetensors", {key: np.ones((2, 2), np.float32)}))


@pytest.mark.parametrize(
    "key",
    [
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.decoder.conv_in.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "text_model.embeddings.token_embedding.weight",
    ],
)
def test_a_checkpoint_is_no_adapter(key: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="this is a checkpoint"):
        open_adapter(save(tmp_path / "f.safetensors", {key: np.ones((2, 2), np.float32)}))


def test_families_are_not_chosen_by_the_first_key(tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 4, 4, 1)
    lora = kohya_layer(STEM, up, down, 1.0)
    stranger = {"ip_adapter.1.to_k_ip.weight": up}
    for tensors in (lora | stranger, stranger | lora):
        with pytest.raises(FamilyError, match="IP-Adapter"):
            open_adapter(save(tmp_path / "f.safetensors", tensors))
    sides = [(i, side, array) for i in (1, 2) for side, array in (("a", up), ("b", down))]
    loha = {f"{STEM[:-1]}k.hada_w{i}_{side}": array for i, side, array in sides}
    for tensors in (lora | loha, loha | lora):
        adapter = open_adapter(save(tmp_path / "f.safetensors", tensors))
        assert adapter.family == "mixed"
        assert dict(adapter.families) == {"LoRA": 1, "LoHa": 1}
        with pytest.raises(FamilyError, match="an adapter of several families, not a LoRA"):
            open_adapter(tmp_path / "f.safetensors", family="lora")


def test_para_and_lora_in_one_file_are_refused(tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 4, 4, 1)
    tensors = {**kohya_layer(STEM, up, down), f"unet.{TO_Q}.para_B": up}
    with pytest.raises(FamilyError, match="mixes LoRA and PaRa"):
        open_adapter(save(tmp_path / "f.safetensors", tensors))


def test_a_para_given_as_lora_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    write_para(path, {ModuleName("unet", TO_Q): np.eye(4, 2)}, architecture="sd15")
    with pytest.raises(FamilyError, match="this is a PaRa, not a LoRA"):
        open_adapter(path, family="lora")
    assert open_adapter(path, family="para").family == "para"


def test_an_embedding_beside_a_lora_is_left_over(tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 4, 4, 1)
    tensors = {**kohya_layer(STEM, up, down), "bundle_emb.cat.string_to_param.*": up}
    adapter = open_adapter(save(tmp_path / "f.safetensors", tensors))
    (leftover,) = adapter.leftovers
    assert (leftover.keys, leftover.reason[:16]) == (
        ("bundle_emb.cat.string_to_param.*",),
        "token embeddings",
    )


def test_several_dialects_in_one_file_are_refused(tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 4, 4, 1)
    tensors = {
        **kohya_layer(STEM, up, down),
        f"unet.{TO_Q}.lora_A.weight": down,
        f"unet.{TO_Q}.lora_B.weight": up,
    }
    with pytest.raises(AdapterError, match="mixes dialects"):
        open_adapter(save(tmp_path / "f.safetensors", tensors))


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt", ".pth", ".pkl", ".PT"])
def test_pickles_are_never_opened(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"lora{suffix}"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(FileFormatError, match="loading a pickle can run any code"):
        open_adapter(path)


def test_a_pickle_under_another_name_is_no_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(FileFormatError, match="zip archive, as pickles"):
        open_adapter(path)


def test_a_lora_whose_layers_have_no_names_is_refused(tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 4, 4, 1)
    tensors = {f"a layer.lora_{side}.weight": value for side, value in (("A", down), ("B", up))}
    with pytest.raises(AdapterError, match="no layer of this adapter is known") as caught:
        open_adapter(save(tmp_path / "f.safetensors", tensors))
    assert "inspect" in str(caught.value.hint)


def test_another_models_names_stay_as_they_are(tmp_path: Path) -> None:
    up, down = random_factors(np.random.default_rng(0), 4, 4, 1)
    tensors = kohya_layer("lora_unet_double_blocks_0_img_attn_qkv", up, down)
    adapter = open_adapter(save(tmp_path / "f.safetensors", tensors))
    assert [str(name) for name in adapter.modules] == ["unet.double_blocks_0_img_attn_qkv"]
    assert adapter.architecture == "flux"


@law
@given(a1=st.sampled_from([1, 2, 4, 8, 16, 32, 64]), a2=st.sampled_from([1, 2, 4, 8, 16, 32, 64]))
def test_no_split_of_krona_passes_as_lora(a1: int, a2: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = krona_file(tmp_path_factory.mktemp("krona") / "k.safetensors", a1, a2)
    assert open_adapter(path).family == "krona"


@law
@given(rank=st.integers(1, 64), seed=st.integers(0, 99))
def test_no_rank_of_lora_is_taken_for_krona(
    rank: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for level, width in enumerate(SD15_WIDTHS):
        for attention, source in (("attn1", width), ("attn2", int(rng.choice([768, 1024])))):
            stem = (
                f"unet.down_blocks.{level}.attentions.0.transformer_blocks.0.{attention}.processor.to_k_lora"
            )
            tensors[f"{stem}.up.weight"] = np.ones((width, rank), np.float16)
            tensors[f"{stem}.down.weight"] = np.ones((rank, source), np.float16)
    try:
        adapter = open_adapter(save(tmp_path_factory.mktemp("lora") / "l.safetensors", tensors))
    except ParamergeError as error:
        raise AssertionError(f"a LoRA of rank {rank} was refused: {error}") from error
    assert len(adapter.modules) == 6
