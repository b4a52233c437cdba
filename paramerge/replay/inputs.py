"""The inputs of a recipe, found by their hashes and opened as they were."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from paramerge import shipped
from paramerge.adapters import Adapter
from paramerge.checkpoints.layout import (
    COMPONENT_FILE,
    FOLDERS,
    Base,
    open_base,
    open_component,
)
from paramerge.errors import MissingInputError, ParamergeError
from paramerge.files.file_names import readable_name
from paramerge.files.finder import MODELS_VARIABLE, Finder, model_folders
from paramerge.files.hashing import source_sha256
from paramerge.files.source import Source
from paramerge.formats import open_adapter
from paramerge.replay.reading import recipe_of
from paramerge.replay.recipe import FileRecord, ModelRecord, Recipe, StepRecord
from paramerge.wording import option

_VARIANT = re.compile(r"\.(\w+?)(?:-\d+-of-\d+)?\.safetensors$")


class Inputs:
    """A search for the inputs of recipes.

    Looked for in ``PARAMERGE_MODELS``, in ``models``, in the Hugging Face cache, among what ships, and in the
    folders ``near``.
    """

    def __init__(
        self, models: Iterable[Path], near: Iterable[Path], note: Callable[[str], None] = lambda _: None
    ) -> None:
        ours = shipped.folder()
        self._given = (*model_folders(), *models)
        self._near = tuple(near)
        self._finder = Finder((*self._given, *([ours] if ours else [])), self._near, note=note)

    def models(self, recipe: Recipe, base: Base | None = None) -> list[Base | None]:
        """Each model, the first one ``base`` where that is given; None for what is not there."""
        component_of = {
            index: name for name, index in (recipe.merge.components if recipe.merge else {}).items()
        }
        first, *others = recipe.models
        return [
            base if base is not None else self.model(first, companions=recipe.companions),
            *(self.model(model, component_of.get(index)) for index, model in enumerate(others, 1)),
        ]

    def model(
        self, record: ModelRecord, component: str | None = None, companions: Sequence[FileRecord] = ()
    ) -> Base | None:
        """The checkpoint, whose files all have the hashes of the recipe; None where it is not there.

        Of several folders with these weights one with the recipe's ``companions`` is taken, if there is one.
        """
        return _first(
            (open_it for path in self._found(record) for open_it in self._ways(record, path, component)),
            lambda opened: opened.layout == record.layout and _same(opened, record.files),
            lambda opened: not companions or not other_companions(opened, companions),
        )

    def adapter(self, record: StepRecord) -> Adapter | None:
        """The adapter with all its files; None where it is not there."""
        places = (
            place
            for path in self._found(record)
            for place in (path, path.parent)[: len(record.files)]  # a folder that PEFT saved has two files
        )
        return _first(
            (partial(open_adapter, place, record.kind, record.interpretation) for place in places),
            lambda opened: _have(opened.opened, record.files),
        )

    def _found(self, record: ModelRecord | StepRecord) -> Iterator[Path]:
        return self._finder.find([record.files[0].sha256], record.files[0].size)

    def missing(
        self, recipe: Recipe, models: Sequence[Base | None], adapters: Sequence[Adapter | None], where: object
    ) -> MissingInputError:
        """The error that lists all that is not there, and where it was looked for."""
        pairs: list[tuple[ModelRecord | StepRecord, Base | Adapter | None]]
        pairs = [*zip(recipe.models, models, strict=True), *zip(recipe.steps, adapters, strict=True)]
        absent = [record for record, found in pairs if found is None]
        listed = "; ".join(_described(file) for record in absent for file in record.files[:1])
        places = [*(f"{MODELS_VARIABLE} or {option('models')}: {folder}" for folder in self._given)]
        places += ["the Hugging Face cache", "what ships", *(str(folder) for folder in self._near)]
        hint = f"name the folder where it is with {option('models')}, or put it into {MODELS_VARIABLE}"
        made = [record for record in absent if isinstance(record, ModelRecord) and self._can_be_made(record)]
        if made:
            hint = (
                f"{made[0].files[0].name or 'the first of them'} was itself made from inputs that are here: "
                "make it again from its own recipe (base_recipe), then this one"
            )
        unread = tuple(f"{path}: {reason}" for path, reason in self._finder.unread.items())
        error = MissingInputError(
            f"{len(absent)} of {len(pairs)} inputs of this recipe are not there",
            where=where,
            expected=listed,
            found="; ".join([f"none of these in {', '.join(places)}", *unread]),
            hint=hint,
        )
        error.unread = unread
        return error

    def _can_be_made(self, record: ModelRecord) -> bool:
        """Whether a model that is not there has a recipe whose own inputs are."""
        if record.recipe is None:
            return False
        try:
            recipe = recipe_of(record.recipe, "base_recipe")
            return all(next(self._finder.find([f.sha256], f.size), None) is not None for f in recipe.files)
        except ParamergeError:
            return False

    def _ways(self, record: ModelRecord, path: Path, component: str | None) -> Iterator[Callable[[], Base]]:
        """The ways to open the model of which ``path`` is the first file."""
        if record.layout == COMPONENT_FILE:
            yield partial(open_component, path, component or "vae")
        elif record.layout not in FOLDERS:
            yield partial(open_base, path)
        else:
            names = [PurePosixPath(file.name or "") for file in record.files]
            depth = len(names[0].parts)
            folder = path.parents[depth - 1] if 0 < depth <= len(path.parents) else path
            if all((folder / name).is_file() for name in names):
                yield partial(open_base, folder)
                for variant in {found[1] for name in names if (found := _VARIANT.search(name.name))}:
                    yield partial(open_base, folder, variant)


_Opened = TypeVar("_Opened")


def _first(
    ways: Iterable[Callable[[], _Opened]],
    wanted: Callable[[_Opened], bool],
    best: Callable[[_Opened], bool] = lambda _: True,
) -> _Opened | None:
    """The first that is opened, wanted and best, or wanted alone; without any, the error of one that could
    not be opened."""
    fault: ParamergeError | None = None
    second: _Opened | None = None
    for open_it in ways:
        try:
            opened = open_it()
        except ParamergeError as error:
            fault = fault or error
            continue
        if wanted(opened):
            if best(opened):
                return opened
            second = second or opened
    if second is None and fault is not None:
        raise fault
    return second


def other_companions(base: Base, files: Sequence[FileRecord]) -> tuple[str, ...]:
    """The files beside a folder's weights that are not those of the recipe: changed, missing or added."""
    then = {file.name: file.sha256 for file in files}
    now = {
        readable_name(str(path)): source_sha256(source)
        for path, source in zip(base.companions, base.companion_files, strict=True)
    }
    return tuple(sorted(str(name) for name in {*then, *now} if then.get(name) != now.get(str(name))))


def _same(model: Base, files: Sequence[FileRecord]) -> bool:
    """Whether a model consists of the files of the recipe, in a folder under the same names."""
    if model.is_folder:
        names = [readable_name(str(file.relative)) for file in model.files]
        if names != [file.name for file in files]:
            return False
    return _have(model.weight_sources, files)


def _have(sources: Sequence[Source], files: Sequence[FileRecord]) -> bool:
    return [source.size for source in sources] == [file.size for file in files] and all(
        source_sha256(source) == file.sha256 for source, file in zip(sources, files, strict=True)
    )


def _described(file: FileRecord) -> str:
    return f"{file.name or 'a file'} (sha256 {file.sha256}, {file.size} bytes)"
