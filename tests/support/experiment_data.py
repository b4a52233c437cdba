"""Small data for experiments: drawn subjects with a dataset.toml."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TOML = """
[prompts]
instance = "a noto {subject}"
plain = "a noto {subject}"
diversity = ["a twemoji {subject}", "a noto {subject} on a blue background"]
alignment = ["a noto {subject} on a red background"]
editing = ["a noto {subject} on a green background", "a noto {subject} on a red background"]
composition = ["a noto {first} and a {second}"]

[[subjects]]
folder = "butterfly"
word = "<v1>"
kind = "butterfly"

[[subjects]]
folder = "pineapple"
word = "<v2>"
kind = "pineapple"
"""


def experiment_data(folder: Path, side: int = 64) -> Path:
    """Two subjects with two pictures each."""
    rng = np.random.default_rng(0)
    for name in ("butterfly", "pineapple"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            blocks = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
            image = Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1))
            image.save(folder / name / f"{number}.png")
    (folder / "dataset.toml").write_text(TOML)
    return folder
