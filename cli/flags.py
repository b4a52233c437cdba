"""The library's arguments as flags: ``allow_unmatched`` is shown as ``--allow-unmatched``."""

from __future__ import annotations

from paramerge.wording import reworded

__all__ = ["with_flags"]

_FLAGS = {
    "tuned": "from",
    "kronecker": "krona",
    "architecture": "arch",
    "families": "family",
    "prompts": "prompt",
}
"""Arguments whose flag has another name."""


def with_flags(text: str) -> str:
    """``text`` of the library, with flags and commands for the arguments and calls that it names."""
    return reworded(text, _flags)


def _flags(verb: str, arguments: list[tuple[str, str]]) -> str:
    said = [f"--{_FLAGS.get(name, name.replace('_', '-'))} {value}".strip() for name, value in arguments]
    return " ".join([*(["paramerge", verb] if verb else []), *said])
