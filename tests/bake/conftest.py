"""Small checkpoints, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from baking import small_model

Models = Callable[..., Path]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Gives a small checkpoint of an architecture, layout and dtype; never written to by a test."""
    made: dict[tuple[object, ...], Path] = {}

    def get(architecture: str = "sd15", **options: object) -> Path:
        key = (architecture, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("model", numbered=True)
            name = "base" if options.get("layout") == "diffusers-folder" else "base.safetensors"
            made[key] = small_model(folder / name, architecture, **options)
        return made[key]

    return get
