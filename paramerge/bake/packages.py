"""The packages beside paramerge that a plan needs: those that added a family, a dialect and the like."""

from __future__ import annotations

from collections.abc import Iterator

from paramerge.adapters.registry import FAMILIES
from paramerge.bake.plan import Plan
from paramerge.formats.registry import DIALECTS
from paramerge.models.registry import ARCHITECTURES, record_of
from paramerge.plugins import Package
from paramerge.storage.registry import SCHEMES


def used_packages(plan: Plan) -> dict[str, str]:
    """The version of each package that added something that the plan uses, by its name."""
    merged = plan.merged.packages if plan.merged is not None else {}
    return dict(sorted({**merged, **dict(_of_kinds(plan))}.items()))


def _of_kinds(plan: Plan) -> Iterator[Package]:
    adapters = [step.adapter for step in plan.steps]
    bases = (plan.base, *(plan.merged.others if plan.merged is not None else ()))
    families = dict.fromkeys(module.family for adapter in adapters for module in adapter.modules.values())
    schemes = dict.fromkeys(layer.scheme.name for layer in plan.dequantised if layer.scheme is not None)
    for package in (
        *map(FAMILIES.package_of, families),
        *(DIALECTS.package_of(adapter.dialect) for adapter in adapters),
        *(ARCHITECTURES.package_of(record_of(base.architecture).name) for base in bases),
        *map(SCHEMES.package_of, schemes),
    ):
        if package is not None:
            yield package
