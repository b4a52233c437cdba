"""The reference of the public API, docs/api.md, made from the stub and the docstrings.

    python tools/api_reference.py > docs/api.md

A test holds the file to what this prints.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from types import ModuleType

import paramerge

_STUB = Path(paramerge.__file__).with_suffix(".pyi")
_GROUPS = {
    "The verbs": (
        *("bake", "merge", "convert", "extract", "resize", "compare", "inspect", "replay", "explain"),
        *("verify", "sizes"),
    ),
    "Adapters in the list of a verb": ("Para", "Lora", "Adapter"),
    "A bake in steps": ("plan_bake", "Plan", "BakeReport", "diagnose", "find_base", "summarise"),
    "A merge of checkpoints in steps": ("plan_merge",),
    "Opening files": ("open_adapter", "Interpretation", "open_base", "Base", "read_header"),
    "Reading and writing adapters": (
        "LoraModule", "ParaModule", "ModuleName", "write_para", "write_lora", "LoraFactors", "extract_para",
    ),
}  # fmt: skip
"""What stands together; every other function and class comes under the last heading."""
_HEAD = """# The library

Made by `python tools/api_reference.py > docs/api.md` from the stub `paramerge/__init__.pyi` and docstrings.

    import paramerge as pm

    pm.bake("sdxl.safetensors", [pm.Para("a.safetensors"), pm.Lora("b.safetensors", 0.8)], "out.safetensors")

Every verb takes adapters in the same way: a list of `pm.Para`, `pm.Lora`, `pm.Adapter`, paths (text may have
a strength behind it: `"b.safetensors@0.8"`), or adapters that `pm.open_adapter` opened. A base is a path, or
what `pm.open_base` opened. A `dtype` has any of its names: `fp16`, `F16`, `float16`. Errors are subclasses of
`pm.ParamergeError`, and name arguments; the linear algebra is `pm.algebra`, PaRa as a PEFT tuner `pm.peft`.
"""


def public_names() -> list[str]:
    """The names of the stub, in its order."""
    imports = [node for node in ast.parse(_STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    return [alias.asname or alias.name for node in imports for alias in node.names]


def render() -> str:
    """The whole reference."""
    named = [name for names in _GROUPS.values() for name in names]
    rest = tuple(name for name in public_names() if name not in named and name != "__version__")
    parts = [_HEAD]
    for title, names in {**_GROUPS, "Everything else": rest}.items():
        parts.append(f"## {title}\n")
        parts += [_entry(name) for name in names]
    return "\n".join(parts).rstrip() + "\n"


def _entry(name: str) -> str:
    thing = getattr(paramerge, name)
    text = inspect.getdoc(thing) or ""
    if isinstance(thing, ModuleType):
        text = text.split("\n\n")[0] + "\n\n" + ", ".join(f"`{member}`" for member in thing.__all__)
    head = f"### {name}\n"
    signature = "" if isinstance(thing, ModuleType) else _signature(name, thing)
    return "\n".join([head, signature, _markdown(text), ""])


def _signature(name: str, thing: object) -> str:
    assert callable(thing)
    try:
        signature = inspect.signature(thing)
    except ValueError:  # an exception
        return ""
    arguments = [_argument(parameter) for parameter in signature.parameters.values()]
    if any(p.kind is p.KEYWORD_ONLY for p in signature.parameters.values()) and "*" not in arguments:
        first = next(i for i, p in enumerate(signature.parameters.values()) if p.kind is p.KEYWORD_ONLY)
        arguments.insert(first, "*")
    returned = signature.return_annotation
    arrow = "" if inspect.isclass(thing) else f" -> {_annotation(returned)}"
    one = f"{name}({', '.join(arguments)}){arrow}"
    if len(one) > 100:
        one = f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){arrow}"
    return f"```python signature\n{one}\n```\n"


def _argument(parameter: inspect.Parameter) -> str:
    value = "..." if callable(parameter.default) else repr(parameter.default)
    default = "" if parameter.default is parameter.empty else f" = {value}"
    return f"{parameter.name}: {_annotation(parameter.annotation)}{default}"


def _annotation(annotation: object) -> str:
    """As it is written in the source; a NamedTuple holds it as a reference."""
    return str(getattr(annotation, "__forward_arg__", annotation))


def _markdown(text: str) -> str:
    """A docstring in NumPy's form as Markdown: sections in bold, their entries as a list."""
    lines: list[str] = []
    for block in re.split(r"\n(?=[A-Z][a-z]+\n-{3,}\n)", text):
        title, _, body = block.partition("\n")
        if re.match(r"-{3,}\n", body):
            lines += [f"**{title}**", "", *_entries(body.partition("\n")[2]), ""]
        else:
            lines += [*block.splitlines(), ""]
    plain = "\n".join(lines).replace("``", "`").rstrip()
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", plain) + "\n"


def _entries(body: str) -> list[str]:
    """Names at the margin, each with what is indented below it."""
    entries = re.split(r"\n(?=\S)", body.strip("\n"))
    found = []
    for entry in entries:
        name, _, text = entry.partition("\n")
        words = " ".join(textwrap.dedent(text).split())
        found.append(f"- `{name.rstrip(':')}`: {words}" if words else f"- `{name}`")
    return found


if __name__ == "__main__":
    sys.stdout.write(render())
