"""The dialects that there are: those of this package, then those that other packages add.

A package adds one by an entry point of the group ``paramerge.dialects`` that names its :class:`Dialect`; a
program by :func:`register`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, lru_cache

from paramerge.files.header import LONGEST_KEY
from paramerge.formats.bfl_control import BFL_CONTROL
from paramerge.formats.cloneofsimo import CLONEOFSIMO
from paramerge.formats.comfyui_files import COMFYUI
from paramerge.formats.dialect import Dialect, Place
from paramerge.formats.diffusers import DIFFUSERS, DIFFUSERS_OLD
from paramerge.formats.hunyuan_i2v import HUNYUAN_I2V
from paramerge.formats.kohya import KOHYA, KOHYA_SGM
from paramerge.formats.native import PARA
from paramerge.formats.onetrainer import ONETRAINER
from paramerge.formats.peft import DEFT, PEFT
from paramerge.formats.videox_fun import VIDEOX_FUN
from paramerge.formats.xlabs import XLABS
from paramerge.kinds import Registry, followed

DIALECTS = Registry(
    Dialect,
    "dialect",
    "paramerge.dialects",
    (
        VIDEOX_FUN,
        ONETRAINER,
        KOHYA,
        KOHYA_SGM,
        XLABS,
        COMFYUI,
        DIFFUSERS,
        PEFT,
        PARA,
        DEFT,
        DIFFUSERS_OLD,
        CLONEOFSIMO,
        BFL_CONTROL,
        HUNYUAN_I2V,
    ),
    names=lambda dialect: (dialect.key, *dialect.aliases),
)
dialects, named_dialect = DIALECTS.all, DIALECTS.named
register, unregister = DIALECTS.register, DIALECTS.unregister


def writable() -> dict[str, Dialect]:
    """The dialects that ``convert`` writes, by their keys."""
    return {dialect.key: dialect for dialect in dialects() if dialect.parts}


@followed
@lru_cache(maxsize=1 << 14)
def dialect_of(key: str) -> Dialect:
    """The dialect that a key, or its stem, is spelled in."""
    for dialect in _reading():
        if dialect.claims(key):
            return dialect
    return DIFFUSERS


@followed
@lru_cache(maxsize=1 << 14)
def place_of(stem: str) -> Place | None:
    """The layer that the stem of a key, before its ending, names; None for what can be no module's path."""
    return None if len(stem) > LONGEST_KEY else dialect_of(stem).place(stem)


@followed
@cache
def boundaries() -> re.Pattern[str]:
    """The separators between a layer's name and the rest of a key."""
    return re.compile("|".join(sorted({re.escape(dialect.separator) for dialect in dialects()})))


@followed
@cache
def _reading() -> tuple[Dialect, ...]:
    """The dialects in the order in which they are asked for a key: diffusers', which claims all, is last.

    Of spellings with the same keys the first is asked alone.
    """
    first: dict[Callable[[str], bool], Dialect] = {}
    for dialect in dialects():
        if dialect is not DIFFUSERS:
            first.setdefault(dialect.claims, dialect)
    return tuple(first.values())
