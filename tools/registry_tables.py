"""The tables of families, dialects, architectures and merge methods in docs/, made from the registries.

    python tools/registry_tables.py

A table stands in its document between ``<!-- table: NAME -->`` and ``<!-- end -->``; a test holds what is
committed to what this writes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from paramerge.adapters.endings import without_name
from paramerge.adapters.family import Family
from paramerge.adapters.registry import FAMILIES as _FAMILIES
from paramerge.formats.dialect import Dialect
from paramerge.formats.registry import DIALECTS as _DIALECTS
from paramerge.merge.methods.method import Method
from paramerge.merge.methods.registry import REGISTRY as _METHODS
from paramerge.models.names import ModuleName
from paramerge.models.record import ArchitectureRecord
from paramerge.models.registry import ARCHITECTURES as _ARCHITECTURES
from paramerge.storage.registry import SCHEMES as _SCHEMES
from paramerge.storage.written import QUANTISERS

FAMILIES, DIALECTS, ARCHITECTURES = (kind.built_in for kind in (_FAMILIES, _DIALECTS, _ARCHITECTURES))
METHODS, SCHEMES = _METHODS.built_in, _SCHEMES.built_in
DOCS = Path(__file__).resolve().parents[1] / "docs"
DOCUMENTS = ("families.md", "convert.md", "layouts.md", "merge.md", "quantised.md")
LAYER = ModuleName("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
"""The layer in the example of a dialect's keys."""


def families() -> str:
    """Each family: what it does to a weight, its keys, what `inspect` counts of it."""
    return _table(
        ("family", "`--family` of `sizes`", "weight at strength 1", "ends of keys", "`inspect` counts"),
        ((f.label, _size(f), _code(f.formula), _keys(f), f.counted or "-") for f in FAMILIES),
    )


def _size(family: Family) -> str:
    return f"`{family.key}`" if family.stored is not None else "-"


def _keys(family: Family) -> str:
    names = [without_name(ending).removesuffix(".weight") for form in family.forms for ending in form.roles]
    return ", ".join(map(_code, dict.fromkeys(names))) or "LoRA's, of Kronecker shapes"


def dialects() -> str:
    """Each dialect: what it is called, a key of it, which families it can hold."""
    return _table(
        ("dialect", "a key in it", "an adapter is", "alpha", "holds"),
        (
            (_called(d), _example(d), "a folder" if d.folder else "a file", _alpha(d), _held(d))
            for d in DIALECTS
        ),
    )


def _called(dialect: Dialect) -> str:
    return ", ".join(_code(name) for name in (dialect.key, *dialect.aliases))


def _example(dialect: Dialect) -> str:
    if dialect.spell is None:
        return dialect.names
    role = "basis" if dialect.parts in ("para", "deft") else "up"
    return _code(dialect.written(dialect.stem(LAYER, "sd15"), role))


def _alpha(dialect: Dialect) -> str:
    if not dialect.parts or dialect.parts in ("para", "deft"):
        return "-"
    return {"tensor": "a tensor", "configuration": "in the configuration", "folded": "multiplied in"}[
        dialect.alpha
    ]


def _held(dialect: Dialect) -> str:
    """The families that are written in it."""
    return ", ".join(f.label for f in FAMILIES if dialect.parts in f.parts) or "read only"


def architectures() -> str:
    """Each architecture: its name, whose layers it has, what paramerge can do with it beyond baking."""
    return _table(
        ("name", "model", "layers of", "layers are called", "block weights", "drawn by"),
        ((_code(r.name), r.title, _layers_of(r), _named(r), _blocks(r), _pipeline(r)) for r in ARCHITECTURES),
    )


def _layers_of(record: ArchitectureRecord) -> str:
    return "-" if record.plain == record.name else _code(record.plain)


def _named(record: ArchitectureRecord) -> str:
    if record.ldm is not None:
        return "LDM's or diffusers' names"
    return "the original's or diffusers' names" if record.key_map is not None else "as the file has them"


def _blocks(record: ArchitectureRecord) -> str:
    return str(len(record.blocks.names)) if record.blocks is not None else "-"


def _pipeline(record: ArchitectureRecord) -> str:
    return _code(record.pipeline) if record.pipeline is not None else "-"


def methods() -> str:
    """Each merge method: how many models, what it does, what it takes, and where it is from."""
    return _table(
        ("method", "models", "formula", "parameters", "from"),
        ((_code(m.name), m.models_taken, _formula(m), _parameters(m), m.source) for m in METHODS),
    )


def _formula(method: Method) -> str:
    return method.formula.replace("``", "`").removesuffix(".").replace("|", r"\|")


def _parameters(method: Method) -> str:
    return (
        ", ".join(_code(p.name if p.default == () else f"{p.name} {p.default}") for p in method.parameters)
        or "-"
    )


def schemes() -> str:
    """Each storage scheme: whether it is read and written, and the code that has the same values."""
    ordered = sorted(SCHEMES, key=lambda scheme: not scheme.readable)
    return _table(
        ("scheme", "known as", "read", "`--requantise`", "values of"),
        (
            (
                _code(scheme.name),
                scheme.title,
                "yes" if scheme.readable else "no",
                "yes" if scheme.writable else "no",
                scheme.reference or "-",
            )
            for scheme in ordered
        ),
    )


def quantisers() -> str:
    """Each scheme that plain layers are written in."""
    return _table(
        ("`--quantise`", "layers are written as"), ((_code(q.name), q.described) for q in QUANTISERS.values())
    )


TABLES: dict[str, Callable[[], str]] = {
    "families": families, "dialects": dialects, "architectures": architectures, "methods": methods,
    "schemes": schemes, "quantisers": quantisers,
}  # fmt: skip


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = (head, ("---",) * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace(" --- ", "---")


def filled(text: str) -> str:
    """A document with its tables made anew."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    for name in DOCUMENTS:
        path = DOCS / name
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
