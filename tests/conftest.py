"""Fixtures that every area of the tests shares."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real adapters and key inventories beside the checkout; skips where there is none."""
    if not (SHARED / "fixtures").is_dir():
        pytest.skip("the folder of real adapters (../shared/fixtures) is not beside this checkout")
    return SHARED
