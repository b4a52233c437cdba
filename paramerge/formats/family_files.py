"""Files of every family but PaRa and plain LoRA: their dialect, their modules, and what is left over."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from paramerge.adapters import DoraModule, LayerModule, registry
from paramerge.adapters.building import build
from paramerge.adapters.group import Group
from paramerge.adapters.rules import Rules, scale_by_rank
from paramerge.errors import AdapterError
from paramerge.files.header import Header
from paramerge.formats import diffusers, peft
from paramerge.formats.families import DIFFUSE_KRONA, SVDIFF, Survey, several_dialects
from paramerge.formats.layers import strays
from paramerge.formats.peft_tuners import TunerSettings
from paramerge.formats.roles import Role, dialects_of, read_role
from paramerge.interpretation import KRONA_KEY, Interpretation
from paramerge.listing import listed
from paramerge.models.names import ModuleName

__all__ = ["read_family_file"]

_SPELLINGS = {"kohya-sgm": "kohya", "diffusers-old": "diffusers"}


def read_family_file(
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
    roles = _understood(header)
    dialect = _dialect(header, roles)
    if dialect == "peft" and tuner is None:
        raise peft.missing_config(header.path)
    rules = _rules(header, found, tuner, interpretation)
    modules: dict[ModuleName, LayerModule] = {}
    for group in _by_layer(header, roles):
        for module in build(group, rules):
            modules[module.name] = module
    if dialect == "peft":
        modules = _with_second_encoder(modules)
        if tuner is not None:
            _check_tuner(header, tuner, modules.values())
    if found.modules.keys() == {SVDIFF}:
        dialect = "svdiff"
    used = {role.key for role in roles}
    return dialect, modules, used


def _by_layer(header: Header, roles: Iterable[Role]) -> list[Group]:
    """The groups of a file, in the order in which the layers first appear."""
    groups: dict[ModuleName, Group] = {}
    for place, role, key in roles:
        group = groups.setdefault(place.name, Group(header, place.name, place.layer))
        group.add(role, key, registry.axes_of(role))
    return list(groups.values())


def _understood(header: Header) -> list[Role]:
    """The roles of the file's keys, but for what is no layer and what only looks like a part of a family."""
    roles = [role for key in header.tensors if (role := read_role(key)) is not None]
    lost = strays(role.place.name for role in roles if role.place.layer)
    of_layer: dict[ModuleName, set[str]] = {}
    for role in roles:
        of_layer.setdefault(role.place.name, set()).add(role.role)
    return [
        role
        for role in roles
        # else a whole weight saved along
        if role.place.name not in lost and registry.counts(role.role, of_layer[role.place.name])
    ]


def _dialect(header: Header, roles: Iterable[Role]) -> str:
    spoken = dialects_of(roles)
    if len({_SPELLINGS.get(name, name) for name in spoken}) > 1:
        raise several_dialects(spoken, header.path)
    # the more particular spelling names the file
    return next((name for name in _SPELLINGS if name in spoken), next(iter(spoken), "kohya"))


def _rules(
    header: Header, found: Survey, tuner: TunerSettings | None, interpretation: Interpretation
) -> Rules:
    if tuner is not None and tuner.scaling is not None:
        settings = tuner.scaling
        scaling = lambda name, rank: settings.scaling(name.path, rank)  # noqa: E731
    elif tuner is None and diffusers.METADATA_KEY in header.metadata:
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
    modules = list(modules)
    wanted = {family.key for family in registry.families() if family.tuner == tuner.tuner}
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


def _with_second_encoder(modules: dict[ModuleName, LayerModule]) -> dict[ModuleName, LayerModule]:
    """PEFT's names have no component: a text encoder as wide as SDXL's second is that one."""
    of_text = [module for name, module in modules.items() if name.component == "text_encoder"]
    if not any(_width(module) == peft.WIDTH_OF_SECOND_ENCODER for module in of_text):
        return modules
    renamed: dict[ModuleName, LayerModule] = {}
    for name, module in modules.items():
        if name.component == "text_encoder":
            name = ModuleName("text_encoder_2", name.path)  # noqa: PLW2901
            module = replace(module, name=name)  # type: ignore[type-var]  # noqa: PLW2901
        renamed[name] = module
    return renamed


def _width(module: LayerModule) -> int | None:
    """The text encoder's width, where a layer of its attention shows it."""
    if ".self_attn." not in module.name.path or not module.name.path.endswith("_proj"):
        return None
    return module.in_features or module.out_features
