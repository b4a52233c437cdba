"""The part of a layer that a format will hold: made by its family, or with its names changed alone."""

from __future__ import annotations

from paramerge.adapters import Adapter, LayerModule, registry
from paramerge.adapters.contract import read_stored
from paramerge.adapters.family import Family
from paramerge.adapters.parts import KOHYA, Part, cast
from paramerge.errors import FamilyError
from paramerge.files.header import Header
from paramerge.files.tensors import stored
from paramerge.formats.dialect import Dialect
from paramerge.formats.registry import DIALECTS, writable
from paramerge.formats.roles import read_role
from paramerge.models.names import ModuleName, split_kind
from paramerge.wording import option


def part_of(module: LayerModule, adapter: Adapter, header: Header, to: Dialect, dtype: str | None) -> Part:
    """The tensors that a file in the dialect ``to`` holds for a layer.

    Raises
    ------
    FamilyError
        The format has no such family, or not this form of it.
    """
    family = registry.family(module.family)
    if to.parts not in family.parts:
        raise FamilyError(
            f"{to.key} has no way to hold {family.label}",
            where=f"{adapter.path}: {module.name}",
            expected=", ".join(other.label for other in registry.families() if to.parts in other.parts),
            found=family.label,
            hint=_hint(family, to),
        )
    if names_change_alone(adapter, to) and not module.is_cut:
        return cast(_renamed(module, header), dtype)
    make = family.parts[to.parts]
    part = None if make is None else make(module, to.parts, dtype)
    if part is None:
        raise _formless(module, family, adapter, to)
    return cast(part, dtype)


def names_change_alone(adapter: Adapter, to: Dialect) -> bool:
    """Whether files in both dialects have the same tensors of every family."""
    given = DIALECTS.get(adapter.dialect)
    return given is not None and given.parts == to.parts == KOHYA


def _hint(family: Family, to: Dialect) -> str:
    if "para" in family.parts:
        return f"a PaRa becomes a LoRA for one base: give {option('base')}"
    holding = [key for key, each in writable().items() if each.parts in family.parts and each is not to]
    kept = f"convert it to {' or '.join(holding)}, or " if holding else ""
    return f"{kept}write the nearest LoRA of a rank: {option('rank', 32)}"


def _renamed(module: LayerModule, header: Header) -> Part:
    """All tensors as they are, whatever the family: only their keys will change."""
    roles = [role for key in module.keys if (role := read_role(key)) is not None]
    tensors = {role.role: read_stored(stored(header, role.key)) for role in roles}
    layer = ModuleName(module.name.component, split_kind(module.name.path)[0])
    return Part(layer, module.family, tensors, rank=module.rank)


def _formless(module: LayerModule, family: Family, adapter: Adapter, to: Dialect) -> FamilyError:
    form = f" ({module.form})" if module.form else ""
    return FamilyError(
        f"{to.key} has no way to hold this form of {family.label}",
        where=f"{adapter.path}: {module.name}",
        found=f"{family.label}{form}, as {adapter.dialect} has it",
        hint=f"write the nearest LoRA of a rank: {option('rank', 32)}",
    )
