"""The record of an adapter family: all that the rest of paramerge knows of one, in its own file.

A family's file ends with ``FAMILY = Family(...)``; :mod:`paramerge.adapters.registry` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from paramerge.adapters.contract import LayerModule
from paramerge.adapters.group import ANY_VECTOR, NUMBER, Group
from paramerge.adapters.parts import PartOf
from paramerge.adapters.rules import Rules
from paramerge.adapters.sizes import SizeSettings
from paramerge.adapters.tuner import Tuner

VECTOR, MATRIX, FACTOR, CORE = range(1, 2), range(2, 3), range(2, 6), range(3, 6)
"""Axes of tensors: a vector; a matrix; one that may be a convolution's; a Tucker core."""

COMMON = {"alpha": "alpha"}
"""Endings and roles that go with every family, whose forms say nothing of them."""

Stored = Callable[[tuple[int, ...], SizeSettings], int | None]
"""From a weight's shape and the settings to the numbers stored; None where the layer has no such form."""


@dataclass(frozen=True, eq=False)
class Form:
    """One way in which files write a family: LyCORIS' IA3, PEFT's IA3.

    Attributes
    ----------
    name:
        For errors.
    roles:
        The ending behind a layer's name in a key, with the role of the tensor: ``a1.weight`` is ``a1``. Where
        PEFT puts an adapter's name the ending says so: ``lora_A.<name>.weight``.
    build:
        The modules of a layer's keys, every shape checked; None where another reader does it (PaRa).
    axes:
        The number of axes of roles' tensors, or that they are a single number
        (:data:`~paramerge.adapters.group.NUMBER`). Forms with the same role differ in it.
    around:
        Roles of other forms that the layer may have, too: DoRA's magnitude is around another family's change.
    beside:
        Roles that go with any family and are built by this form: a bias.
    vague:
        Roles whose endings other keys of a file have, too: they count only beside other roles of the form.
    unread:
        Endings that show the family and cannot be read.
    """

    name: str
    roles: Mapping[str, str]
    build: Callable[[Group, Rules], Iterator[LayerModule]] | None
    axes: Mapping[str, range] = field(default_factory=dict)
    around: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()
    vague: frozenset[str] = frozenset()
    unread: tuple[str, ...] = ()

    @property
    def own(self) -> frozenset[str]:
        """Its roles."""
        return frozenset(self.roles.values())

    def axes_of(self, role: str) -> range:
        """The number of axes that the tensor of ``role`` can have, or NUMBER."""
        return self.axes.get(role, ANY_VECTOR)

    def has_axes(self, role: str, count: int) -> bool:
        """Whether the tensor of ``role`` can have so many axes."""
        axes = self.axes_of(role)
        return axes == NUMBER or count in axes


@dataclass(frozen=True, eq=False)
class Family:
    """One family of adapters.

    Attributes
    ----------
    key:
        Its name on the command line and in recipes: ``glora``. The modules that it builds have it as their
        ``family``.
    label:
        Its name for people: ``GLoRA``.
    forms:
        The forms in which files write it; none where its keys are another family's (DiffuseKronA).
    stored:
        The number of numbers stored for a weight of a shape, None for a layer that the family cannot have;
        None altogether where sizes do not have the family (norms).
    ranked:
        Whether it has a rank that a rank boundary can make smaller.
    counted:
        The name of the number in a module's ``rank``, in the plural; empty where it says no more than the
        shapes.
    parts:
        The formats that can hold it (``kohya``, ``diffusers``, ``peft`` ...), each with the function that
        makes a layer's part of a module; None where only the names change, between files with kohya's names.
    tuner:
        PEFT's, for its folders; None where PEFT has no such tuner.
    formula:
        The weight at strength 1, for ``docs/families.md``: ``o`` is the element-wise product, ``(x)`` the
        Kronecker product, ``s`` the scale that the file states.
    """

    key: str
    label: str
    forms: tuple[Form, ...] = ()
    stored: Stored | None = None
    ranked: bool = False
    counted: str = "ranks"
    parts: Mapping[str, PartOf | None] = field(default_factory=dict)
    tuner: Tuner | None = None
    formula: str = ""

    @property
    def endings(self) -> Iterator[str]:
        """The endings of keys that show it."""
        for form in self.forms:
            yield from (ending for ending, role in form.roles.items() if role not in form.vague)
            yield from form.unread
