"""Models whose files disagree on the order of rows in stacked projections, under one name and one shape.

MiniMax H3's own files interleave q, k and v head by head, ``[q_0, k_0, v_0, q_1, ...]``; most of its adapters
stack them, ``[q_0, q_1, ..., k_0, ...]``. Neither the names nor the shapes tell, so the user does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from paramerge.adapters import Adapter, LayerModule
from paramerge.checkpoints.layout import Base
from paramerge.checkpoints.targets import Target
from paramerge.errors import FamilyError, ShapeError, UsageError
from paramerge.expressions import compiled
from paramerge.models.names import ModuleName
from paramerge.models.registry import record_of
from paramerge.wording import option

_PROJECTIONS = 3
_QUERY_NORM = "q_norm.weight"


def in_row_order(base: Base, adapter: Adapter, names: Collection[ModuleName]) -> Adapter:
    """``adapter`` with the rows of those ``names`` that have several orders in the order of the base.

    Raises
    ------
    UsageError
        The user named an order, and the base has no such layers; or the width of a head is not known.
    FamilyError
        The user named none, or another order than the base's for a family whose rows cannot be reordered.
    ShapeError
        The rows are no whole heads.
    """
    stated = adapter.interpretation.rows
    if stated is not None and record_of(base.architecture).unordered_rows is None:
        raise UsageError(
            "an order of rows was given, and the rows of this base's layers have one order only",
            where=base.path,
            expected="a folder of MiniMax H3 as it was published",
            found=f"{base.architecture}, {base.layout}, {option('rows', stated)}",
            hint=f"leave {option('rows')} away",
        )
    found = _layers_of_several_orders(base, names)
    if stated is None:
        _refuse_unknown_rows(base, adapter, found)
    if stated is None or stated == "interleaved":
        return adapter
    modules = dict(adapter.modules)
    for name in found:
        modules[name] = _interleaved(base, adapter, modules[name])
    return replace(adapter, modules=modules)


def refuse_unknown_rows(base: Base, adapter: Adapter, names: Collection[ModuleName]) -> None:
    """Refuse an adapter on layers whose rows may be in another order than the base's.

    Raises
    ------
    FamilyError
        ``base`` is of such a model, and one of the ``names`` is such a layer.
    """
    _refuse_unknown_rows(base, adapter, _layers_of_several_orders(base, names))


def _layers_of_several_orders(base: Base, names: Collection[ModuleName]) -> list[ModuleName]:
    layers = record_of(base.architecture).unordered_rows
    if layers is None:
        return []
    pattern = compiled(layers)
    return [name for name in names if pattern.fullmatch(name.path)]


def _refuse_unknown_rows(base: Base, adapter: Adapter, found: Collection[ModuleName]) -> None:
    for name in found:
        raise FamilyError(
            "the order of the rows in this adapter's q, k and v is not known",
            where=f"{adapter.path}: {name}",
            expected=f"{base.architecture}'s own order, which interleaves q, k and v head by head",
            found=f"{len(found)} layers of one name and shape in both orders: most adapters stack q, k and v",
            hint=f"if the adapter stacks them, bake it with {option('rows', 'stacked')}; if it was trained "
            f"on the model's own files, with {option('rows', 'interleaved')}",
        )


def _interleaved(base: Base, adapter: Adapter, module: LayerModule) -> LayerModule:
    """The module on stacked rows, with its rows head by head."""
    target = _target(base, module.name)
    rows, width = target.shape[0], adapter.interpretation.head_width or _head_width(base, target)
    if width is None:
        raise UsageError(
            "the width of a head is not known",
            where=f"{base.path}: {target.key}",
            expected=f"a {_QUERY_NORM} beside it, or the width in {option('rows')}",
            hint=f"give it: {option('rows', 'stacked:128')}, for the published sizes of MiniMax H3",
        )
    if rows % (_PROJECTIONS * width):
        raise ShapeError(
            "the rows of this layer are not q, k and v of whole heads",
            where=f"{base.path}: {target.key}",
            expected=f"a multiple of 3 x {width} rows",
            found=f"{rows} rows",
            hint=f"give the width of a head: {option('rows', 'stacked:128')}",
        )
    if module.out_features not in (None, rows):
        return module  # a misfit, to be refused as any other
    ordered = module.part(module.name, tuple(_by_heads(rows // _PROJECTIONS, width)))
    if ordered is None:
        raise FamilyError(
            "the rows of this adapter's q, k and v cannot be put into the base's order",
            where=f"{adapter.path}: {module.name}",
            expected="a family that changes each row by itself (LoRA, LoHa, LoKr, full), or a PaRa",
            found=module.family,
            hint=f"leave these layers out: {option('only')} with patterns of the others",
        )
    return ordered


def _by_heads(rows: int, width: int) -> Iterator[tuple[int, int]]:
    """The runs of stacked projections of ``rows`` each, in the order q, k and v of each head."""
    for start in range(0, rows, width):
        for projection in range(_PROJECTIONS):
            yield projection * rows + start, projection * rows + start + width


def _target(base: Base, name: ModuleName) -> Target:
    return next(file.reachable[name] for file in base.files if name in file.reachable)


def _head_width(base: Base, target: Target) -> int | None:
    """The size of the norm of one head's queries, beside the layer."""
    layer = target.key.rpartition("qkv_proj")[0]
    sizes = (
        info.shape
        for file in base.files
        for key, info in file.header.tensors.items()
        if key == layer + _QUERY_NORM
    )
    return next((shape[0] for shape in sizes if len(shape) == 1), None)
