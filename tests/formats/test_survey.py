"""The survey of a file takes work linear in its keys; expressions are looked for in all of them at once."""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramerge.checkpoints.foreign import _NO_UNET
from paramerge.errors import ParamergeError
from paramerge.expressions import occurring
from paramerge.inspect import inspection
from paramerge.models.registry import records

EXPRESSIONS = [
    *(pattern for record in records() for pattern in record.patterns),
    *(pattern for _, pattern in _NO_UNET),
]
_PIECES = sorted({piece for text in EXPRESSIONS for piece in re.split(r"[^A-Za-z_]+", text) if piece})
_names = st.lists(st.sampled_from([*_PIECES, "0", "12", "", "x"]), min_size=1, max_size=5).map(".".join)


@given(st.lists(_names, max_size=6))
def test_expressions_occur_in_names_as_one_after_the_other_finds_them(names: list[str]) -> None:
    found = {each for each in EXPRESSIONS if any(re.search(each, name) for name in names)}
    assert occurring(EXPRESSIONS, names) == found


@pytest.mark.parametrize("place", [0, 4095, 4096, 9999])
def test_expressions_are_found_wherever_among_many_names(place: int) -> None:
    names = [""] * 10_000
    names[place] = "x.needle"
    assert occurring(["needle$", "^needle", "hay"], names) == {"needle$"}


KEYS: dict[str, Callable[[int], str]] = {
    "layers of a model": lambda n: f"model.layers.{n}.weight",
    "words alone": lambda n: f"tensor_{n}",
    "a LoRA of empty tensors": lambda n: f"lora_unet_layer_{n}.lora_up.weight",
    "a family that is not baked": lambda n: f"unet.layer_{n}.hra_u",
    "several families": lambda n: f"layer{n}.{('lokr_w1', 'hada_w1_a', 'oft_diag', 'on_input')[n % 4]}",
    "motion modules": lambda n: f"down_blocks.0.motion_modules.{n}.weight",
    "a ControlNet": lambda n: f"control_model.input_blocks.{n}.weight",
    "a wrapped model": lambda n: f"x.{n}._orig_mod.weight",
}


@pytest.mark.parametrize("kind", KEYS)
def test_inspecting_a_file_takes_calls_in_proportion_to_its_tensors(kind: str, tmp_path: Path) -> None:
    few, many = (_calls(_file(tmp_path / f"{n}.safetensors", KEYS[kind], n)) for n in (2_000, 4_000))
    assert many < 2.2 * few
    assert many < 150 * 4_000


def _file(path: Path, key: Callable[[int], str], count: int) -> Path:
    entries = ",".join(f'"{key(n)}":{{"dtype":"F16","shape":[0],"data_offsets":[0,0]}}' for n in range(count))
    path.write_bytes(struct.pack("<Q", len(entries) + 2) + f"{{{entries}}}".encode())
    return path


def _calls(path: Path) -> int:
    """The calls of functions, of Python and of C, that ``inspect`` makes of a file."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    inspection.place_of.cache_clear()
    sys.setprofile(counted)
    try:
        inspection.inspect_path(path)
    except ParamergeError:
        pass  # a layer of size 0: the survey is done
    finally:
        sys.setprofile(None)
    return count
