"""The PaRa layers: a linear layer or a convolution with its PaRas around it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paramerge.algebra import graded_joint_basis, storage_tolerance
from paramerge.errors import AdapterError, UsageError
from paramerge.peft.adapted import AdaptedLayer
from paramerge.peft.bases import basis_of, no_autocast
from paramerge.peft.config import PaRaConfig
from paramerge.peft.nesting import watch
from paramerge.peft.projection import (
    can_let_go,
    convolve_and_project_out,
    project_out,
    project_out_channels,
)
from paramerge.peft.removal import Removal, remove


@dataclass(frozen=True)
class Step:
    """One removal of the forward pass: ``y - strength K K^T y`` by the adapters ``names``."""

    names: tuple[str, ...]
    K: Tensor
    strength: float
    spans: bool = False
    """Whether K is the orthonormal basis of one B, of which the span alone has a gradient."""


class PaRaLayer(AdaptedLayer):
    """Base of linear and convolution layers: ``W0 - s K K^T W0``, K from each adapter's B (d, r)."""

    made: ClassVar[int] = 0
    """Number of PaRa layers created so far; :func:`~paramerge.peft.fusing.hoist_bases` scans the model again
    when it changes."""
    training: bool

    def __init__(self, base_layer: nn.Module, where: str) -> None:
        watch(PaRaLayer)
        PaRaLayer.made += 1
        super().__init__(base_layer, where)
        self._removals: list[Removal] = []
        self.covered = False
        """Whether an adapter around this one is merged into the same weight."""
        self.reached = False
        """Set by every call; adapters around look whether it was (see :mod:`paramerge.peft.nesting`)."""

    # --- what is removed ------------------------------------------------------------------------------------

    def basis(self, adapter_name: str) -> Tensor:
        """K (d, r) of an adapter, with gradient where B has one: :func:`~paramerge.peft.bases.basis_of`."""
        hoisted = self._hoisted.get(adapter_name)
        if hoisted is not None and hoisted[0]._version == hoisted[1] and torch.is_grad_enabled():
            return hoisted[2]
        return basis_of(
            self.para_B[adapter_name], self.para_method[adapter_name], self.para_epsilon[adapter_name]
        )

    def _steps(self, names: Sequence[str], dtype: torch.dtype | None = None) -> list[Step]:
        """The removals of ``names`` together: one joint step, or one after the other."""
        # a gate that is still shut is part of the graph, so that a training step has a gradient
        # the gradient of, and every process of several has the same parameters in use
        names = [name for name in names if self.strength(name) != 0 or self._trains(name)]
        bases = {name: self._basis_in(name, dtype) for name in names}
        if len(names) < 2 or self.para_mode[names[0]] == "sequential":
            return [
                Step((name,), bases[name], self.strength(name), self.para_method[name] != "soft")
                for name in names
            ]
        if soft := [name for name in names if self.para_method[name] == "soft"]:
            raise UsageError(
                "a soft PaRa is no subspace yet, so it has no joint span with others",
                where=f"{self.where}: {', '.join(soft)}",
                hint="harden it first (paramerge.peft.harden), or train it alone",
            )
        columns = sum(self.r[name] for name in names)
        cut = max(storage_tolerance(self.para_stored[name], columns) for name in names)
        Q, weights = graded_joint_basis(
            list(bases.values()), [self.strength(name) for name in names], rtol=cut
        )
        return [Step(tuple(names), Q * weights.sqrt(), 1.0)]

    def _trains(self, name: str) -> bool:
        return torch.is_grad_enabled() and self.para_B[name].requires_grad

    def _basis_in(self, name: str, dtype: torch.dtype | None) -> Tensor:
        if dtype is None:
            return self.basis(name)
        return basis_of(self.para_B[name].to(dtype), self.para_method[name], self.para_epsilon[name])

    def _current_steps(self) -> list[Step]:
        """The active adapters' steps: made anew where there is a gradient to take, else kept."""
        names = self._present()
        if self.training or any(map(self._trains, names)) or torch.compiler.is_compiling():
            return self._steps(names)
        key = tuple(
            (name, self.strength(name), self.para_method[name], B._version, B.data_ptr(), B.device)
            for name in names
            for B in (self.para_B[name],)
        )
        if self._kept is None or self._kept[0] != key:
            self._check_loaded(names)
            with torch.no_grad():
                self._kept = (key, self._steps(names))
        return self._kept[1]

    def _check_loaded(self, names: Sequence[str]) -> None:
        for name in names:
            if not bool(torch.isfinite(self.para_B[name]).all()):
                raise AdapterError(
                    "this layer's directions are NaN or Inf",
                    where=f"{self.where}: {name}",
                    hint="its training diverged, or it was added in inference mode and never loaded",
                )

    def train(self, mode: bool = True) -> Any:
        """Set the mode (``nn.Module.train``) and forget the bases that were kept."""
        self._kept = None
        return super().train(mode)  # type: ignore[misc]

    # --- merging --------------------------------------------------------------------------------------------

    def waiting(self) -> list[str]:
        """The adapters that act now and are not merged."""
        if self.disable_adapters:
            return []
        return [n for n in self._present() if n not in self.merged_adapters and self.strength(n) != 0]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the adapters ``adapter_names`` (the active ones) into the base layer's weight, in place.

        In float64 (float32 for half-precision weights) and rounded once; the result is always checked, so
        ``safe_merge`` changes nothing. In joint mode, adapters that are merged already are merged anew with
        the others, as one span.

        Raises
        ------
        UsageError
            An adapter around this one is merged: PaRa comes first.
        NonFiniteError
            The result would not be finite; the weight is then as it was.
        """
        fresh = [name for name in self._present(adapter_names) if name not in self.merged_adapters]
        if not fresh:
            return
        if self.covered:
            raise UsageError(
                "an adapter around this PaRa is merged already, and the PaRa has to be merged first",
                where=self.where,
                expected=f"{', '.join(fresh)} first",
                hint="unmerge all, then merge all at once",
            )
        self._check_loaded(fresh)
        before = list(self.merged_adapters)
        joint = bool(before) and self.para_mode[fresh[0]] == "joint"
        if joint:
            self.unmerge()
        weight = self.base_layer.weight.data
        wide = torch.float32 if weight.device.type == "mps" else torch.float64
        with torch.no_grad(), no_autocast(weight):
            for step in self._steps([*before, *fresh] if joint else fresh, wide):
                self._removals.append(remove(weight, step.K, step.strength, step.names, self.where))
        self.merged_adapters.extend([*before, *fresh] if joint else fresh)

    def unmerge(self) -> None:
        """Take every merged adapter out of the weight again: every value is as it was before.

        A PaRa cannot be undone from its basis alone; the removed part was kept (:class:`Removal`).
        """
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self._removals:
            self._removals.pop().restore(self.base_layer.weight.data)
        self.merged_adapters.clear()

    def get_delta_weight(self, adapter_name: str) -> Tensor:
        """The change of the weight by one adapter alone: ``-s K K^T W``, in the weight's shape and dtype."""
        weight = self.base_layer.weight.data
        K = self._basis_in(adapter_name, torch.float64).detach()
        with no_autocast(K):
            delta = -self.strength(adapter_name) * (K @ (K.mT @ weight.flatten(1).to(K.dtype)))
        return delta.view(weight.shape).to(weight.dtype)

    # --- forward --------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output without the part that the active adapters remove."""
        self.reached = True
        if kwargs.pop("adapter_names", None) is not None:
            raise UsageError(
                "adapters were chosen for each sample of a batch, which PaRa cannot do", where=self.where
            )
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        if self.merged:
            return self.base_layer(x, *args, **kwargs)  # type: ignore[no-any-return]
        if self.covered and self.waiting():
            raise UsageError(
                "the weight has another adapter in it, which this PaRa would project along with it",
                where=self.where,
                expected="the PaRa merged before the adapter around it, or neither merged",
                hint="unmerge all, then merge all at once",
            )
        steps = self._current_steps()
        if steps and can_let_go(self.base_layer, x):
            result = self._convolve(x, steps[0])
            steps = steps[1:]
        else:
            result = self.base_layer(x, *args, **kwargs)
        for step in steps:
            result = self._project(result, step)
        return result

    def _project(self, y: Tensor, step: Step) -> Tensor:
        raise NotImplementedError

    def _convolve(self, x: Tensor, step: Step) -> Tensor:
        raise NotImplementedError


