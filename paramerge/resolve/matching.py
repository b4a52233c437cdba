"""Checks of names and shapes that an adapter belongs to a base, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paramerge.adapters import Adapter, LayerModule
from paramerge.adapters.unread import refuse_unread, shown
from paramerge.checkpoints.layout import Base
from paramerge.checkpoints.targets import Target
from paramerge.errors import ArchitectureError, ShapeError, UnmatchedError
from paramerge.formats.provenance import models_by_structure
from paramerge.models.model_names import looks_like, resemblances
from paramerge.models.names import ModuleName
from paramerge.models.registry import family_of, record_of
from paramerge.resolve.naming import homes_of, stacked_elsewhere
from paramerge.wording import option


def is_of_another(base: Base, adapter: Adapter) -> bool:
    """Whether an adapter is for another architecture than ``base``, by its layers or by what it states."""
    if adapter.architecture is None or base.architecture == "unknown":
        return False
    return family_of(adapter.architecture) != family_of(base.architecture)


def check_family(base: Base, targets: Mapping[ModuleName, Target], adapter: Adapter) -> None:
    """Refuse an SDXL adapter on SD1.5 and the like, before single layers are matched.

    An adapter that does not state its architecture is not refused here, nor is one whose layers a model like
    its own has too, such as Chroma those of FLUX.1: whether each is there and fits is seen later.
    """
    if not is_of_another(base, adapter) or base.architecture in models_by_structure(adapter.modules):
        return
    fits = sum(name in targets for name in adapter.modules)
    raise ArchitectureError(
        f"this adapter was made for {adapter.architecture}, the base is {base.architecture}",
        where=adapter.path,
        expected=f"an adapter for {base.architecture}",
        found=f"{fits} of its {len(adapter.modules)} layer names exist in the base",
        hint=f"take a {adapter.architecture} checkpoint as the base, or another adapter; to insist, add "
        f"{option('allow_other_model')}",
    )


def check_unmatched(
    base: Base,
    targets: Mapping[ModuleName, Target],
    adapter: Adapter,
    matched: Sequence[ModuleName],
    unmatched: Sequence[ModuleName],
    *,
    allowed: bool,
) -> None:
    """Refuse keys that land nowhere, listed with a guess at the reason, unless the user allowed them."""
    keys = [key for leftover in adapter.leftovers for key in leftover.keys]
    if not matched and (unmatched or not adapter.modules):
        raise UnmatchedError(
            "nothing of this adapter lands in the base",
            where=adapter.path,
            expected=f"layers of {base.path.name} ({base.architecture}, {base.layout})",
            found=shown([*map(str, unmatched), *keys]),
            hint=_guess(base, targets, unmatched, none=True),
        )
    refuse_unread(
        adapter,
        allowed=allowed,
        unmatched=unmatched,
        base=f"{base.path.name} ({base.architecture}, {base.layout})",
        guess=_guess(base, targets, unmatched) if unmatched else None,
    )


def check_shape(base: Base, target: Target, adapter: Adapter, module: LayerModule) -> None:
    """Refuse a layer whose sizes are not those of the weight it is meant for."""
    if module.fits(target.shape):
        return
    layer = base.quantised_layer(target)
    if layer is not None:  # codes that cannot be read have shapes of their own
        layer.check()
    expected, found = module.misfit(target.shape)
    raise ShapeError(
        "a layer of this adapter does not fit the base's weight",
        where=f"{adapter.path}: {module.name}",
        expected=f"{expected} ({target.key} is {list(target.shape)})",
        found=found,
        hint=f"the adapter was trained on another model than {base.path.name} ({base.architecture})",
    )


def _guess(
    base: Base, targets: Mapping[ModuleName, Target], unmatched: Sequence[ModuleName], none: bool = False
) -> str:
    present = {name.component for name in targets}
    missing = sorted({name.component for name in unmatched if not homes_of(name, present)})
    model = looks_like(name.path for name in unmatched)
    if stacked_elsewhere(base, targets, unmatched):
        return (
            f"the single files of {record_of(base.architecture).title} stack these projections, and this "
            "family cannot be divided among them, as "
            "LoRA, LoHa, LoKr, DoRA by rows and full differences can: take a base of the layout that the "
            "adapter was made for, a single file or a diffusers folder"
        )
    if none and model is not None and model in resemblances(name.path for name in targets):
        return (
            f"its layers are named as in {model}, which {base.architecture} has, but none of them is there: "
            "they are another model's of that kind, or spelled in a way that is not known"
        )
    if none and model is not None:
        return f"by the names of its layers the adapter is for {model}; the base is {base.architecture}"
    if missing and present:
        return (
            f"the base has no {' or '.join(missing)} (it holds {', '.join(sorted(present))}): "
            f"restrict the bake with {' '.join(option('only', name) for name in sorted(present))}"
        )
    if base.architecture == "unknown":
        return "the base's architecture is not known, so its layers may go by other names"
    if unmatched:
        return (
            f"these layers do not exist in {base.architecture}: the adapter may be for another architecture"
        )
    return "the file holds no layers that could be applied"
