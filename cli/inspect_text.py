"""The output of ``paramerge inspect`` in a terminal: 80 columns are enough, and nothing is cut off."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from statistics import median

from rich.table import Table

from paramerge.adapters.registry import family
from paramerge.cli.render import gigabytes, out, shown
from paramerge.cli.tables import plain_table
from paramerge.errors import shortened
from paramerge.files.recipe_text import RECIPE_KEY
from paramerge.inspect.inspection import (
    AdapterFacts,
    CheckpointFacts,
    ForeignFacts,
    LayerFacts,
    UnknownFacts,
    read_recipe,
)
from paramerge.inspect.training_notes import training_notes
from paramerge.models.names import COMPONENTS

_LARGEST = 5
_KEYS = 8
_ENTRIES = 1_000
"""Entries of metadata that are printed, at most; and characters of each, which take a second to wrap."""
_LONGEST_VALUE = 100_000
_SIZES = re.compile(r"\b\d+ x \d+ (?:of )?|\b\d+ (?=blocks)")
_COLUMNS = ("norm", "rank", "scale", "directions")


def show(
    facts: AdapterFacts | ForeignFacts | CheckpointFacts | UnknownFacts,
    *,
    all_layers: bool = False,
    all_metadata: bool = False,
) -> None:
    """Print the facts of a file."""
    if isinstance(facts, AdapterFacts):
        _show_adapter(facts, all_layers)
    elif isinstance(facts, ForeignFacts):
        _show_foreign(facts)
    elif isinstance(facts, CheckpointFacts):
        _show_checkpoint(facts)
    else:
        _show_unknown(facts)
    _show_metadata(facts.metadata, all_metadata)
    _show_recipe(facts.metadata)


def _show_adapter(facts: AdapterFacts, all_layers: bool) -> None:
    adapter, layers = facts.adapter, facts.layers
    architecture = adapter.architecture or "architecture unknown"
    if adapter.architecture is None and facts.looks_like is not None:
        architecture = f"by its names for {facts.looks_like}"
    elif facts.possible:
        architecture = f"for {' or '.join(facts.possible)} (not stated)"
    _title(
        adapter.path.name if len(adapter.sources) == 1 else "/".join(adapter.path.parts[-2:]),
        ", ".join(adapter.families),
        adapter.dialect,
        architecture,
        gigabytes(facts.size),
    )
    pairs = [
        ("beside it", ", ".join(source.name for source in adapter.sources if source != adapter.path)),
        ("made for", ", ".join(f"{'SHA-256' if len(h) == 64 else 'hash'} {h}" for h in adapter.base_hashes)),
        ("dtypes", _counts(Counter(layer.dtype for layer in layers))),
        *_rank_pairs(layers),
    ]
    pairs += _para_pairs(layers) if adapter.family == "para" else _lora_pairs(layers)
    _show_pairs(pairs)
    _show_components(Counter((layer.name.component, layer.kind) for layer in layers))
    for leftover in adapter.leftovers:
        keys = "1 key is" if len(leftover.keys) == 1 else f"{len(leftover.keys)} keys are"
        unread = f"[yellow]{keys} not applied[/yellow] ({shown(leftover.reason)})"
        out.print(f"{unread}: {shown(_first(leftover.keys))}")
    _show_layers(layers, all_layers)


def _rank_pairs(layers: Sequence[LayerFacts]) -> Iterator[tuple[str, str]]:
    """The count of each family, under its own word; whole differences have nothing to count."""
    counts: dict[str, Counter[int]] = {}
    for layer in layers:
        if word := family(layer.family).counted:
            counts.setdefault(word, Counter())[layer.rank] += 1
    for word, ranks in counts.items():
        yield word, _counts(ranks)


def _lora_pairs(layers: Sequence[LayerFacts]) -> list[tuple[str, str]]:
    alphas = Counter("= rank" if layer.alpha is None else f"{layer.alpha:g}" for layer in layers)
    scales = Counter(f"{layer.scale:g}" for layer in layers if layer.scale is not None)
    additive = [layer.norm for layer in layers if layer.norm is not None]
    norms = [norm for norm in additive if math.isfinite(norm)]
    pairs = [
        ("forms", _counts(Counter(_form(layer) for layer in layers if layer.form))),
        ("alphas", _counts(alphas) if scales else ""),
        ("scales", _counts(scales) if scales else ""),
        ("depends", _dependence(layers)),
    ]
    if norms:
        pairs.append(
            (
                "norms",
                f"{min(norms):.3g} least, {median(norms):.3g} median, {max(norms):.3g} largest, "
                f"{math.hypot(*norms):.3g} together ({_norm_of(layers)}, Frobenius)",
            )
        )
    if broken := len(additive) - len(norms):
        pairs.append(("[red]not finite[/red]", f"{broken} layers hold NaN or Inf: it cannot be baked"))
    return pairs


def _norm_of(layers: Sequence[LayerFacts]) -> str:
    return "scale * B A" if all(layer.family == "lora" for layer in layers) else "the change"


def _form(layer: LayerFacts) -> str:
    """The form without the sizes that differ from layer to layer."""
    return _SIZES.sub("", layer.form).strip()


def _dependence(layers: Sequence[LayerFacts]) -> str:
    """The number of layers whose change depends on the weight."""
    count = sum(layer.norm is None and layer.directions is None for layer in layers)
    if count == 1:
        return "1 layer acts on the weight as it is at its step"
    return f"{count} layers act on the weight as it is at their step" if count else ""


def _para_pairs(layers: Sequence[LayerFacts]) -> list[tuple[str, str]]:
    stated, held = sum(layer.rank for layer in layers), sum(layer.directions or 0 for layer in layers)
    lost = f" ({stated - held} columns add none)" if held < stated else ""
    return [("directions", f"{held} in {len(layers)} layers{lost}")]


def _show_layers(layers: Sequence[LayerFacts], all_layers: bool) -> None:
    if all(layer.norm is None for layer in layers) and not all_layers:
        return  # layers of a PaRa, and others that depend on the weight, have no size to be sorted by
    listed = layers if all_layers else sorted(layers, key=_size, reverse=True)[:_LARGEST]
    out.print(f"\n[bold]{'layers' if all_layers else 'largest layers'}[/bold]")
    # values that all layers share are above already, and long names need the room
    columns = [title for title in _COLUMNS if len({getattr(layer, title) for layer in layers}) > 1]
    table = plain_table(*(f">{title}" for title in columns), "layer")
    for layer in listed:
        table.add_row(*(_number(getattr(layer, title)) for title in columns), shown(str(layer.name)))
    out.print(table)
    if not all_layers and len(layers) > _LARGEST:
        out.print(f"[dim]all {len(layers)} layers: --layers[/dim]")


def _show_foreign(facts: ForeignFacts) -> None:
    named = " and ".join(facts.families)
    _title(facts.path.name, named, gigabytes(facts.size))
    _show_pairs(
        [
            ("[yellow]not baked[/yellow]", shown(facts.reason)),
            ("next", shown(facts.hint or "")),
            ("modules", ", ".join(f"{family} {count}" for family, count in facts.families.items())),
            ("tensors", f"{facts.tensors}, {_counts(facts.dtypes)}"),
            ("alphas", _counts({f"{alpha:g}": count for alpha, count in facts.alphas.items()})),
        ],
    )
    _show_components(facts.components)
    if facts.unnamed:
        out.print(f"{facts.unnamed} modules have names that are not known")


def _show_checkpoint(facts: CheckpointFacts) -> None:
    base = facts.base
    baked = "baked checkpoint" if RECIPE_KEY in facts.metadata else "checkpoint"
    widths = (
        base.architecture if base.true_dimensions else f"{base.architecture}, widths not the published ones"
    )
    if base.architecture == "unknown" and base.true_dimensions:
        widths = f"model of {sum(part.layers for part in facts.components)} layers"
    _title(base.path.name, baked, base.layout, widths, gigabytes(facts.size))
    table = plain_table("component", ">tensors", ">layers", ">bytes", "dtypes")
    for part in facts.components:
        layers = str(part.layers or "-")
        table.add_row(part.component, str(part.tensors), layers, gigabytes(part.size), _counts(part.dtypes))
    out.print(table)
    for title, count in facts.quantised.items():
        out.print(f"{count} layers stored quantised: {shown(title)}")
    if len(base.files) > 1:
        out.print(f"{len(base.files)} files: {shown(', '.join(str(file.relative) for file in base.files))}")
    if base.companions:
        out.print(f"{len(base.companions)} files beside them")
    for path, reason in base.left_out:
        out.print(f"[yellow]not read:[/yellow] {shown(str(path))} ({shown(reason)})")


def _show_unknown(facts: UnknownFacts) -> None:
    _title(facts.path.name, "no known adapter or checkpoint", gigabytes(facts.size))
    _show_pairs(
        [
            ("reason", shown(facts.reason)),
            ("tensors", f"{len(facts.keys)}, {_counts(facts.dtypes)}" if facts.keys else "none"),
            ("keys", shown(_first(facts.keys))),
        ],
    )


def _show_components(counts: Mapping[tuple[str, str], int]) -> None:
    components = sorted({component for component, _ in counts}, key=_component_place)
    if not components:
        return
    table = plain_table("layers", *(f">{component}" for component in components))
    totals = Counter(kind for (_, kind), count in counts.items() for _ in range(count))
    for kind, _ in totals.most_common():
        table.add_row(kind, *(str(counts.get((component, kind)) or "-") for component in components))
    sums = [sum(n for (owner, _), n in counts.items() if owner == component) for component in components]
    table.add_row("[bold]together[/bold]", *(f"[bold]{count}[/bold]" for count in sums))
    out.print(table)


def _first(keys: Sequence[str]) -> str:
    return ", ".join(map(shortened, keys[:_KEYS])) + (" ..." if len(keys) > _KEYS else "")


def _component_place(component: str) -> int:
    return COMPONENTS.index(component) if component in COMPONENTS else len(COMPONENTS)


def _show_metadata(metadata: Mapping[str, str], everything: bool) -> None:
    own = {key: value for key, value in metadata.items() if key != RECIPE_KEY}
    if everything:
        out.print(f"\n[bold]metadata[/bold] ({len(own)} entries)")
        entries = islice(own.items(), _ENTRIES)
        _show_pairs([(shown(key), shown(value, _LONGEST_VALUE) or "-") for key, value in entries])
        if len(own) > _ENTRIES:
            out.print(f"[dim]and {len(own) - _ENTRIES} more: --json[/dim]")
        return
    notes = training_notes(metadata)
    if notes:
        out.print("\n[bold]notes[/bold]")
        _show_pairs([(label, shown(text)) for label, text in notes])
    if own:
        hidden = "the entry" if len(own) == 1 else f"all {len(own)} entries"
        out.print(f"[dim]{hidden} of metadata: --metadata[/dim]")


def _show_recipe(metadata: Mapping[str, str]) -> None:
    recipe = read_recipe(metadata)
    title = "recipe"
    while recipe is not None:
        out.print(f"\n[bold]{title}[/bold]")
        if not isinstance(recipe, dict):
            out.print(f"[yellow]it cannot be read:[/yellow] {shown(str(recipe))}")
            return
        _show_pairs(list(_recipe_pairs(recipe)))
        recipe, title = recipe.get("base_recipe"), "recipe of its base"


def _recipe_pairs(recipe: Mapping[str, object]) -> Iterable[tuple[str, str]]:
    base = _mapping(recipe.get("base"))
    yield "base", shown(f"{base.get('architecture', '')} {base.get('layout', '')}; {_files(base)}".strip())
    steps = recipe.get("steps")
    for number, step in enumerate(steps if isinstance(steps, list) else [], 1):
        entry = _mapping(step)
        what = f"{entry.get('kind', '?')} @ {entry.get('strength', '?')}, {entry.get('layers', '?')} layers"
        yield f"step {number}", shown(f"{what}; {_files(entry)}")
    for title in ("options", "versions"):
        entry = _mapping(recipe.get(title))
        yield title, shown(", ".join(f"{name} {_plain(value)}" for name, value in entry.items()))


def _files(entry: Mapping[str, object]) -> str:
    files = entry.get("files")
    described = [_mapping(file) for file in (files if isinstance(files, list) else [])]
    return ", ".join(
        f"{file.get('name', 'name left out')} (SHA-256 {file.get('sha256', '?')})" for file in described
    )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _title(name: str, *facts: str) -> None:
    out.print(f"[bold]{shown(name)}[/bold]: {shown(', '.join(facts))}")


def _show_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Two columns, without the pairs that say nothing; long texts go on below themselves."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", overflow="fold", max_width=30)
    table.add_column(overflow="fold")
    for label, text in pairs:
        if text:
            table.add_row(label, text)
    if table.row_count:
        out.print(table)


def _counts(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    """``4``, or ``4 (96 times), 8 (once)`` where there are several."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    if len(ordered) == 1:
        return str(ordered[0][0])
    return ", ".join(f"{value} ({'once' if count == 1 else f'{count} times'})" for value, count in ordered)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _size(layer: LayerFacts) -> float:
    """The key that layers are sorted by: their norm, those first where it is not finite, last without one."""
    if layer.norm is None:
        return -1.0
    return layer.norm if math.isfinite(layer.norm) else math.inf
