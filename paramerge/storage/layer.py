"""The stored tensors of one quantised layer: codes, scales and marks, by the names of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from paramerge.errors import CheckpointError
from paramerge.files.tensors import StoredTensor
from paramerge.strict_json import parse

_LONGEST_MARK = 1 << 16
"""Bytes of a mark (JSON); published ones have some tens."""

MARK = "comfy_quant"
"""The part in which ComfyUI says a layer's format."""


@dataclass(frozen=True)
class StoredLayer:
    """A layer's tensors as they are in the file, and what is said of them beside.

    Attributes
    ----------
    key:
        The key of its weight, which some schemes do not store under it.
    weight:
        The tensor under that key.
    parts:
        The others, by the name of the part: ``weight_scale``, ``SCB`` ...
    listed:
        The layer's entry in the file's metadata (``_quantization_metadata``).
    config:
        The ``quantization_config`` beside the file.
    marker:
        The key that marks all 8-bit weights of the file, or of its model, as scaled (``scaled_fp8``).
    """

    key: str
    weight: StoredTensor | None
    parts: Mapping[str, StoredTensor]
    listed: Mapping[str, object] | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    marker: str | None = None

    @property
    def name(self) -> str:
        """The layer's name: its key without ``.weight``."""
        return self.key.removesuffix(".weight")

    @property
    def dtype(self) -> str | None:
        """The dtype of the tensor under the weight's key; None where there is none."""
        return self.weight.dtype if self.weight is not None else None

    @property
    def where(self) -> str:
        """The file and the key, for errors."""
        first = self.weight if self.weight is not None else next(iter(self.parts.values()))
        return f"{first.path}: {self.key}"

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """All its tensors."""
        parts = (self.parts[name] for name in sorted(self.parts))
        return (*((self.weight,) if self.weight is not None else ()), *parts)

    @property
    def codes(self) -> StoredTensor:
        """The tensor under the weight's key.

        Raises
        ------
        CheckpointError
            There is none.
        """
        if self.weight is None:
            raise self.missing("weight")
        return self.weight

    def missing(self, part: str) -> CheckpointError:
        """The error for a tensor that the layer lacks."""
        return self.contradiction("a quantised layer lacks one of its tensors", part, ", ".join(self.parts))

    def contradiction(self, what: str, expected: object, found: object) -> CheckpointError:
        """The error for tensors and marks of the layer that do not go together."""
        return CheckpointError(
            what,
            where=self.where,
            expected=expected,
            found=found or "nothing else",
            hint="the file was put together wrongly: take the checkpoint from its source again",
        )

    @cached_property
    def mark(self) -> Mapping[str, object] | None:
        """The mark of ComfyUI, in the file's metadata or as a tensor; None where there is neither.

        Raises
        ------
        CheckpointError
            It is no JSON object, or the two say different things.
        """
        tensor = self.parts.get(MARK)
        if tensor is None:
            return self.listed
        found = parsed_mark(tensor)
        if self.listed is not None and self.listed.get("format") != found.get("format"):
            raise CheckpointError(
                "the file says two things of the format of a quantised layer",
                where=f"{tensor.path}: {tensor.key}",
                expected=f"{self.listed.get('format')}, as the file's metadata has it",
                found=found.get("format"),
                hint="take the checkpoint from its source again",
            )
        return found

    @property
    def marked_as(self) -> str | None:
        """The format that a mark of ComfyUI states; None without a mark. Raises as :attr:`mark` does."""
        if self.mark is None:
            return None
        stated = self.mark.get("format")
        return stated if isinstance(stated, str) else ""

    def setting(self, name: str) -> object:
        """An entry of the mark, or of the ``params`` in it; None where there is none."""
        mark = self.mark or {}
        inner = mark.get("params")
        return mark.get(name, inner.get(name) if isinstance(inner, Mapping) else None)


def parsed_mark(tensor: StoredTensor) -> Mapping[str, object]:
    """The JSON object that a tensor of bytes holds.

    Raises
    ------
    CheckpointError
        It holds something else.
    """
    reason: object = f"{tensor.dtype} {list(tensor.shape)}"
    if tensor.dtype in ("U8", "I8") and tensor.info.nbytes <= _LONGEST_MARK:
        try:
            content = parse(tensor.read_bytes())
        except ValueError as error:
            reason = error
        else:
            if isinstance(content, dict):
                return content
            reason = "JSON of another kind"
    raise CheckpointError(
        "the mark of a quantised layer cannot be read",
        where=f"{tensor.path}: {tensor.key}",
        expected="a JSON object as bytes (U8)",
        found=reason,
        hint="take the checkpoint from its source again",
    )
