"""A checkpoint's own recipe, beside what is found in the checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paramerge.adapters import Adapter
from paramerge.checkpoints.layout import Base
from paramerge.explain.candidates import Candidate
from paramerge.explain.findings import AdapterFinding, Claim, OrderFinding
from paramerge.files.hashing import source_sha256
from paramerge.files.recipe_text import RECIPE_KEY
from paramerge.files.staging import RECIPE_FILE
from paramerge.replay.reading import read_recipe
from paramerge.replay.recipe import Recipe, StepRecord


def recipe_in(tuned: Base) -> Recipe | None:
    """The recipe of a checkpoint; None where it has none.

    Raises
    ------
    FileFormatError
        It has one that cannot be read.
    """
    folder = tuned.path if tuned.is_folder else None
    there = (folder / RECIPE_FILE).is_file() if folder else RECIPE_KEY in tuned.files[0].header.metadata
    return read_recipe(tuned.path) if there else None


def compare_claims(
    recipe: Recipe, candidates: Sequence[Candidate], found: Mapping[str, AdapterFinding]
) -> tuple[Claim, ...]:
    """Each step of the recipe beside the candidate with its hash."""
    by_content = {_content(candidate.adapter): candidate.name for candidate in candidates}
    return tuple(_claim(step, by_content, found) for step in recipe.steps)


def contradicts(recipe: Recipe, candidates: Sequence[Candidate], order: OrderFinding) -> bool:
    """Whether the order that is told is not that of the recipe."""
    by_content = {_content(candidate.adapter): candidate.name for candidate in candidates}
    claimed = [name for step in recipe.steps if (name := by_content.get(_hashes(step)))]
    present = [name for name in claimed if any(name in step for step in order.steps)]
    position = {name: index for index, step in enumerate(order.steps) for name in step}
    places = [position[name] for name in present]
    return order.told and order.matters and places != sorted(places)


def base_warnings(recipe: Recipe, base: Base) -> list[str]:
    """A warning where the base is not the one that the recipe names."""
    claimed = [file.sha256 for file in recipe.base.files]
    if [source.size for source in base.weight_sources] != [file.size for file in recipe.base.files] or [
        source_sha256(source) for source in base.weight_sources
    ] != claimed:
        return ["the recipe names another base than the one given: all that differs shows as unexplained"]
    return []


def _claim(
    step: StepRecord, by_content: Mapping[tuple[str, ...], str], found: Mapping[str, AdapterFinding]
) -> Claim:
    name = by_content.get(_hashes(step))
    title = step.files[0].name or step.files[0].sha256[:12]
    if name is None or name not in found:
        return Claim(title, step.strength, None, None, "it is not among the adapters given")
    finding = found[name]
    if step.blocks is not None:
        return Claim(title, step.strength, name, None, "it has block weights: its strength is not one number")
    if step.strength == 0:
        agrees = finding.verdict == "absent"
        return Claim(title, step.strength, name, agrees, "" if agrees else "it is there")
    if finding.verdict != "there":
        return Claim(title, step.strength, name, False, f"it is {finding.verdict}")
    agrees = abs(step.strength - finding.strength) <= 2 * finding.bar
    return Claim(title, step.strength, name, agrees, "" if agrees else f"it is {finding.strength:.4g}")


def _content(adapter: Adapter) -> tuple[str, ...]:
    return tuple(sorted(source.sha256() for source in adapter.opened))


def _hashes(step: StepRecord) -> tuple[str, ...]:
    return tuple(sorted(file.sha256 for file in step.files))