class _PaRaModule(PaRaLayer, nn.Module):
    """A PaRa layer as the module that takes the place of the one it is on."""

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, rank: int, config: PaRaConfig, where: str
    ) -> None:
        nn.Module.__init__(self)
        PaRaLayer.__init__(self, base_layer, where)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, rank, config)

    def __repr__(self) -> str:
        return f"para.{super().__repr__()}"


class PaRaLinear(_PaRaModule):
    """PaRa on a linear layer."""

    def _project(self, y: Tensor, step: Step) -> Tensor:
        bias = self.base_layer.bias
        return project_out(y, step.K, bias, step.strength, across_only=step.spans)


class PaRaConv2d(_PaRaModule):
    """PaRa on a convolution's output channels. An adapter around it finds the convolution's sizes here."""

    def _project(self, y: Tensor, step: Step) -> Tensor:
        bias = self.base_layer.bias
        return project_out_channels(y, step.K, bias, step.strength, across_only=step.spans)

    def _convolve(self, x: Tensor, step: Step) -> Tensor:
        layer: Any = self.base_layer
        return convolve_and_project_out(x, layer, step.K, step.strength, across_only=step.spans)

    def __getattr__(self, name: str) -> Any:
        if name in _CONVOLUTION:
            return getattr(self.base_layer, name)
        return super().__getattr__(name)


_CONVOLUTION = frozenset(
    ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
)
