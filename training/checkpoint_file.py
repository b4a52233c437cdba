"""Reading a training's checkpoint: nothing of it is believed before it was compared with the parameters."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramerge.errors import CheckpointError
from paramerge.files.header import Header, read_header
from paramerge.files.tensors import stored
from paramerge.strict_json import check_bounds, parse

__all__ = ["CheckpointFile", "open_checkpoint"]

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_HINT = "delete this file, and the run goes on from the checkpoint before it, or from the start"


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint whose header was checked; no tensor of it was read yet.

    Attributes
    ----------
    facts:
        The training's notes beside the tensors.
    """

    header: Header
    facts: Mapping[str, Any]

    def damaged(self, what: str, **details: object) -> CheckpointError:
        """The error for a fault (``what``) of this file."""
        shown = {name: None if value is None else str(value)[:300] for name, value in details.items()}
        where = shown.pop("where", None)
        place = self.header.path if where is None else f"{self.header.path}: {where}"
        return CheckpointError(what, where=place, hint=_HINT, **shown)

    def check_identity(self, identity: Mapping[str, Any], hint: str) -> None:
        """Refuse a checkpoint whose facts do not hold all of ``identity``.

        Raises
        ------
        CheckpointError
        """
        for name, value in identity.items():
            if self.facts.get(name) != value:
                raise CheckpointError(
                    f"the checkpoint is of another run: its {name.replace('_', ' ')} differs",
                    where=self.header.path,
                    expected=value,
                    found=str(self.facts.get(name))[:300],
                    hint=hint,
                )

    def natural(self, name: str) -> int:
        """The fact ``name``, a whole number of at least 0.

        Raises
        ------
        CheckpointError
            It is missing or something else.
        """
        value = self.facts.get(name)
        if type(value) is not int or value < 0:
            raise self.damaged(
                f"the checkpoint's {name} is no number of steps",
                expected="a whole number",
                found=json.dumps(value),
            )
        return value

    def number(self, name: str, value: object) -> float:
        """``value``, noted under ``name``, as a finite number.

        Raises
        ------
        CheckpointError
            It is something else.
        """
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.damaged(f"the checkpoint's {name} is no number", found=json.dumps(value))
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise self.damaged(f"the checkpoint's {name} is not finite", found=number)
        return number

    def read(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, with the names, shapes and dtypes of ``like``, and no others; all on the CPU.

        Raises
        ------
        CheckpointError
            The file holds others, or values that are not finite.
        """
        here = self.header.tensors
        if missing := sorted(like.keys() - here.keys()):
            raise self.damaged(
                "a tensor of the training is missing in the checkpoint",
                expected=missing[0],
                found=f"{len(missing)} missing, {len(here.keys() - like.keys())} unknown",
            )
        if unknown := sorted(here.keys() - like.keys()):
            raise self.damaged(
                "the checkpoint holds tensors that this training does not have", found=unknown[0]
            )
        for key, value in like.items():
            wanted = (_DTYPES.get(value.dtype), tuple(value.shape))
            if (here[key].dtype, here[key].shape) != wanted:
                raise self.damaged(
                    "a tensor of the checkpoint is of another shape or dtype",
                    where=key,
                    expected=f"{wanted[0]} {list(wanted[1])}",
                    found=f"{here[key].dtype} {list(here[key].shape)}",
                )
        return {key: self._read(key) for key in like}

    def _read(self, key: str) -> Tensor:
        tensor = stored(self.header, key)
        if tensor.dtype == "BF16":
            raw = bytearray(tensor.read_bytes())
            found = torch.frombuffer(raw, dtype=torch.bfloat16).reshape(tensor.shape)
        else:
            found = torch.from_numpy(tensor.read().copy())
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise self.damaged("the checkpoint holds values that are not finite", where=key)
        return found


def open_checkpoint(path: Path, key: str) -> CheckpointFile:
    """The header of the checkpoint at ``path``, and the facts that its metadata hold under ``key``.

    Raises
    ------
    CheckpointError
        The file holds no facts of a training.
    FileFormatError
        It is no safetensors file, or a damaged one.
    """
    header = read_header(path)
    try:
        facts = parse(header.metadata.get(key, "null"))
        check_bounds(facts)
    except ValueError as error:
        raise CheckpointFile(header, {}).damaged(
            f"the checkpoint's record of its training cannot be read ({error})"
        ) from error
    if not isinstance(facts, dict):
        raise CheckpointFile(header, {}).damaged(
            "this file has no record of a training",
            expected=f"{key} in its metadata",
            found=type(facts).__name__,
        )
    return CheckpointFile(header, facts)
