"""The base for a merge of adapters: the shapes of its layers, and single weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from paramerge.adapters import Adapter
from paramerge.checkpoints.layout import Base, WeightFile
from paramerge.checkpoints.targets import Target
from paramerge.errors import NonFiniteError, UnmatchedError, UsageError
from paramerge.files.dtypes import is_float
from paramerge.files.source import Source
from paramerge.listing import listed
from paramerge.models.names import ModuleName
from paramerge.models.registry import published_shapes
from paramerge.resolve.matching import check_family, check_shape
from paramerge.resolve.naming import in_names_of
from paramerge.resolve.row_order import refuse_unknown_rows
from paramerge.storage.scheme import not_read
from paramerge.wording import option


class BaseWeights:
    """The layers of a base that was opened; a weight is read when it is asked for."""

    def __init__(self, base: Base) -> None:
        self.base = base
        self._places = {
            name: (file, target) for file in base.files for name, target in file.reachable.items()
        }

    def check(self, adapter: Adapter) -> Adapter:
        """The adapter with the base's names for its layers; one that does not belong to this base is refused.

        Raises
        ------
        ArchitectureError, ShapeError
            It was made for another model.
        UnmatchedError
            The base lacks some of its layers.
        """
        targets = {name: target for name, (_, target) in self._places.items()}
        check_family(self.base, targets, adapter)
        adapter = in_names_of(self.base, targets, adapter)
        missing = [
            str(name)
            for name, module in adapter.modules.items()
            if name not in targets and not module.optional
        ]
        if missing:
            raise UnmatchedError(
                f"{len(missing)} layers of this adapter are not in the base",
                where=adapter.path,
                expected=f"layers of {self.base.path.name} ({self.base.architecture}, {self.base.layout})",
                found=listed(missing),
                hint="give the checkpoint that the adapter was made for",
            )
        refuse_unknown_rows(self.base, adapter, adapter.modules)
        for name, module in adapter.modules.items():
            if name not in targets:
                continue
            check_shape(self.base, targets[name], adapter, module)
        return adapter

    def has(self, name: ModuleName) -> bool:
        """Whether the base has this layer, norm or bias."""
        return name in self._places

    def shape(self, name: ModuleName) -> tuple[int, int]:
        """``(d, k)`` of the layer, a convolution flattened."""
        target = self._places[name][1]
        return target.shape[0], math.prod(target.shape[1:])

    def kernel(self, name: ModuleName) -> tuple[int, ...]:
        """``(kh, kw)`` of a convolution, ``()`` of a linear layer."""
        return self._places[name][1].shape[2:]

    def place(self, name: ModuleName) -> tuple[WeightFile, Target]:
        """The file of the layer, and its target there."""
        return self._places[name]

    def target(self, name: ModuleName) -> Target:
        """The layer's place, and its own shape."""
        return self._places[name][1]

    def dtype(self, name: ModuleName) -> str:
        """The dtype that it is stored in, by the header's name; ``F32`` where it is stored quantised."""
        file, target = self._places[name]
        return file.tensor(target.key).dtype

    def matrix(self, name: ModuleName) -> np.ndarray:
        """The weight, (d, k) in float64.

        Raises
        ------
        CheckpointError
            It is stored in a form that cannot be computed on.
        NonFiniteError
            It holds NaN or Inf.
        """
        file, target = self._places[name]
        tensor = file.tensor(target.key)
        if not is_float(tensor.dtype):
            raise not_read(f"{tensor.path}: {tensor.key}", f"codes of {tensor.dtype}")
        weight = tensor.read_exact()
        if target.rows is not None:
            weight = weight[slice(*target.rows)]
        if target.transposed:
            weight = weight.T
        flat = weight.reshape(weight.shape[0], -1).astype(np.float64)
        if not np.isfinite(flat).all():
            raise NonFiniteError("the base holds NaN or Inf", where=f"{tensor.path}: {tensor.key}")
        return flat

    @property
    def opened(self) -> tuple[Source, ...]:
        """The base's files."""
        return self.base.opened

    def files(self, names: Iterable[ModuleName]) -> list[Source]:
        """The files of these layers."""
        return list(dict.fromkeys(self._places[name][0].header.source for name in names))


class LayerShapes:
    """``rank(W0)`` of layers: from the base, or from the published architecture where nothing contradicts it.

    A trained weight has full rank, and stored in 16 bits always (T14): ``rank(W0) = min(d, k)``.
    """

    def __init__(self, base: BaseWeights | None, architecture: str | None) -> None:
        self._base = base
        self._architecture = architecture

    def full_rank(self, name: ModuleName, rows: int) -> int:
        """``min(d, k)`` of the layer, whose d is ``rows``.

        Raises
        ------
        UsageError
            There is no base, and the architecture is not known or of other sizes.
        """
        if self._base is not None:
            return min(self._base.shape(name))
        known = published_shapes(self._architecture).get(name)
        if known is None or known[0] != rows:
            raise UsageError(
                "the rank boundary needs the sizes of the base's layers",
                where=f"{option('gamma')}, {name}",
                expected=f"{option('base')}, or adapters of a published architecture",
                found=f"{rows} rows and {'no known architecture' if known is None else self._architecture}",
                hint=f"give the checkpoint: {option('base', 'model.safetensors')} (only its header is read)",
            )
        return min(known[0], math.prod(known[1:]))
