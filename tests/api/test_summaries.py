"""Objects in a notebook and at a prompt: one line, a small table; arguments of a wrong type named at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import paramerge as pm
from paramerge.errors import UsageError
from paramerge.summarised import Summarised

MODEL = "emoji-diffusion"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


MADE: dict[str, Callable[[], Any]] = {
    "open_adapter": lambda: pm.open_adapter("blueprint"),
    "bake": lambda: pm.bake(MODEL, ["blueprint"], "out"),
    "merge": lambda: pm.merge(["butterfly", "tree"], "out"),
    "convert": lambda: pm.convert(["blueprint"], "out", to="kohya"),
    "resize": lambda: pm.resize("blueprint", "out", rank=2),
    "compare": lambda: pm.compare(["butterfly", "tree"]),
    "inspect": lambda: pm.inspect("blueprint"),
}


@pytest.mark.parametrize("call", MADE)
def test_a_line_and_a_table(call: str) -> None:
    found = MADE[call]()
    assert isinstance(found, Summarised)
    line = repr(found)
    assert len(line) < 300 and "\n" not in line
    assert line.startswith(f"<{type(found).__name__} ")
    table = found._repr_html_()
    assert table.count("<tr>") == sum(value not in (None, "", ()) for value in found.summary().values())
    assert len(table) < 3_000


def test_names_from_files_do_not_act_in_a_page() -> None:
    class Named(Summarised):
        def summary(self) -> dict[str, object]:
            return {"name": "<script>alert(1)</script>\x1b[31m", "long": "x" * 10_000, "none": None}

    assert "<script>" not in Named()._repr_html_()
    assert "\x1b" not in repr(Named()) and len(repr(Named())) < 300
    assert "none" not in repr(Named())


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: pm.bake(3, ["blueprint"], "out"), "base"),  # type: ignore[arg-type]
        (lambda: pm.bake(MODEL, 3, "out"), "adapters"),  # type: ignore[arg-type]
        (lambda: pm.bake(MODEL, ["blueprint"], 3), "output"),  # type: ignore[arg-type]
        (lambda: pm.extract(3, MODEL, "out"), "base"),  # type: ignore[arg-type]
        (lambda: pm.merge(3, "out"), "adapters"),  # type: ignore[arg-type]
        (lambda: pm.merge(["butterfly", "tree"], None), "output"),  # type: ignore[arg-type]
        (lambda: pm.compare(None), "adapters"),  # type: ignore[arg-type]
        (lambda: pm.convert(["blueprint"], 3, to="kohya"), "output"),  # type: ignore[arg-type]
        (lambda: pm.resize("blueprint", 3, rank=2), "output"),  # type: ignore[arg-type]
        (lambda: pm.inspect(3), "path"),  # type: ignore[arg-type]
        (lambda: pm.open_adapter(None), "path"),  # type: ignore[arg-type]
        (lambda: pm.open_base(3), "path"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_is_named_at_once(call: Callable[[], Any], argument: str) -> None:
    with pytest.raises(UsageError, match="of a type that is not taken") as caught:
        call()
    assert caught.value.where == argument
    assert caught.value.found in ("int", "NoneType")
