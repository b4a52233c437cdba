"""``paramerge.replay``: a bake or a merge of checkpoints done again, as its recipe says, or changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from paramerge.apply.given import PathLike, hashing, open_given, opened_base
from paramerge.apply.steps import Step
from paramerge.arguments import as_path
from paramerge.bake.input_names import InputNames
from paramerge.bake.output import check_output
from paramerge.bake.plan import Plan, make_plan
from paramerge.checkpoints.layout import FOLDERS, Base
from paramerge.errors import PluginError
from paramerge.files.outputs import check_output_file, check_output_folder
from paramerge.merge.checkpoints.graph import MergeGraph
from paramerge.merge.checkpoints.plan import plan_merge
from paramerge.merge.checkpoints.toml_recipe import read_toml_recipe
from paramerge.plugins import installed_version
from paramerge.replay.inputs import Inputs, other_companions
from paramerge.replay.reading import read_recipe
from paramerge.replay.recipe import ModelRecord, Recipe, StepRecord, chosen

if TYPE_CHECKING:
    from paramerge.bake.bake import BakeReport


@dataclass(frozen=True)
class Replay:
    """A plan made from a recipe.

    Attributes
    ----------
    recipe:
        The file or folder that it is of.
    versions:
        By package (``kernel``: the processor's instructions), the version of the recipe and the one that is
        here, where they differ. Equal bytes are promised for equal versions alone.
    companions:
        The files beside the weights in the base's folder that are not those of the recipe.
    """

    plan: Plan
    recipe: Path
    versions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    companions: tuple[str, ...] = ()

    def check_output(self, output: PathLike, *, overwrite: bool = False) -> Path:
        """Check the output as a bake does; the recipe's file is an input as well.

        Raises
        ------
        OutputError
        """
        check = check_output_folder if self.plan.base.is_folder else check_output_file
        check(output, [self.recipe], overwrite=overwrite)
        return check_output(self.plan, as_path(output, "output"), overwrite=overwrite)


def replay(
    recipe: PathLike,
    output: PathLike,
    *,
    models: Iterable[PathLike] = (),
    set: Mapping[int, float] | None = None,
    without: Iterable[int] = (),
    base: PathLike | Base | None = None,
    dtype: str | None = None,
    accept_loss: bool = False,
    overwrite: bool = False,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> BakeReport:
    """Do again what a recipe says: ``replay("merged.safetensors", "again.safetensors")``.

    With nothing changed, and the versions of the recipe, the output has the bytes of the first one.

    Parameters
    ----------
    recipe:
        What bake, or merge of checkpoints, wrote (a file or a folder), its recipe as JSON, or a recipe in
        TOML.
    output:
        The file to write, or a folder where the base is one.
    models:
        Folders in which inputs are looked for by their SHA-256, besides ``PARAMERGE_MODELS``, the Hugging
        Face cache, what ships, and the folder of ``recipe``.
    set:
        Other strengths of adapters, by step, counted from 1: ``{2: 0.4}``.
    without:
        Steps to leave out, counted from 1.
    base:
        Another base, or first model.
    dtype:
        Another dtype of the output, or ``keep``.
    accept_loss:
        Write an output that keeps less than half of a step, too; a recipe of one says so itself.
    overwrite, rehash, progress:
        As for :func:`paramerge.bake`.

    Raises
    ------
    MissingInputError
        Inputs are not found.
    PluginError
        A package that added what the recipe uses is not installed.
    FileFormatError
        There is no recipe, or it is damaged or of a version that is not known.
    ParamergeError
        What :func:`paramerge.bake` and :func:`paramerge.merge` raise.
    """
    with hashing(rehash=rehash):
        made = plan_replay(
            recipe, models=models, strengths=set or {}, without=tuple(without), base=base, dtype=dtype,
            accept_loss=accept_loss,
        )  # fmt: skip
        return made.plan.write(made.check_output(output, overwrite=overwrite), progress, overwrite=overwrite)


def plan_replay(
    path: PathLike,
    *,
    models: Iterable[PathLike] = (),
    strengths: Mapping[int, float] | None = None,
    without: Collection[int] = (),
    base: PathLike | Base | None = None,
    dtype: str | None = None,
    accept_loss: bool = False,
    note: Callable[[str], None] = lambda _: None,
) -> Replay:
    """The plan of :func:`replay`; ``note`` is called with a line before anything that takes long."""
    path = as_path(path, "recipe")
    changes = (strengths or {}, without, dtype)
    if path.suffix == ".toml":
        return _of_toml(path, *changes, base, accept_loss)
    inputs = Inputs(map(Path, models), (path.absolute().parent,), note)
    recipe = read_recipe(path).changed(*changes, accept_loss=accept_loss)
    _check_packages(recipe, path)
    opened = None if base is None else opened_base(base)
    return planned(recipe, inputs, path, opened)


def planned(recipe: Recipe, inputs: Inputs, where: Path, base: Base | None = None) -> Replay:
    """The plan for a recipe whose inputs are all found, and have the names of the recipe; ``base`` its own.

    Raises
    ------
    MissingInputError
    """
    models = inputs.models(recipe, base)
    adapters = [inputs.adapter(step) for step in recipe.steps]
    there = [model for model in models if model is not None]
    present = [adapter for adapter in adapters if adapter is not None]
    if len(there) < len(models) or len(present) < len(adapters):
        raise inputs.missing(recipe, models, adapters, where)
    steps = [
        (Step(record.kind, adapter.path, record.strength, record.blocks), adapter)
        for record, adapter in zip(recipe.steps, present, strict=True)
    ]
    if recipe.merge is None:
        plan = make_plan(there[0], steps, recipe.options)
    else:
        merge = recipe.merge
        graph = MergeGraph(tuple(step.checked() for step in merge.steps), merge.components, merge.prune)
        plan = plan_merge(there, graph, steps, recipe.options)
    records: tuple[ModelRecord | StepRecord, ...] = (*recipe.models, *recipe.steps)
    called = tuple(
        own if base is not None and index == 0 else _called(record, own)
        for index, (record, own) in enumerate(zip(records, plan.names, strict=True))
    )
    companions = () if base is not None or not recipe.companions else recipe.companions
    others = other_companions(there[0], companions) if companions else ()
    return Replay(replace(plan, called=called), where, _other_versions(recipe), others)


def _called(record: ModelRecord | StepRecord, now: InputNames) -> InputNames:
    """The names of the recipe; where it has none, those of now."""
    files = tuple(file.name or own for file, own in zip(record.files, now.files, strict=True))
    if isinstance(record, ModelRecord) and record.layout in FOLDERS:
        return InputNames(record.name or now.name, files)
    return InputNames(files[0], files)


def _of_toml(
    path: Path,
    strengths: Mapping[int, float],
    without: Collection[int],
    dtype: str | None,
    base: PathLike | Base | None,
    accept_loss: bool,
) -> Replay:
    """A recipe in TOML, which names its files by their places."""
    recipe = read_toml_recipe(path)
    adapters = chosen(recipe.adapters, strengths, without)
    request = recipe.request
    if dtype is not None:
        request = replace(request, options=replace(request.options, dtype=dtype))
    if accept_loss:
        request = replace(request, options=replace(request.options, accept_loss=True))
    if base is not None:
        request = replace(request, models=(base, *request.models[1:]))
    return Replay(request.plan(open_given(adapters)), path)


def _check_packages(recipe: Recipe, where: Path) -> None:
    """Refuse a recipe that uses what a package added that is not installed."""
    missing = {name: version for name, version in recipe.packages.items() if installed_version(name) is None}
    if missing:
        named = ", ".join(f"{name} {version}" for name, version in missing.items())
        pinned = " ".join(f"{name}=={version}" for name, version in missing.items())
        raise PluginError(
            "the recipe uses what other packages add to paramerge, and they are not installed",
            where=where,
            expected=named,
            hint=f"if you trust them: pip install {pinned}",
        )


def _other_versions(recipe: Recipe) -> dict[str, tuple[str, str]]:
    from paramerge.bake.recipe import versions

    then = {**recipe.versions, **recipe.packages}
    now = {**versions(), **{name: installed_version(name) or "missing" for name in recipe.packages}}
    return {name: (then.get(name, "unknown"), now[name]) for name in now if then.get(name) != now[name]}
