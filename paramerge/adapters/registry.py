"""The list of adapter families: those of paramerge, those of installed packages, those that were registered.

A package adds one with an entry point of the group ``paramerge.families`` that names a
:class:`~paramerge.adapters.family.Family`; see ``docs/extending.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cache

from paramerge.adapters import (
    boft,
    dora,
    full,
    glora,
    ia3,
    krona,
    loha,
    lokr,
    lora,
    norm,
    oft,
    para,
    svdiff,
)
from paramerge.adapters.endings import without_name
from paramerge.adapters.family import COMMON, Family, Form, Stored
from paramerge.adapters.group import ANY_VECTOR, NUMBER, Group
from paramerge.errors import AdapterError, PluginError
from paramerge.kinds import Registry, followed

BUILT_IN = (
    para.FAMILY,
    lora.FAMILY,
    krona.FAMILY,
    norm.FAMILY,
    full.FAMILY,
    svdiff.FAMILY,
    oft.FAMILY,
    boft.FAMILY,
    ia3.FAMILY,
    glora.FAMILY,
    dora.FAMILY,
    loha.FAMILY,
    lokr.FAMILY,
)
"""A layer with keys of several is called by the last of them: LoRA's factors are a part of other families."""


def _check(added: Family, where: str, known: Iterable[Family]) -> None:
    """Refuse a family whose keys or names are a known one's."""
    for other in known:
        if shared := list(_shared(added, other)):
            raise PluginError(
                f"the family {added.key} has keys or names of {other.label}",
                where=where,
                expected="a label and endings of keys that no other family has",
                found=shared[0],
            )


def _shared(added: Family, other: Family) -> Iterator[str]:
    """Shared names: a label, an ending of tensors of as many axes, an ending that goes with every family."""
    if added.label == other.label:
        yield f"label {added.label}"
    for form in added.forms:
        yield from (f"ending {ending}" for ending in form.roles.keys() & COMMON.keys())
        for theirs in other.forms:
            both = sorted(form.roles.keys() & theirs.roles.keys())
            axes = ((form.axes_of(form.roles[key]), theirs.axes_of(theirs.roles[key])) for key in both)
            if all(set(one) & set(another) for one, another in axes):  # else they differ by their axes
                yield from (f"ending {key}" for key in both)


FAMILIES = Registry(
    Family, "family", "paramerge.families", BUILT_IN, names=lambda family: (family.key,), check=_check
)
families, family = FAMILIES.all, FAMILIES.named
register, unregister = FAMILIES.register, FAMILIES.unregister


def label(key: str) -> str:
    """The name for people of the family ``key``."""
    return family(key).label


def sized() -> dict[str, tuple[Stored, bool]]:
    """The families with sizes, each with its rule and whether it has ranks."""
    return {each.key: (each.stored, each.ranked) for each in families() if each.stored is not None}


@dataclass(frozen=True)
class _Roles:
    """The roles of all families."""

    endings: Mapping[str, str]
    owners: Mapping[str, tuple[Form, ...]]
    axes: Mapping[str, range]
    vague: frozenset[str]


@followed
@cache
def _roles() -> _Roles:
    owners: dict[str, tuple[Form, ...]] = {}
    for form in (form for each in families() for form in each.forms):
        for role in form.own:
            owners[role] = (*owners.get(role, ()), form)
    axes = {role: _joined(form.axes_of(role) for form in forms) for role, forms in owners.items()}
    endings = {
        ending: role
        for each in families()
        for form in each.forms
        if form.build is not None
        for ending, role in form.roles.items()
    }
    vague = frozenset().union(*(form.vague for each in families() for form in each.forms))
    return _Roles(endings | COMMON, owners, axes | dict.fromkeys(COMMON.values(), NUMBER), vague)


def _joined(ranges: Iterable[range]) -> range:
    ranges = list(ranges)
    return range(min(each.start for each in ranges), max(each.stop for each in ranges))


def endings() -> Mapping[str, str]:
    """The endings behind layers' names in keys, with the role of each tensor."""
    return _roles().endings


def written(role: str) -> str:
    """The ending of a key for this role, where a dialect has none of its own."""
    return without_name(next((ending for ending, each in endings().items() if each == role), role))


def vague_roles() -> frozenset[str]:
    """Roles whose endings other keys of a file have, too."""
    return _roles().vague


def counts(role: str, beside: Set[str]) -> bool:
    """Whether a role is a part of a family in a layer of these roles: a vague one beside others alone."""
    forms = _roles().owners.get(role, ())
    return role not in vague_roles() or any((form.own - form.vague) & beside for form in forms)


def axes_of(role: str) -> range:
    """The number of axes that the tensor of a role can have, in any family."""
    return _roles().axes.get(role, ANY_VECTOR)


def form_of(group: Group) -> Form | None:
    """The form that a layer's keys are of; None where all of them go with any family.

    Raises
    ------
    AdapterError
        They are of several families.
    """
    owners = _roles().owners
    present = {
        role: forms
        for role in group.roles
        if (forms := tuple(form for form in owners.get(role, ()) if role not in form.beside))
    }
    candidates = list(dict.fromkeys(form for forms in present.values() for form in forms))
    whole = [form for form in candidates if present.keys() <= form.own | form.around]
    if candidates and not whole:
        raise AdapterError(
            "one layer has keys of several families",
            where=group.name,
            expected="one family a layer",
            found=", ".join(sorted({forms[0].name for forms in present.values()})),
            hint="the file was probably joined from several: take one of its parts",
        )
    fitting = [form for form in whole if all(form.has_axes(role, group.axes_of(role)) for role in present)]
    return next(iter(fitting or whole), None)


def forms_beside(group: Group) -> list[Form]:
    """The forms of those keys of a layer that go with any family and that nobody has taken."""
    every = (form for each in families() for form in each.forms)
    return [form for form in every if any(group.has(role) for role in form.beside)]
