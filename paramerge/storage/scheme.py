"""The contract of a storage scheme: recognising its layers, their shapes, their true values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from paramerge.errors import CheckpointError
from paramerge.storage.encoding import Encoding
from paramerge.storage.layer import StoredLayer
from paramerge.wording import option

if TYPE_CHECKING:  # recognising needs no torch
    import torch


class OpenCodes(Protocol):
    """The values of one layer, which can be computed now. For one thread."""

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Put rows ``start`` to ``stop`` of the weight as a matrix into ``out`` (rows, columns), float64 or
        float32."""


class Scheme:
    """A way of storing weights in few bits.

    Attributes
    ----------
    name:
        The scheme's name in the registry.
    title:
        The name that people know it by.
    formats:
        The formats of ComfyUI's marks that are this scheme.
    signs:
        Names of tensors beside a weight that no plain layer has, where its dtype says nothing.
    reference:
        The code whose values paramerge's are, bit for bit in float32; empty where layers are not read.
    foreign:
        Whether codes are of a format that no safetensors file holds: such layers are always written plain.
    weightless:
        Whether nothing in a layer has the weight's shape, or says it.
    """

    name: str
    title: str
    formats: tuple[str, ...] = ()
    signs: frozenset[str] = frozenset()
    reference: str = ""
    foreign: bool = False
    weightless: bool = False

    @property
    def readable(self) -> bool:
        """Whether the layers' values can be read."""
        return type(self).open is not Scheme.open

    @property
    def writable(self) -> bool:
        """Whether changed layers can be written in the scheme again."""
        return type(self).encoding is not Scheme.encoding

    def fits(self, layer: StoredLayer) -> bool:
        """Whether a layer is stored so, by its keys, dtypes and marks."""
        raise NotImplementedError

    def shape(self, layer: StoredLayer) -> tuple[int, ...]:
        """The weight's own shape, from the headers.

        Raises
        ------
        CheckpointError
            Tensors of the layer are missing, or contradict each other or the mark.
        """
        return layer.codes.shape

    def open(self, layer: StoredLayer) -> OpenCodes:
        """The layer's values; scales are read and checked here.

        Raises
        ------
        CheckpointError
            A scale is not finite, or zero, or negative.
        """
        raise not_read(layer.where, self.title)

    def encoding(self, layer: StoredLayer) -> Encoding:
        """The codes and scales that a changed weight is written as: of the same scheme, dtypes and blocks.

        Raises
        ------
        CheckpointError
            Layers of this scheme are not written.
        """
        raise CheckpointError(
            f"layers of this scheme ({self.title}) are read and not written",
            where=layer.where,
            expected="one of the schemes that are written (docs/quantised.md)",
            found=self.title,
            hint=f"leave {option('requantise')} away: changed layers become bf16",
        )


def not_read(where: object, title: str) -> CheckpointError:
    """The error for a layer whose values are needed and that is stored in a way that is not read."""
    return CheckpointError(
        f"this layer is stored quantised ({title}): the stored numbers are not its weight",
        where=where,
        expected="plain numbers, or a scheme that is read (docs/quantised.md)",
        found=title,
        hint="take the fp16 or bf16 checkpoint, and quantise the result",
    )
