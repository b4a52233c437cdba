"""The peers: sd-mecha 1.1.8 and mergekit 0.1.5 merge the same files by the same method.

    python benchmarks/peer_merge.py sd-mecha weighted-sum OUT a.safetensors b.safetensors

Run by an interpreter that has them (``benchmarks/merge.py --peers PYTHON``); with the peer's name alone it
prints the methods that both have, or fails where the peer is not installed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

_MERGEKIT: dict[str, dict[str, object]] = {
    "weighted-sum": {"merge_method": "linear", "parameters": {"weight": 0.5}},
    "slerp": {"merge_method": "slerp", "parameters": {"t": 0.5}},
    "ties": {"merge_method": "ties", "parameters": {"density": 0.2, "weight": 1.0}},
    "dare": {"merge_method": "dare_linear", "parameters": {"density": 0.5, "weight": 1.0}},
    "della": {"merge_method": "della", "parameters": {"density": 0.5, "epsilon": 0.2, "weight": 1.0}},
    "breadcrumbs": {"merge_method": "breadcrumbs", "parameters": {"density": 0.9, "weight": 1.0}},
}
_MECHA = ("weighted-sum", "add-difference", "slerp", "ties")


def sd_mecha(method: str, output: str, models: Sequence[str]) -> None:
    """A merge in fp32, stored in fp16 as the models are."""
    import sd_mecha as mecha
    import torch

    config = "sdxl-sgm"
    opened = [mecha.model(Path(path), config=config) for path in models]
    recipe = {
        "weighted-sum": lambda: mecha.weighted_sum(*opened, alpha=0.5),
        "add-difference": lambda: mecha.add_difference(opened[0], mecha.subtract(*opened[1:]), alpha=1.0),
        "slerp": lambda: mecha.slerp(*opened, alpha=0.5),
        "ties": lambda: mecha.add_difference_ties(*opened, alpha=1.0, k=0.2),
    }[method]()
    mecha.merge(
        recipe, output=Path(output), merge_device="cpu", merge_dtype=torch.float32,
        output_dtype=torch.float16, strict_mandatory_keys=False, check_extra_keys=False,
        fallback_model=opened[0],
    )  # fmt: skip


def mergekit(method: str, output: str, models: Sequence[str]) -> None:
    """The command ``mergekit-pytorch``, in fp32, stored in fp16; the output is a folder."""
    import torch
    from mergekit.scripts.merge_raw_pytorch import main

    made: dict[str, object] = dict(_MERGEKIT[method])
    made |= {"models": [{"model": path} for path in models], "dtype": "float32", "out_dtype": "float16"}
    if method != "weighted-sum":
        made["base_model"] = models[0]
    torch.set_num_threads(2)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
        json.dump(made, config)
        config.flush()
        main([config.name, output, "--safe-serialization"])


PEERS: dict[str, tuple[Callable[[str, str, Sequence[str]], None], Sequence[str], str]] = {
    "sd-mecha": (sd_mecha, _MECHA, "sd_mecha"),
    "mergekit": (mergekit, tuple(_MERGEKIT), "mergekit"),
}


def main(peer: str, *words: str) -> None:
    run, methods, package = PEERS[peer]
    if not words:
        __import__(package)
        print(json.dumps(list(methods)))
        return
    method, output, *models = words
    run(method, output, models)


if __name__ == "__main__":
    main(*sys.argv[1:])
