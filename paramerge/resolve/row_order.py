"""Models whose files disagree on the order of rows in stacked projections, under one name and one shape."""

from __future__ import annotations

from collections.abc import Iterable

from paramerge.adapters import Adapter
from paramerge.checkpoints.layout import Base
from paramerge.errors import FamilyError
from paramerge.expressions import compiled
from paramerge.models.names import ModuleName
from paramerge.models.registry import record_of
from paramerge.wording import option


def refuse_unknown_rows(base: Base, adapter: Adapter, names: Iterable[ModuleName]) -> None:
    """Refuse an adapter on layers whose rows may be in another order than the base's.

    Raises
    ------
    FamilyError
        ``base`` is of such a model, and one of the ``names`` is such a layer.
    """
    layers = record_of(base.architecture).unordered_rows
    found = [name for name in names if layers is not None and compiled(layers).fullmatch(name.path)]
    if found:
        raise FamilyError(
            "the order of the rows in this adapter's q, k and v is not known",
            where=f"{adapter.path}: {found[0]}",
            expected=f"{base.architecture}'s own order, which interleaves q, k and v head by head",
            found=f"{len(found)} layers of one name and shape in both orders: most adapters stack q, k and v",
            hint=f"leave these layers out ({option('only')} with patterns of the others), or give the "
            "adapter and the base with q, k and v as layers of their own",
        )
