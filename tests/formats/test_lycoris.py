"""Networks of every family that LyCORIS trains: the layers' outputs as its own modules compute them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lycoris_networks import lycoris_network, saved
from safetensors.torch import load_file, save_file

from paramerge.adapters import LayerModule
from paramerge.formats import open_adapter

NETWORKS: list[tuple[str, dict[str, Any], str]] = [
    ("locon", {"weight_decompose": True}, "dora"),
    ("locon", {"weight_decompose": True, "wd_on_out": False}, "dora"),
    ("loha", {}, "loha"),
    ("loha", {"use_tucker": True}, "loha"),
    ("loha", {"rs_lora": True}, "loha"),
    ("loha", {"weight_decompose": True}, "dora"),
    ("lokr", {"factor": 4}, "lokr"),
    ("lokr", {"factor": 4, "decompose_both": True}, "lokr"),
    ("lokr", {"factor": 2, "unbalanced_factorization": True}, "lokr"),
    ("lokr", {"factor": 2, "use_tucker": True}, "lokr"),
    ("lokr", {"full_matrix": True}, "lokr"),
    ("lokr", {"factor": 4, "weight_decompose": True}, "dora"),
    ("glora", {}, "glora"),
    ("full", {}, "full"),
    ("diag-oft", {}, "oft"),
    ("diag-oft", {"constraint": 0.01, "rescaled": True}, "oft"),
    ("boft", {}, "boft"),
    ("boft", {"rescaled": True}, "boft"),
    ("ia3", {}, "ia3"),
    ("ia3", {"train_on_input": True}, "ia3"),
]


@pytest.mark.parametrize(("algorithm", "options", "family"), NETWORKS)
def test_outputs_are_those_of_lycoris(
    algorithm: str, options: dict[str, Any], family: str, tmp_path: Path
) -> None:
    network = lycoris_network(algorithm, **options)
    path = saved(network, tmp_path / "n.safetensors")
    if algorithm == "ia3" and options:
        assert float(next(v for k, v in load_file(path).items() if k.endswith("on_input"))) == 1
    adapter = open_adapter(path)
    assert adapter.family == family
    assert not adapter.leftovers
    modules = {str(name): module for name, module in adapter.modules.items()}
    layers = {layer.lora_name: layer for layer in network.loras}
    assert len(layers) == 77
    for name, layer in layers.items():
        found = next(key for key in modules if "lora_" + key.replace(".", "_") == name)
        check_layer(layer, modules[found], modules.get(f"{found}.bias"))


def check_layer(layer: Any, module: LayerModule, bias_module: LayerModule | None) -> None:
    """The output of LyCORIS's layer on random inputs, and that of the weight made here."""
    original = layer.org_module[0]
    weight = layer.org_weight.detach()
    bias = layer.org_bias[0] if getattr(layer, "org_bias", None) else getattr(original, "bias", None)
    W = torch.from_numpy(module.transform(weight.double().numpy().reshape(len(weight), -1)))
    W = W.reshape(weight.shape)
    if bias_module is not None:
        bias = torch.from_numpy(bias_module.transform(bias.detach().double().numpy()[:, None]))[:, 0]
    x = torch.randn(2, weight.shape[1], *([6, 6] if weight.dim() == 4 else []))
    with torch.no_grad():
        expected = layer(x).double()
        bias = None if bias is None else bias.detach().double()
        if weight.dim() == 4:
            options = {"stride": original.stride, "padding": original.padding}
            result = torch.nn.functional.conv2d(x.double(), W, bias, **options)
        else:
            result = torch.nn.functional.linear(x.double(), W, bias)
    assert torch.linalg.norm(result - expected) < 2e-5 * torch.linalg.norm(expected)


def test_trained_norms_beside_a_lora(tmp_path: Path) -> None:
    network = lycoris_network("locon", train_norm=True)
    adapter = open_adapter(saved(network, tmp_path / "n.safetensors"))
    assert adapter.family == "mixed"
    assert set(adapter.families) == {"LoRA", "norm"}
    assert not adapter.leftovers
    norms = {layer.lora_name: layer for layer in network.loras if layer.name == "norm"}
    assert len(norms) > 20
    found = {str(name): module for name, module in adapter.modules.items() if module.family == "norm"}
    assert len(found) == 2 * len(norms)
    for name, module in found.items():
        path, _, kind = name.rpartition(".")
        layer = norms["lora_" + path.replace(".", "_")]
        expected = layer.w_norm if kind == "weight" else layer.b_norm
        assert torch.equal(torch.from_numpy(module.delta(None)[:, 0]).float(), expected.detach())  # type: ignore[arg-type]


def test_a_lokr_with_whole_factors_ignores_alpha_unless_told(tmp_path: Path) -> None:
    """LyCORIS writes an alpha beside two whole factors and does not use it; the user may say otherwise."""
    from paramerge.interpretation import Interpretation

    path = saved(lycoris_network("lokr", full_matrix=True), tmp_path / "n.safetensors")
    state = {key: value * 3 if key.endswith("alpha") else value for key, value in load_file(path).items()}
    save_file(state, path)
    module = next(iter(open_adapter(path).modules.values()))
    assert module.scale == 1.0 and "1 as LyCORIS trains it" in module.form
    told = next(iter(open_adapter(path, interpretation=Interpretation(lokr_scale=0.25)).modules.values()))
    assert told.scale == 0.25 and "given by the user" in told.form
    assert told.norm() == pytest.approx(0.25 * module.norm())  # type: ignore[operator]
