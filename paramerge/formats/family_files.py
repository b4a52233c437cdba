"""The layers of a file of any family but PaRa: its dialect, its modules, and the keys that they are of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from paramerge.adapters import LayerModule, registry
from paramerge.adapters.building import build
from paramerge.adapters.dora import DoraModule
from paramerge.adapters.full import DifferenceModule, WholeModule
from paramerge.adapters.group import Group
from paramerge.adapters.peft_config import TunerSettings
from paramerge.adapters.rules import Rules
from paramerge.adapters.scaling import Scaling, scale_by_rank
from paramerge.errors import AdapterError, IncompleteLayerError
from paramerge.files.header import Header
from paramerge.formats import diffusers, peft
from paramerge.formats.dialect import Role
from paramerge.formats.diffusers import DIFFUSERS
from paramerge.formats.families import DIFFUSE_KRONA, SVDIFF, Survey, several_dialects
from paramerge.formats.kohya import KOHYA
from paramerge.formats.layers import strays
from paramerge.formats.peft import PEFT
from paramerge.formats.registry import dialects, named_dialect
from paramerge.formats.roles import dialects_of, read_roles
from paramerge.interpretation import KRONA_KEY, Interpretation
from paramerge.listing import listed
from paramerge.models.names import ModuleName


def read_layers(
    header: Header, found: Survey, tuner: TunerSettings | None, interpretation: Interpretation
) -> tuple[str, dict[ModuleName, LayerModule], set[str]]:
    """The dialect, the modules, and the keys that became part of one.

    Raises
    ------
    AdapterError
        Several dialects, a layer that is incomplete or of several families, a configuration that is missing.
    ShapeError
        Tensors that do not fit together.
    """
    whole = () if tuner is None else tuner.whole
    roles = _understood(header, configured=tuner is not None, whole=whole)
    dialect, roles = _in_one_dialect(header, roles)
    unknown_alpha = dialect == PEFT.key and tuner is None
    if unknown_alpha and interpretation.alpha is None and peft.is_of_a_folder(header.path):
        raise peft.missing_config(header.path)
    rules = _rules(header, found, dialect, tuner, interpretation)
    modules = _built(header, _by_layer(header, roles), rules)
    if dialect == PEFT.key:
        modules = peft.text_encoders_by_width(modules)
        if tuner is not None:
            _check_tuner(header, tuner, modules.values())
    if found.modules.keys() == {SVDIFF}:
        dialect = "svdiff"
    return dialect, modules, {role.key for role in roles}


def _by_layer(header: Header, roles: Iterable[Role]) -> list[Group]:
    """The groups of a file, in the order in which the layers first appear."""
    groups: dict[ModuleName, Group] = {}
    for place, role, key in roles:
        group = groups.setdefault(place.name, Group(header, place.name, place.layer))
        group.add(role, key, registry.axes_of(role))
    return list(groups.values())


def _understood(header: Header, *, configured: bool, whole: Collection[str]) -> list[Role]:
    """The roles of the file's keys, without those of no layer and those that only look like a family's."""
    roles = read_roles(header, configured=configured, whole=whole)
    # a norm or an embedding has no inputs that factors could reduce
    lost = strays(role.place.name for role in roles if role.place.layer) | {
        role.place.name for role in roles if role.role in ("up", "down") and not role.place.layer
    }
    of_layer: dict[ModuleName, set[str]] = {}
    for role in roles:
        of_layer.setdefault(role.place.name, set()).add(role.role)
    return [
        role
        for role in roles
        # else a whole weight saved along
        if role.place.name not in lost and registry.counts(role.role, of_layer[role.place.name])
    ]


def _in_one_dialect(header: Header, roles: Sequence[Role]) -> tuple[str, list[Role]]:
    """The dialect of all parts of layers, and the roles in it.

    A number alone (any alpha) is no evidence of a dialect.
    """
    spoken = dialects_of(role for role in roles if role.role != "alpha") or dialects_of(roles)
    known = {dialect.key: dialect.base for dialect in dialects()}
    bases = {known[name] for name in spoken}
    if len(bases) > 1:
        raise several_dialects(spoken, header.path)
    # the more particular spelling names the file
    particular = next((name for name in spoken if known[name] != name), next(iter(spoken), KOHYA.key))
    return particular, [role for role in roles if known[role.place.dialect] in bases]


def _built(header: Header, groups: Sequence[Group], rules: Rules) -> dict[ModuleName, LayerModule]:
    modules: dict[ModuleName, LayerModule] = {}
    incomplete = []
    for group in groups:
        try:
            modules |= {module.name: module for module in build(group, rules)}
        except IncompleteLayerError as error:
            incomplete.append(f"{error.found} without {error.expected}")
    if incomplete:
        raise AdapterError(
            f"{len(incomplete)} of {len(groups)} layers are incomplete",
            where=header.path,
            expected="all tensors of every layer",
            found=listed(incomplete),
            hint="the file is damaged or was cut: get it from its source again",
        )
    return modules


def _rules(
    header: Header, found: Survey, dialect: str, tuner: TunerSettings | None, interpretation: Interpretation
) -> Rules:
    if tuner is not None and tuner.scaling is not None:
        settings = tuner.scaling
        scaling = lambda name, rank: settings.scaling(name.path, rank)  # noqa: E731
    elif dialect == PEFT.key and (alpha := interpretation.stated_alpha) is not None:
        scaling = lambda name, rank: Scaling(alpha)  # noqa: E731
    elif named_dialect(dialect).base == DIFFUSERS.key:
        scaling = diffusers.scaling_from_metadata(header.metadata, header.path, dora="DoRA" in found.modules)
    else:
        scaling = scale_by_rank
    order = interpretation.krona or header.metadata.get(KRONA_KEY, "code")
    if order not in ("code", "paper"):
        raise AdapterError(
            "the order of this DiffuseKronA's rows is not known",
            where=f"{header.path}: metadata {KRONA_KEY}",
            expected="code or paper",
            found=order,
        )
    krona = frozenset(f"{module}.up.weight" for module in found.modules.get(DIFFUSE_KRONA, ()))
    return Rules(scaling, tuner, interpretation, krona, paper_order=order == "paper")


def _check_tuner(header: Header, tuner: TunerSettings, modules: Iterable[LayerModule]) -> None:
    """Refuse a configuration of one tuner beside the tensors of another."""
    # whole modules and biases go with any tuner
    modules = [m for m in modules if not isinstance(m, WholeModule | DifferenceModule)]
    wanted = {f.key for f in registry.families() if f.tuner is not None and f.tuner.peft_type == tuner.tuner}
    others = [str(module.name) for module in modules if module.family not in wanted]
    if others:
        raise AdapterError(
            "the configuration and the weights do not belong together: they are of different families",
            where=f"{header.path}: {listed(others, 2)}",
            expected=f"tensors of {tuner.tuner}, as configured",
            found=", ".join(sorted({registry.label(module.family) for module in modules})),
            hint="give the adapter_config.json that was saved with these weights",
        )
    if tuner.scaling is not None and tuner.scaling.dora:
        _check_magnitudes(header, modules)


def _check_magnitudes(header: Header, modules: Iterable[LayerModule]) -> None:
    without = [str(module.name) for module in modules if not isinstance(module, DoraModule)]
    if without:
        raise AdapterError(
            "the configuration says DoRA, and layers have no magnitude",
            where=header.path,
            expected="lora_magnitude_vector for every layer",
            found=listed(without),
        )
