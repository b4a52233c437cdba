"""A merge method: a function of the models' tensors, and the part of a tensor it has to see.

The function is handed the tensors first and its parameters by keyword; these and their ranges are in its
signature. How it sees a tensor is one of

``elements``
    ``f(blocks, draws, **parameters) -> block``: the same rows of each model, any number of them.
``gram``
    ``f(gram, **parameters) -> coefficients``: from the models' inner products to a sum of the models.
``differences``
    The same of the differences to the first model; the sum is added to the first.
``columns``
    ``f(blocks, sums, **parameters) -> block``: rows of two models, and sums over each of their columns.
``cuts``
    ``f(blocks, cuts, **parameters) -> block``: rows of each model, and for each model after the first the
    magnitudes that so many of its differences to the first have at least, as many as ``Method.cuts`` says.
``rows``
    As ``elements``, where a vector is one row and handed over as a whole.

Tensors are torch's, float32 or float64, and may be written over.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from paramerge.errors import UsageError
from paramerge.merge.methods.parameters import Parameter, Weights
from paramerge.wording import option

Sees = Literal["elements", "rows", "gram", "differences", "columns", "cuts"]


@dataclass(frozen=True)
class ColumnSums:
    """Sums over the rows of two models ``a`` and ``b``: of ``ab``, ``aa`` and ``bb``, (columns,) float64."""

    ab: np.ndarray
    aa: np.ndarray
    bb: np.ndarray


Cuts = Sequence[tuple[float, ...]]
"""For each model after the first the magnitudes that are asked for by :attr:`Method.cuts`."""


@dataclass(frozen=True)
class Draws:
    """Random numbers for a tensor, by its name, a seed and the place of an element alone.

    They are Philox's (Salmon et al. 2011), which counts instead of going from one number to the next.
    """

    tensor: str
    first: int = 0
    """The place in the tensor at which the block begins."""

    def uniform(self, seed: int, model: int, count: int) -> np.ndarray:
        """Numbers in [0, 1), (count,) float32: 24 random bits for each of the elements of a block."""
        key = hashlib.sha256(f"{seed}:{model}:{self.tensor}".encode()).digest()[:16]
        counter, skipped = divmod(self.first, _A_COUNT)
        generator = np.random.Philox(key=np.frombuffer(key, "<u8"), counter=counter)
        words = generator.random_raw(-(-(skipped + count) // 2)).view("<u4")
        return (words[skipped : skipped + count] >> 8).astype(np.float32) * np.float32(2.0**-24)


_A_COUNT = 8
"""Numbers of 32 bits that Philox makes at one count."""


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes
    ----------
    name:
        Its name: ``weighted-sum``.
    function:
        See the module's text.
    sees:
        The part of a tensor that it has to see.
    models:
        The number of models it takes: at least, and at most (None: any number).
    source:
        The source of its formula.
    same_as:
        Of its parameters: the model that the result is, whatever the others are; None where there is none.
    one_sided:
        Whether models after the first may have fewer columns (input channels): their change is 0 there.
    check:
        Of its parameters: raises UsageError where they do not go together.
    cuts:
        Of a tensor's size and the parameters: how many of the largest differences are told from the others.
    """

    name: str
    function: Callable[..., Any]
    sees: Sees
    models: tuple[int, int | None]
    source: str
    same_as: Callable[..., int | None] = lambda **_: None
    one_sided: bool = False
    check: Callable[..., None] = lambda **_: None
    cuts: Callable[..., tuple[int, ...]] = lambda size, **_: ()

    @property
    def summary(self) -> str:
        """The first line of its documentation: its effect and the formula."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    @property
    def formula(self) -> str:
        """The summary without the name before it."""
        return self.summary.partition(": ")[2] or self.summary

    @property
    def models_taken(self) -> str:
        """The number of models it takes, for people."""
        low, high = self.models
        return f"{low}" if low == high else f"{low} or more" if high is None else f"{low} to {high}"

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """Its parameters, in the signature's order."""
        found = []
        for given in inspect.signature(self.function).parameters.values():
            if given.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            annotation = given.annotation
            if isinstance(annotation, str):
                annotation = eval(annotation, self.function.__globals__)
            found.append(Parameter(given.name, get_args(annotation)[1], given.default))
        return tuple(found)

    @property
    def weighted(self) -> Weights | None:
        """Its weights, if it has any."""
        return next((p.kind for p in self.parameters if isinstance(p.kind, Weights)), None)

    def check_count(self, count: int, where: object = None) -> None:
        """Refuse too few or too many models.

        Raises
        ------
        UsageError
        """
        low, high = self.models
        if count < low or (high is not None and count > high):
            raise UsageError(
                f"{self.name} cannot merge this many models",
                where=where,
                expected=self.models_taken,
                found=count,
            )

    def read(self, given: Mapping[str, object], count: int, *, by_block: bool = False) -> dict[str, object]:
        """All parameters for ``count`` models: those given, checked, and defaults for the others.

        ``by_block`` says that weights are multiplied block by block, so that the first model has the rest.

        Raises
        ------
        UsageError
            The method has no such parameter, or a value is out of range.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                raise UsageError(
                    f"{self.name} has no parameter {name}",
                    where=option(name),
                    expected=", ".join(known) or "none at all",
                )
        values = {
            name: parameter.kind.read(name, given[name]) if name in given else parameter.default
            for name, parameter in known.items()
        }
        if self.weighted is not None:
            values["weights"] = self._weights(self.weighted, values["weights"], count, by_block)
        self.check(**values)
        return values

    def _weights(self, kind: Weights, given: Any, count: int, by_block: bool) -> tuple[float, ...]:
        others = count - 1
        if not given:
            if not kind.first:
                return (1.0,) * others
            return (1 / others,) * others if by_block else (1 / count,) * count
        allowed = (others, count) if kind.first else (others,)
        if len(given) not in allowed:
            raise UsageError(
                "the numbers of weights and models differ",
                where=option("weights"),
                expected=" or ".join(map(str, allowed)) + f" numbers: {kind.says}",
                found=len(given),
            )
        return tuple(given)

    def at(self, values: Mapping[str, object], factors: Sequence[float]) -> dict[str, Any]:
        """The parameters with weights times ``factors``, one for each model, or the strength times the last.

        The first model's weight is the rest of 1 where none was given for it.
        """
        result: dict[str, Any] = dict(values)
        if self.weighted is None:
            if "strength" in result:
                result["strength"] *= factors[-1]
            return result
        weights = result["weights"]
        weights = tuple(w * f for w, f in zip(weights, factors[-len(weights) :], strict=True))
        if self.weighted.first and len(weights) < len(factors):
            weights = (1 - sum(weights), *weights)
        result["weights"] = weights
        self.check(**result)
        return result
