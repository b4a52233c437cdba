"""Networks that LyCORIS makes, with random weights, and the files that it saves of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lora_oracles import small_unet
from lycoris import LycorisNetwork
from safetensors.torch import save_file


def lycoris_network(algorithm: str, **options: Any) -> Any:
    """A LyCORIS network around a toy UNet, with random weights."""
    LycorisNetwork.apply_preset(
        {"target_module": ["Transformer2DModel", "ResnetBlock2D"], "lora_prefix": "lora_unet"}
    )
    torch.manual_seed(0)
    sizes = {"lora_dim": 4, "conv_lora_dim": 2, "alpha": 2.0, "conv_alpha": 1.0, "block_size": 2}
    network = LycorisNetwork(small_unet(), 1.0, network_module=algorithm, **sizes, **options)
    network.apply_to()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    return network.eval()


def saved(network: Any, path: Path) -> Path:
    state = {key: value.detach().clone().contiguous() for key, value in network.state_dict().items()}
    save_file(state, path)
    return path
