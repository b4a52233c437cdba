"""Merges written down as TOML: a graph of steps that merge models, and a last one that bakes adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from paramerge.apply.given import Adapter, Lora, Para
from paramerge.apply.steps import BakeOptions
from paramerge.errors import UsageError
from paramerge.merge.checkpoints.request import MergeRequest, RequestedStep
from paramerge.models.names import COMPONENTS
from paramerge.resolve.blocks import parse_blocks
from paramerge.strict_toml import read_toml

_TABLES = {"models", "steps"}
_OPTIONS = set(BakeOptions.__dataclass_fields__)
_KINDS: Mapping[str, type[Adapter]] = {"para": Para, "lora": Lora, "adapter": Adapter}


@dataclass(frozen=True)
class TomlRecipe:
    """The request in a TOML file."""

    request: MergeRequest
    adapters: tuple[Adapter, ...]


def read_toml_recipe(path: Path) -> TomlRecipe:
    """Read a recipe; files are named as seen from its folder.

    Raises
    ------
    UsageError
        It is no TOML, steps go round in a circle, or an entry is not understood.
    """
    return _Reader(path, read_toml(path, what="this recipe", error=UsageError)).recipe()


class _Reader:
    """One file under way."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self._only_known(content, _TABLES, "the recipe")
        self.named = self._table(content, "models")
        self.steps = self._table(content, "steps")
        if not self.steps:
            raise self._error("there is no step", "steps", expected='[steps]\nm = {merge = ["a", "b"]}')
        for name, step in self.steps.items():
            if not isinstance(step, dict) or not {"merge", "bake"} & step.keys():
                raise self._error(
                    "a step merges models or bakes one", name, expected="merge = [...], or bake = ..."
                )

    def recipe(self) -> TomlRecipe:
        order = self._order()
        last = self._result()
        bake: Mapping[str, Any] = {}
        top = last
        if "bake" in self.steps[last]:
            bake, top = self.steps[last], self._text(self.steps[last]["bake"], last)
            order.remove(last)
        for name in order:
            if "bake" in self.steps[name]:
                raise self._error(
                    "a step that bakes is not the last one",
                    name,
                    expected="merges, and a bake of the last one",
                )
        files = self._files(top, order)
        numbers = {file: index for index, file in enumerate(files)}
        numbers |= {name: len(files) + index for index, name in enumerate(order)}
        steps = tuple(self._step(name, numbers) for name in order)
        return self._baked(bake, last, [self._path(file) for file in files], steps)

    def _step(self, name: str, numbers: Mapping[str, int]) -> RequestedStep:
        step = dict(self.steps[name])
        inputs = tuple(numbers[given] for given in step.pop("merge"))
        method = self._text(step.pop("method", "weighted-sum"), name)
        blocks = step.pop("blocks", {})
        if not isinstance(blocks, dict):
            blocks = {str(len(inputs)): blocks}
        places = {}
        for place, text in blocks.items():
            if not place.isdigit() or not 1 <= int(place) <= len(inputs):
                raise self._error(
                    "blocks are of an input by its number", name, expected=f"1 to {len(inputs)}", found=place
                )
            places[int(place) - 1] = parse_blocks(self._text(text, name))
        return RequestedStep(method, inputs, step, places, f"{self.path}: {name}")

    def _baked(
        self, bake: Mapping[str, Any], name: str, files: list[Path], steps: tuple[RequestedStep, ...]
    ) -> TomlRecipe:
        self._only_known(bake, {"bake", "adapters", "prune", "variant", *_OPTIONS, *COMPONENTS}, name)
        adapters = bake.get("adapters", [])
        if not isinstance(adapters, list):
            raise self._error("adapters are a list", name, expected='[{lora = "a.safetensors"}]')
        options = {key: value for key, value in bake.items() if key in _OPTIONS}
        only = options.pop("only", [])
        request = MergeRequest(
            tuple(files),
            steps,
            {key: self._path(self._text(bake[key], name)) for key in COMPONENTS if key in bake},
            BakeOptions(only=(only,) if isinstance(only, str) else tuple(only), **options),
            bool(bake.get("prune", False)),
            bake.get("variant"),
        )
        return TomlRecipe(request, tuple(self._adapter(given, name) for given in adapters))

    def _adapter(self, given: Any, name: str) -> Adapter:
        kinds = [kind for kind in _KINDS if isinstance(given, dict) and kind in given]
        if len(kinds) != 1:
            raise self._error(
                "an adapter is a para, a lora or an adapter",
                name,
                expected='{lora = "a.safetensors"}',
                found=given,
            )
        (kind,) = kinds
        self._only_known(given, {kind, "strength", "blocks"}, name)
        path = self._path(self._text(given[kind], name))
        return _KINDS[kind](path, float(given.get("strength", 1.0)), given.get("blocks"))

    def _inputs(self, name: str) -> list[str]:
        step = self.steps[name]
        given = [step["bake"]] if "bake" in step else step["merge"]
        if not isinstance(given, list) or not given or not all(isinstance(each, str) for each in given):
            raise self._error("a step merges a list of models or steps", name, found=given)
        return given

    def _order(self) -> list[str]:
        uses = {name: [each for each in self._inputs(name) if each in self.steps] for name in self.steps}
        try:
            return list(TopologicalSorter(uses).static_order())
        except CycleError as error:
            raise self._error(
                "the steps of this recipe go round in a circle", " -> ".join(reversed(error.args[1]))
            ) from None

    def _result(self) -> str:
        used = {each for name in self.steps for each in self._inputs(name)}
        ends = [name for name in self.steps if name not in used]
        if len(ends) != 1:
            raise self._error(
                "a recipe has one result",
                "steps",
                expected="one step that no other uses",
                found=", ".join(ends),
            )
        return ends[0]

    def _files(self, top: str, order: list[str]) -> list[str]:
        """The models: first the one whose layout the result has, then the others as they are named."""
        first = top
        while first in self.steps:
            first = self._inputs(first)[0]
        others = (each for name in order for each in self._inputs(name) if each not in self.steps)
        return list(dict.fromkeys([first, *others]))

    def _path(self, name: str) -> Path:
        return self.path.parent / self._text(self.named.get(name, name), name)

    def _table(self, content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        table = content.get(name, {})
        if not isinstance(table, dict):
            raise self._error("this is no table", name, expected=f"[{name}]")
        return table

    def _text(self, value: object, name: str) -> str:
        if not isinstance(value, str):
            raise self._error("this is no text", name, found=value)
        return value

    def _only_known(self, given: Mapping[str, Any], known: set[str], name: str) -> None:
        for key in given:
            if key not in known:
                raise self._error(
                    "an entry is not understood", f"{name}: {key}", expected=", ".join(sorted(known))
                )

    def _error(self, what: str, name: str, *, expected: object = None, found: object = None) -> UsageError:
        return UsageError(what, where=f"{self.path}: {name}", expected=expected, found=found)
