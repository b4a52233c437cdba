"""Tiny random pipelines and a few pictures for the trainer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_pipelines import sd_pipeline, sdxl_pipeline


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sd_pipeline(tmp_path_factory.mktemp("sd"))[0]


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdxl_pipeline(tmp_path_factory.mktemp("xl"))[0]


@pytest.fixture(scope="session")
def dog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures: wide, tall, and with transparency."""
    folder = tmp_path_factory.mktemp("dog")
    rng = np.random.default_rng(0)
    for name, shape in {"a.png": (40, 60, 3), "b.jpg": (70, 50, 3), "c.png": (64, 64, 4)}.items():
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder
