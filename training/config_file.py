"""The settings of a training as a TOML file, and from plain values as flags give them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from paramerge.errors import UsageError
from paramerge.strict_toml import read_toml
from paramerge.training.config import TrainConfig
from paramerge.training.settings.option import wrong

__all__ = ["config_from", "config_from_toml", "config_to_toml"]


def config_from_toml(path: Path, **overrides: Any) -> TrainConfig:
    """Read a configuration; the settings in ``overrides`` (the flags that were given) win over the file's.

    Relative paths in the file are relative to the current folder, as they are on the command line.

    Raises
    ------
    UsageError
        It is no TOML, has fields that do not exist or of another type, or misses some.
    FileFormatError
        There is no such file, or it cannot be read.
    """
    values = read_toml(path, what="this configuration", error=UsageError)
    return config_from(values | overrides, str(path))


def config_from(values: Mapping[str, Any], where: str) -> TrainConfig:
    """A configuration from plain values (text for paths, lists for tuples); raises UsageError as above."""
    known = {f.name: f for f in fields(TrainConfig)}
    if unknown := sorted(set(values) - set(known)):
        raise UsageError("there are no such settings", where=where, found=", ".join(unknown))
    if missing := [n for n, f in known.items() if f.default is MISSING and n not in values]:
        raise UsageError(
            "settings are missing",
            where=where,
            expected=", ".join(missing),
            hint="give them in the file or as flags: "
            + " ".join(f"--{n.replace('_', '-')}" for n in missing),
        )
    return TrainConfig(**{name: _typed(name, str(known[name].type), value) for name, value in values.items()})


def config_to_toml(config: TrainConfig) -> str:
    """The configuration as TOML; :func:`config_from_toml` reads it back to an equal one."""
    return "".join(
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.plain().items()
    )


def _typed(name: str, kind: str, value: Any) -> Any:
    """``value`` as the field's type has it."""
    base = kind.removesuffix(" | None")
    if base == "Path" and isinstance(value, (str, Path)):
        return Path(value)
    if base.startswith("tuple") and isinstance(value, (list, tuple)):
        of = int if "int" in base else str
        if all(isinstance(item, of) and not isinstance(item, bool) for item in value):
            if "..." not in base and len(value) != base.count("int"):
                raise wrong(name, f"{base.count('int')} numbers", value)
            return tuple(value)
    if base == "float" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    plain = {"int": int, "str": str, "bool": bool}.get(base)
    if plain is not None and isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    if value is None and kind.endswith("None"):
        return None
    raise wrong(name, base, value)
