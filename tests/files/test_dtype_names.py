"""One vocabulary of dtypes: every spelling, in every function and every verb that takes one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import ml_dtypes
import numpy as np
import pytest
import torch

from paramerge.apply.steps import BakeOptions
from paramerge.cli.main import COMMANDS, cli
from paramerge.cli.options import DtypeChoice
from paramerge.convert.request import ConvertOptions
from paramerge.errors import UsageError
from paramerge.extract.families import ExtractOptions
from paramerge.files.dtype_names import WRITTEN, library_name, parse_dtype, short_name
from paramerge.generation.loading import pick_dtype
from paramerge.merge.request import CombineOptions

SPELLINGS = {
    "F16": (
        "F16",
        "fp16",
        "float16",
        "half",
        "FP16",
        " fp16 ",
        np.float16,
        np.dtype("float16"),
        torch.float16,
    ),
    "BF16": ("BF16", "bf16", "bfloat16", ml_dtypes.bfloat16, torch.bfloat16),
    "F32": ("F32", "fp32", "float32", "float", np.float32, torch.float32),
}
ALL = [(dtype, spelling) for dtype, spellings in SPELLINGS.items() for spelling in spellings]

TAKERS: dict[str, Callable[[Any], str]] = {
    "bake": lambda given: BakeOptions(dtype=given).dtype,
    "merge": lambda given: CombineOptions(dtype=given).dtype,
    "convert": lambda given: str(ConvertOptions("kohya", dtype=given).dtype),
    "extract": lambda given: ExtractOptions("lora", dtype=given).dtype,
    "generate": lambda given: str(pick_dtype(given, "cpu")),
}


@pytest.mark.parametrize(("dtype", "spelling"), ALL, ids=str)
def test_every_spelling_is_one_dtype(dtype: str, spelling: object) -> None:
    assert parse_dtype(spelling) == dtype
    for name, take in TAKERS.items():
        assert parse_dtype(take(spelling)) == dtype, name


@pytest.mark.parametrize("wrong", ["fp17", "keep", "", "int8", "F64", None, np.int8])
def test_what_is_no_dtype_to_write_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match="this dtype cannot be chosen") as error:
        parse_dtype(wrong)
    assert error.value.where == "dtype"
    assert error.value.expected == "fp16, bf16, fp32"


def test_the_short_and_the_long_name_are_read_again() -> None:
    for dtype in WRITTEN:
        assert parse_dtype(short_name(dtype)) == parse_dtype(library_name(dtype)) == dtype
        assert getattr(torch, library_name(dtype)).is_floating_point


def _options() -> list[tuple[str, click.Option]]:
    context = click.Context(cli)
    commands = [(name, cli.get_command(context, name)) for name in COMMANDS]
    return [
        (name, option)
        for name, command in commands
        if command is not None
        for option in command.params
        if isinstance(option, click.Option) and "--dtype" in option.opts
    ]


def test_every_verb_with_a_dtype_takes_every_spelling() -> None:
    options = _options()
    assert len(options) == 9
    texts = [(dtype, spelling) for dtype, spelling in ALL if isinstance(spelling, str)]
    for (verb, option), (dtype, text) in itertools.product(options, texts):
        assert isinstance(option.type, DtypeChoice), verb
        assert parse_dtype(option.type.convert(text, option, None)) == dtype
    for verb, option in options:
        with pytest.raises(click.BadParameter):
            option.type.convert("fp17", option, None)
        keeps = verb in ("bake", "merge", "replay")
        assert ("keep" in option.type.to_info_dict()["choices"]) == keeps, verb


def test_names_of_dtypes_need_no_numpy() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None; import paramerge.files.dtype_names, paramerge.apply.steps"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
