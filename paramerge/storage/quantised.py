"""A quantised layer with its scheme, or with the fault for which it cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.errors import CheckpointError
from paramerge.files.tensors import StoredTensor
from paramerge.storage.encoding import Encoding
from paramerge.storage.layer import StoredLayer
from paramerge.storage.registry import scheme_of
from paramerge.storage.scheme import OpenCodes, Scheme, not_read


@dataclass(frozen=True, eq=False)
class Quantised:
    """A layer that is stored quantised.

    Attributes
    ----------
    scheme:
        Its scheme; None where its marks contradict each other.
    shape:
        The weight's own shape; of a layer with a fault, that of its codes.
    fault:
        The reason why its values cannot be read.
    """

    layer: StoredLayer
    scheme: Scheme | None
    shape: tuple[int, ...] | None
    fault: CheckpointError | None = None

    @classmethod
    def of(cls, layer: StoredLayer) -> Quantised:
        """A layer by the scheme that fits it; faults in its headers are kept."""
        stored = layer.weight.shape if layer.weight is not None else None
        scheme = None
        try:
            scheme = scheme_of(layer)
            if not scheme.readable:
                return cls(layer, scheme, stored, not_read(layer.where, scheme.title))
            return cls(layer, scheme, scheme.shape(layer))
        except CheckpointError as fault:
            return cls(layer, scheme, stored, fault)

    @property
    def title(self) -> str:
        """The scheme's name for people."""
        return self.scheme.title if self.scheme is not None else "marks that contradict each other"

    @property
    def tensors(self) -> tuple[StoredTensor, ...]:
        """All tensors of the layer."""
        return self.layer.tensors

    @property
    def weightless(self) -> bool:
        """Whether nothing that can be read in it has the weight's shape, or says it."""
        return self.scheme is not None and self.scheme.weightless and self.fault is not None

    def check(self) -> None:
        """Raise the layer's fault, if it has one."""
        if self.fault is not None:
            raise self.fault

    def open(self) -> OpenCodes:
        """The layer's values.

        Raises
        ------
        CheckpointError
            The layer's fault, or a scale that is no number above zero.
        """
        self.check()
        if self.scheme is None:
            raise not_read(self.layer.where, self.title)
        return self.scheme.open(self.layer)

    def encoding(self) -> Encoding:
        """The same scheme's codes and scales for a changed weight.

        Raises
        ------
        CheckpointError
            The layer's fault, or layers of its scheme are not written.
        """
        self.check()
        if self.scheme is None:
            raise not_read(self.layer.where, self.title)
        return self.scheme.encoding(self.layer)
