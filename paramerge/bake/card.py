"""Model cards: Markdown beside an output that says what it was made of, as the recipe does, for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from paramerge.adapters import Adapter
from paramerge.bake.plan import Plan
from paramerge.bake.recipe import title_of
from paramerge.checkpoints.layout import DIFFUSERS_FOLDER, Base
from paramerge.errors import printable
from paramerge.version import __version__

CARD = PurePosixPath("README.md")
"""The card of a folder."""

_LICENCE_KEYS = ("modelspec.license", "license")
_LONGEST = 200
_MARKUP = "`|<>[]*\\"


def card_of_file(output: Path) -> Path:
    """The card of a single file: beside it, under its name."""
    return output.with_suffix(".md")


def model_card(plan: Plan, recipe: Mapping[str, Any]) -> bytes:
    """The card of an output with this recipe (see :func:`paramerge.bake.recipe.build_recipe`).

    It has no date and no path, so that the same bake has the same card. Licences are those that the inputs'
    metadata state.
    """
    lines = [*_head(plan), *_graph(plan, recipe), *_inputs(recipe), *_use(plan), *_licence(plan)]
    return "\n".join(lines).encode()


def _head(plan: Plan) -> Iterator[str]:
    kind = "diffusers" if plan.base.layout == DIFFUSERS_FOLDER else None
    yield from (
        "---",
        *([f"library_name: {kind}"] if kind else []),
        "tags:",
        "- paramerge",
        "- merge",
        "---",
        "",
    )
    title = "Merged model" if plan.options.private else title_of(plan)
    yield from (f"# {_text(title)}", "")
    yield f"Made by paramerge {__version__} from the inputs below; architecture: {plan.base.architecture}."


def _graph(plan: Plan, recipe: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## What was done", "", "```text")
    merge = recipe.get("merge", {"models": [], "steps": [], "components": {}})
    for number, model in enumerate((recipe["base"], *merge["models"]), 1):
        yield f"model {number}    {_called(model)}"
    for number, step in enumerate(merge["steps"], 1):
        settings = ", ".join(
            f"{name} {_listed(value)}"
            for name, value in step.items()
            if name not in ("method", "inputs", "blocks")
        )
        yield f"step {number}     {step['method']} of {', '.join(step['inputs'])}; {_text(settings)}"
        for place, blocks in step.get("blocks", {}).items():
            factors = ", ".join(f"{name} {factor:g}" for name, factor in blocks.items())
            yield f"           {place} by block: {factors}"
    for component, model in merge["components"].items():
        yield f"{component} of {model}"
    for number, step in enumerate(recipe["steps"], 1):
        yield f"adapter {number}  {step['family']} {_called(step)} @ {step['strength']:g}"
        if blocks := step.get("blocks"):
            uses = ", ".join(f"{name} {use['weight']:g}" for name, use in blocks.items())
            yield f"           by block: {uses}"
    options = plan.options
    boundary = "" if options.gamma is None else f", rank boundary {options.gamma:g}"
    yield from (f"output     dtype {options.dtype}, PaRas merged {options.merge}{boundary}", "```")


def _inputs(recipe: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Inputs", "", "| | file | bytes | SHA-256 |", "|---|---|---:|---|")
    models = (recipe["base"], *recipe.get("merge", {}).get("models", []))
    for word, owners in (("model", models), ("adapter", recipe["steps"])):
        for number, owner in enumerate(owners, 1):
            for file in owner["files"]:
                name = f"`{_text(file['name'])}`" if "name" in file else ""
                yield f"| {word} {number} | {name} | {file['bytes']} | `{file['sha256']}` |"


def _use(plan: Plan) -> Iterator[str]:
    yield from ("", "## How to use it", "")
    if plan.base.layout == DIFFUSERS_FOLDER:
        yield from ("```python", "from diffusers import DiffusionPipeline", "")
        yield from ('pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")', "```", "")
    elif plan.base.is_folder:
        yield from ("Load it as the model that it was made from.", "")
    else:
        yield from ("It goes wherever the first model goes, and is used as that is.", "")
    yield from ("Its recipe is in the file's metadata, and in `paramerge_recipe.json` of a folder:", "")
    yield from ("```sh", "paramerge inspect OUTPUT", "paramerge verify OUTPUT --models FOLDER", "```")


def _licence(plan: Plan) -> Iterator[str]:
    yield from ("", "## Licence", "")
    if plan.options.private:
        yield from ("Not said: what the inputs' metadata state may name them.", "")
        return
    found = [(f"{word} {number}", text) for word, number, text in _stated(plan)]
    for who, text in found:
        yield f"- {who} states `{_text(text)}`"
    if not found:
        yield "Unknown: no input states one in its metadata."
    elif len(found) < len(plan.opened):
        yield "- unknown for the others: their metadata state none"
    yield from ("", "All of the inputs' licences apply.", "")


def _stated(plan: Plan) -> Iterator[tuple[str, int, str]]:
    bases = [opened for opened in plan.opened if isinstance(opened, Base)]
    adapters = [opened for opened in plan.opened if isinstance(opened, Adapter)]
    for number, base in enumerate(bases, 1):
        metadata = [file.header.metadata for file in base.files]
        yield from (("model", number, text) for text in _licences(metadata)[:1])
    for number, adapter in enumerate(adapters, 1):
        yield from (("adapter", number, text) for text in _licences([adapter.metadata])[:1])


def _licences(metadata: Sequence[Mapping[str, str]]) -> list[str]:
    return [entries[key] for entries in metadata for key in _LICENCE_KEYS if entries.get(key)]


def _called(owner: Mapping[str, Any]) -> str:
    """The name of a model or an adapter in the recipe; a private one has its hash."""
    first = owner["files"][0]
    return _text(owner.get("name") or first.get("name") or f"(SHA-256 {first['sha256'][:16]} ...)")


def _listed(value: object) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: object) -> str:
    """Text from outside as one line of Markdown that is nothing but text."""
    line = printable(" ".join(str(value).split()))[:_LONGEST]
    return "".join(" " if char in _MARKUP else char for char in line)
