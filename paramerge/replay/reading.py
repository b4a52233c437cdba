"""Recipes read from files, which anybody may have written: each entry is checked before it is used."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from paramerge.apply.steps import BakeOptions, Kind
from paramerge.errors import FileFormatError, ParamergeError
from paramerge.files.header import read_header
from paramerge.files.recipe_text import RECIPE_KEY, parsed_recipe
from paramerge.files.staging import RECIPE_FILE
from paramerge.interpretation import Interpretation
from paramerge.merge.checkpoints.request import RequestedStep
from paramerge.models.names import COMPONENTS
from paramerge.regular_files import is_there
from paramerge.replay.recipe import FileRecord, MergeRecord, ModelRecord, Recipe, StepRecord
from paramerge.resolve.blocks import BlockWeights
from paramerge.strict_json import read_object

VERSIONS = (1, 2)
"""The recipes that are understood."""

LONGEST = 64 << 20
"""Bytes of a recipe."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBERED = re.compile(r"(model|step) ([1-9]\d{0,5})")
_OPTIONS = (
    *("merge", "gamma", "only", "dtype", "allow_unmatched", "private"),
    *("requantise", "quantise", "allow_other_model", "rounding", "lift", "accept_loss", "card"),
)
_INTERPRETATION = ("lokr_scale", "krona", "rows", "alpha", "released")


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file's metadata, in a folder that paramerge wrote, or in a file of JSON.

    Raises
    ------
    FileFormatError
        There is none, it is of a version that is not known, or an entry is not as it must be.
    """
    return recipe_of(content_of(path), path)


def content_of(path: Path) -> Mapping[str, Any]:
    """The content of a recipe, not yet checked; for the rest see :func:`read_recipe`."""
    if path.is_dir():
        if not is_there(path / RECIPE_FILE):
            raise _none(path, f"{RECIPE_FILE} in the folder")
        return read_object(path / RECIPE_FILE, limit=LONGEST)
    if path.suffix == ".json":
        return read_object(path, limit=LONGEST)
    text = read_header(path).metadata.get(RECIPE_KEY)
    if text is None:
        raise _none(path, f"{RECIPE_KEY} in the metadata")
    try:
        return parsed_recipe(text)
    except ValueError as error:
        raise FileFormatError("the recipe cannot be read", where=path, found=str(error)) from None


def recipe_of(content: Mapping[str, Any], where: object) -> Recipe:
    """The recipe that JSON data are; raises as :func:`read_recipe`."""
    return _Reader(where).recipe(content)


def _none(path: Path, expected: str) -> FileFormatError:
    return FileFormatError(
        "there is no recipe here",
        where=path,
        expected=expected,
        hint="only what paramerge bake, or paramerge merge of checkpoints, wrote can be done again",
    )


class _Reader:
    """One recipe under way."""

    def __init__(self, where: object) -> None:
        self.where = where

    def recipe(self, content: Mapping[str, Any]) -> Recipe:
        version = content.get("recipe")
        if not {"recipe", "base", "steps"} <= content.keys():
            raise FileFormatError(
                "this is no recipe of a checkpoint",
                where=self.where,
                expected="recipe, base, steps and options",
                found=", ".join(list(content)[:8]) or "nothing",
                hint="only what paramerge bake, or paramerge merge of checkpoints, wrote can be done again",
            )
        if isinstance(version, bool) or version not in VERSIONS:
            raise FileFormatError(
                "the recipe is of a version that this paramerge does not know",
                where=self.where,
                expected=" or ".join(map(str, VERSIONS)),
                found=version,
                hint="install a newer paramerge",
            )
        options = self._table(content.get("options", {}), "options")
        shared = {key: options[key] for key in _INTERPRETATION if key in options}
        earlier = content.get("base_recipe")
        base = self._model(content["base"], "base", earlier if isinstance(earlier, dict) else None)
        steps = [
            self._step(self._table(step, f"steps {number}"), f"steps {number}", shared)
            for number, step in enumerate(self._list(content["steps"], "steps"), 1)
        ]
        merge = self._merge(self._table(content.get("merge"), "merge")) if version == 2 else None
        return Recipe(
            {
                str(key): str(value)
                for key, value in self._table(content.get("versions", {}), "versions").items()
            },
            base,
            tuple(steps),
            replace(self._options(options), content_hash="content" in content),
            merge,
            self._companions(content),
            {
                str(key): str(value)
                for key, value in self._table(content.get("packages", {}), "packages").items()
            },
        )

    def _companions(self, content: Mapping[str, Any]) -> tuple[FileRecord, ...]:
        return tuple(
            self._file(self._table(file, "companions"), "companions")
            for file in self._list(content.get("companions", []), "companions")
        )

    def _options(self, options: Mapping[str, Any]) -> BakeOptions:
        given = {name: options[name] for name in _OPTIONS if name in options}
        only = self._list(given.pop("only", []), "options: only")
        flags = ("allow_unmatched", "private", "requantise", "allow_other_model", "accept_loss", "card")
        wrong = [name for name in flags if not isinstance(given.get(name, False), bool)]
        texts = (*only, given.get("dtype", ""), given.get("quantise", ""), given.get("lift") or "")
        if wrong or not all(isinstance(text, str) for text in texts):
            raise self._error(
                "options: " + (wrong[0] if wrong else "only, dtype, quantise, lift"), "text, true or false"
            )
        if not isinstance(given.get("gamma"), float | int | None) or isinstance(given.get("gamma"), bool):
            raise self._error("options: gamma", "a number", given["gamma"])
        checked: BakeOptions = self._checked("options", lambda: BakeOptions(only=tuple(only), **given))
        return checked

    def _model(self, content: Any, name: str, recipe: Mapping[str, Any] | None) -> ModelRecord:
        model = self._table(content, name)
        called = model.get("name")
        return ModelRecord(
            called if isinstance(called, str) else None,
            self._text(model.get("layout"), f"{name}: layout"),
            self._files(model, name),
            recipe,
        )

    def _step(self, step: Mapping[str, Any], name: str, shared: Mapping[str, Any]) -> StepRecord:
        kind: Any = step.get("kind")
        if kind not in get_args(Kind):
            raise self._error(f"{name}: kind", ", ".join(get_args(Kind)), kind)
        own = {**shared, **self._table(step.get("interpretation", {}), f"{name}: interpretation")}
        blocks = self._table(step.get("blocks", {}), f"{name}: blocks")
        named = tuple(
            (block, self._number(self._table(use, f"{name}: {block}").get("weight"), f"{name}: {block}"))
            for block, use in blocks.items()
        )
        return StepRecord(
            kind,
            self._number(step.get("strength"), f"{name}: strength"),
            BlockWeights(named) if named else None,
            self._files(step, name),
            self._checked(name, lambda: Interpretation(**{key: own.get(key) for key in _INTERPRETATION})),
        )

    def _files(self, owner: Mapping[str, Any], name: str) -> tuple[FileRecord, ...]:
        files = self._list(owner.get("files"), f"{name}: files")
        if not files:
            raise self._error(f"{name}: files", "at least one file")
        return tuple(self._file(self._table(file, f"{name}: files"), name) for file in files)

    def _file(self, file: Mapping[str, Any], name: str) -> FileRecord:
        digest, size, called = file.get("sha256"), file.get("bytes"), file.get("name")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise self._error(f"{name}: sha256", "64 digits, 0 to 9 and a to f", digest)
        if not isinstance(size, int) or isinstance(size, bool):
            raise self._error(f"{name}: bytes", "a whole number", size)
        return FileRecord(called if isinstance(called, str) else None, digest, size)

    def _merge(self, merge: Mapping[str, Any]) -> MergeRecord:
        models = tuple(
            self._model(model, f"model {number}", self._own(model))
            for number, model in enumerate(self._list(merge.get("models"), "merge: models"), 2)
        )
        count = 1 + len(models)
        steps = tuple(
            self._merging(dict(self._table(step, f"merge: step {number + 1}")), number, count)
            for number, step in enumerate(self._list(merge.get("steps"), "merge: steps"))
        )
        components = {
            component: self._place(model, count, 0, f"merge: {component}")
            for component, model in self._table(merge.get("components", {}), "merge: components").items()
        }
        if unknown := sorted(components.keys() - set(COMPONENTS)):
            raise self._error("merge: components", ", ".join(COMPONENTS), unknown[0])
        return MergeRecord(models, steps, components, merge.get("prune") is True)

    def _merging(self, step: dict[str, Any], number: int, count: int) -> RequestedStep:
        name = f"merge: step {number + 1}"
        method = self._text(step.pop("method", None), f"{name}: method")
        inputs = tuple(
            self._place(given, count, number, name)
            for given in self._list(step.pop("inputs", None), f"{name}: inputs")
        )
        blocks = {}
        for place, weights in self._table(step.pop("blocks", {}), f"{name}: blocks").items():
            word, _, digits = place.partition(" ")
            if word != "input" or not digits.isdecimal() or not 1 <= int(digits) <= len(inputs):
                raise self._error(f"{name}: blocks", f"input 1 to input {len(inputs)}", place)
            pairs = self._table(weights, f"{name}: {place}").items()
            blocks[int(digits) - 1] = BlockWeights(
                tuple((block, self._number(weight, f"{name}: {block}")) for block, weight in pairs)
            )
        return RequestedStep(method, inputs, step, blocks, f"{self.where}: {name}")

    def _place(self, given: Any, models: int, before: int, name: str) -> int:
        """The number of a model or of an earlier step: steps that need later ones would go round."""
        found = _NUMBERED.fullmatch(given) if isinstance(given, str) else None
        number = int(found[2]) - 1 if found else -1
        limit = models if found and found[1] == "model" else before
        if found is None or number >= limit:
            steps = f", or step 1 to step {before}, which come before it" if before else ""
            raise self._error(name, f"model 1 to model {models}{steps}", given)
        return number if found[1] == "model" else models + number

    def _own(self, model: Any) -> Mapping[str, Any] | None:
        recipe = model.get("recipe") if isinstance(model, dict) else None
        return recipe if isinstance(recipe, dict) else None

    def _table(self, value: Any, name: str) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._error(name, "an object", value)
        return value

    def _list(self, value: Any, name: str) -> list[Any]:
        if not isinstance(value, list):
            raise self._error(name, "a list", value)
        return value

    def _text(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise self._error(name, "text", value)
        return value

    def _number(self, value: Any, name: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._error(name, "a number", value)
        return float(value)

    def _checked(self, name: str, make: Any) -> Any:
        """The result of ``make``; a value that it refuses is a fault of the recipe."""
        try:
            return make()
        except (ParamergeError, TypeError) as error:
            raise self._error(name, "options of a bake", getattr(error, "what", error)) from None

    def _error(self, name: str, expected: object, found: object = None) -> FileFormatError:
        return FileFormatError(
            "an entry of the recipe is not what it must be",
            where=f"{self.where}: {name}",
            expected=expected,
            found="nothing" if found is None else found,
        )
