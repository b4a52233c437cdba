"""The library's arguments as flags: ``allow_unmatched`` is shown as ``--allow-unmatched``."""

from __future__ import annotations

from typing import Any

from paramerge.wording import reworded

_FLAGS = {
    "tuned": "from",
    "architecture": "arch",
    "families": "family",
    "prompts": "prompt",
    "ranks": "rank",
}
"""Arguments whose flag has another name."""


def with_flags(text: str) -> str:
    """``text`` of the library, with flags and commands for the arguments and calls that it names."""
    return reworded(text, _flags)


def flagged(content: Any) -> Any:
    """JSON-ready data with flags in all texts of the library."""
    if isinstance(content, str):
        return with_flags(content)
    if isinstance(content, dict):
        return {key: flagged(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [flagged(value) for value in content]
    return content


def _flags(verb: str, arguments: list[tuple[str, str]]) -> str:
    shown = [f"--{_FLAGS.get(name, name.replace('_', '-'))} {value}".strip() for name, value in arguments]
    return " ".join([*(["paramerge", verb] if verb else []), *shown])
