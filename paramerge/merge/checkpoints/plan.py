"""From models and a graph of merges to a plan of every tensor of the output.

The plan is a bake's, with the first model as its base, so that adapters, the output and the recipe are as
there; a merged tensor has values of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from paramerge.adapters import Adapter
from paramerge.apply.steps import BakeOptions, Step
from paramerge.apply.tensor_plan import matrix_shape
from paramerge.apply.values import Values
from paramerge.bake.merged_models import MergedModels
from paramerge.bake.plan import Made, Plan, make_plan
from paramerge.bake.planned_step import is_selected, selection_hint
from paramerge.checkpoints.layout import Base
from paramerge.errors import ArchitectureError, CheckpointError, UsageError
from paramerge.files.dtypes import is_float
from paramerge.files.tensors import StoredTensor
from paramerge.listing import listed
from paramerge.merge.checkpoints.cautions import said_of
from paramerge.merge.checkpoints.graph import MergeGraph, MergeStep
from paramerge.merge.checkpoints.ingredients import (
    Ingredient,
    Merged,
    MergedValues,
    Piece,
    Rows,
    stored_tensors,
)
from paramerge.merge.checkpoints.meeting import Model, Place
from paramerge.merge.methods.registry import REGISTRY
from paramerge.models.architecture import UNKNOWN
from paramerge.models.names import COMPONENTS, ModuleName
from paramerge.models.registry import family_of
from paramerge.resolve.blocks import block_of
from paramerge.storage.scheme import not_read
from paramerge.wording import option

_TRAINING_STATE = re.compile(r"(^|\.)(optimizer\w*|lr_schedulers?|callbacks|loops|epoch|global_step)(\.|$)")


def plan_merge(
    models: Sequence[Base], graph: MergeGraph, steps: Sequence[tuple[Step, Adapter]], options: BakeOptions
) -> Plan:
    """Plan every tensor of the output. Only headers have been read.

    Raises
    ------
    ArchitectureError
        Models of different architectures.
    ShapeError
        A tensor has another shape in one of the models.
    CheckpointError
        A model lacks tensors that the first has, and ``allow_unmatched`` is not set; a tensor is quantised.
    UsageError
        Block weights, components or patterns that do not apply to these models.
    """
    return _Planning(models, graph, options).plan(steps)


@dataclass(frozen=True)
class _Missing:
    """A tensor of the first model that another lacks."""

    model: int
    place: Place


class _Planning:
    """One plan under way."""

    def __init__(self, models: Sequence[Base], graph: MergeGraph, options: BakeOptions) -> None:
        self.bases = tuple(models)
        self.graph, self.options = graph, options
        merged = {i for step in graph.steps for i in step.inputs if i < len(models)}
        _check_architectures([models[i] for i in sorted(merged | {0})])
        self.models = [Model(base) for base in models]
        self.first = self.models[0]
        self.missing: list[_Missing] = []
        self.kept = 0
        for component, index in graph.components.items():
            self._check_component(component, index)

    def plan(self, steps: Sequence[tuple[Step, Adapter]]) -> Plan:
        values: dict[tuple[str, str], Values] = {}
        pruned: set[tuple[str, str]] = set()
        for place in self.first.places():
            if self.graph.prune and self._is_left_out(place):
                pruned.add((place.component, place.key))
            elif (made := self._made(place)) is not None:
                values[place.component, place.key] = made
        if self.missing and not self.options.allow_unmatched:
            raise self._missing_error()
        described = MergedModels(
            self.bases,
            tuple(self._described(step) for step in self.graph.steps),
            {component: f"model {index + 1}" for component, index in self.graph.components.items()},
            self.graph.prune,
            {
                "merged": len(values),
                "kept": self.kept,
                "missing": len({(m.place.component, m.place.key) for m in self.missing}),
                "pruned": len(pruned),
            },
            self._title(),
            dict(package for step in self.graph.steps if (package := REGISTRY.package_of(step.method.name))),
        )
        warnings = (*said_of(self.bases, self.graph), *self._unused())
        return make_plan(
            self.bases[0], steps, self.options, Made(described, values, frozenset(pruned), warnings)
        )

    def _made(self, place: Place) -> MergedValues | None:
        """The values of a tensor that is not the first model's as it is."""
        info = place.tensor.info
        name = self.first.name_of(place)
        if place.component not in COMPONENTS or not info.elements:
            return None
        if place.file.is_part(place.key):
            return None
        if not is_float(info.dtype) and place.key not in place.file.quantised:
            self.kept += 1  # position_ids and other whole numbers
            return None
        source = self.graph.components.get(place.component)
        if source is None and (not self.graph.steps or not is_selected(name, self.options.only)):
            return None
        shape = matrix_shape(place.tensor.shape)
        own = Rows((Piece(0, shape[0], place.tensor),))
        if source is not None:
            made: Ingredient | None = self._rows(source, place)
        else:
            made = self._result(place, name, own)
        if made is None or made == own:
            self.kept += 1
            return None
        for tensor in (place.tensor, *stored_tensors(made)):
            self._check_plain(tensor)
        return MergedValues(made, shape)

    def _result(self, place: Place, name: ModuleName, own: Rows) -> Ingredient | None:
        """The last step's result for the tensor; None where a model lacks it."""
        found: dict[int, Ingredient | None] = {0: own}
        for number, step in enumerate(self.graph.steps, len(self.models)):
            parameters = step.method.at(step.parameters, self._factors(step, name))
            alone = step.method.same_as(**parameters)
            wanted = step.inputs if alone is None else (step.inputs[alone],)
            parts = []
            for index in wanted:
                if index not in found:
                    found[index] = self._rows(index, place)
                parts.append(found[index])
            if any(part is None for part in parts):
                found[number] = None
            elif alone is not None:
                found[number] = parts[0]
            else:
                given = tuple(part for part in parts if part is not None)
                self._check_inputs(step, given, place)
                found[number] = Merged(str(name), step.method, parameters, given)
        return found[len(self.models) + len(self.graph.steps) - 1]

    def _rows(self, index: int, place: Place) -> Rows | None:
        rows = self.models[index].rows_of(place, self.first)
        if rows is None and self.first.views_of(place):
            self.missing.append(_Missing(index, place))
        return rows  # a tensor that no layout names (a logit_scale) is missing in some, and kept

    def _factors(self, step: MergeStep, name: ModuleName) -> list[float]:
        factors = [1.0] * len(step.inputs)
        if step.blocks:
            architecture = self.bases[0].architecture
            block = block_of(name, architecture)
            for index, weights in step.blocks.items():
                factors[index] = weights.resolve(architecture).get(block, 1.0)
        return factors

    def _check_inputs(self, step: MergeStep, given: Sequence[Ingredient], place: Place) -> None:
        """Refuse a model with fewer input channels, unless only the difference of two of them is added."""
        columns = [
            {piece.columns for part in _leaves(ingredient) for piece in part.pieces} for ingredient in given
        ]
        own = matrix_shape(place.tensor.shape)[1]
        if all(found == {own} for found in columns):
            return
        if step.method.one_sided and columns[0] == {own} and columns[1] == columns[2]:
            return
        tensor = next(
            t for ingredient in given for t in stored_tensors(ingredient) if t.shape != place.tensor.shape
        )
        raise self.first.shape_error(place, place.tensor.shape, tensor)

    def _check_plain(self, tensor: StoredTensor) -> None:
        if not is_float(tensor.dtype):
            raise not_read(f"{tensor.path}: {tensor.key}", f"codes of {tensor.dtype}")

    def _check_component(self, component: str, index: int) -> None:
        for model in (self.first, self.models[index]):
            if component not in model.components:
                raise CheckpointError(
                    f"there is no {component} in this model",
                    where=model.base.path,
                    expected=f"a {component} to be replaced" if model is self.first else f"a {component}",
                    found=", ".join(name for name in COMPONENTS if name in model.components),
                )

    def _is_left_out(self, place: Place) -> bool:
        return place.component == "ema" or (
            place.component == "other" and _TRAINING_STATE.search(place.key) is not None
        )

    def _missing_error(self) -> CheckpointError:
        index = self.missing[0].model
        names = [str(self.first.name_of(m.place)) for m in self.missing if m.model == index]
        components = {m.place.component for m in self.missing if m.model == index}
        absent = sorted(components - self.models[index].components)
        hint = f"add {option('allow_unmatched')} to take them from the first model"
        if absent:
            present = [name for name in COMPONENTS if name in self.models[index].components]
            hint = f"choose what both have ({option('only', present[0])}), or {hint}"
        return CheckpointError(
            f"this model lacks {len(names)} tensors that the first one has"
            + (f": it has no {' and no '.join(absent)}" if absent else ""),
            where=self.bases[index].path,
            expected=f"all that are in {self.bases[0].path.name}",
            found=f"not there: {listed(names)}",
            hint=hint,
        )

    def _unused(self) -> Iterator[str]:
        """Patterns and blocks without any tensor are refused; tensors that only others have are warned of."""
        if self.options.only and not any(
            is_selected(self.first.name_of(place), self.options.only) for place in self.first.places()
        ):
            raise UsageError(
                "nothing of these models is selected",
                where=option("only"),
                expected="a component (unet, text_encoder ...) or a pattern such as 'unet.*attn2*'",
                found=" ".join(self.options.only),
                hint=selection_hint(self.options.only, map(self.first.name_of, self.first.places())),
            )
        for index in sorted(
            {i for step in self.graph.steps for i in step.inputs if 0 < i < len(self.models)}
        ):
            model = self.models[index]
            extra = [
                place
                for place in model.places()
                if place.component in COMPONENTS
                and is_float(place.tensor.dtype)
                and is_selected(model.name_of(place), self.options.only)
                and not self.first.has(place, model)
            ]
            if extra:
                names = [str(model.name_of(place)) for place in extra]
                yield (
                    f"{len(names)} tensors of {model.base.path.name} are not in {self.bases[0].path.name}, "
                    f"and are left away: {listed(names, 3)}"
                )

    def _described(self, step: MergeStep) -> dict[str, object]:
        architecture = self.bases[0].architecture
        blocks = {
            f"input {index + 1}": dict(weights.resolve(architecture))
            for index, weights in step.blocks.items()
        }
        return {
            "method": step.method.name,
            "inputs": [self._called(index) for index in step.inputs],
            **{
                name: list(value) if isinstance(value, tuple) else value
                for name, value in step.parameters.items()
            },
            **({"blocks": blocks} if blocks else {}),
        }

    def _called(self, index: int) -> str:
        count = len(self.models)
        return f"model {index + 1}" if index < count else f"step {index - count + 1}"

    def _title(self) -> str:
        return ", ".join(dict.fromkeys(step.method.name for step in self.graph.steps)) or "components"


def _leaves(ingredient: Ingredient) -> Iterator[Rows]:
    if isinstance(ingredient, Rows):
        yield ingredient
        return
    for part in ingredient.ingredients:
        yield from _leaves(part)


def _check_architectures(bases: Sequence[Base]) -> None:
    first = bases[0]
    for other in bases[1:]:
        names = {first.architecture, other.architecture}
        if UNKNOWN in names or family_of(first.architecture) == family_of(other.architecture):
            continue
        raise ArchitectureError(
            f"{other.architecture} and {first.architecture} cannot be merged",
            where=other.path,
            expected=f"a model of {first.architecture}, as {first.path.name}",
            found=other.architecture,
        )
