"""The dialect of a merged LoRA: that of its inputs, where they have one and it names all layers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from paramerge.adapters import Adapter
from paramerge.formats.dialect import Dialect
from paramerge.formats.diffusers import DIFFUSERS
from paramerge.formats.kohya import KOHYA, KOHYA_SGM
from paramerge.formats.registry import DIALECTS
from paramerge.models.names import ModuleName
from paramerge.models.registry import record_of
from paramerge.models.spelling import NOISE, spelled

_KOHYA_INSTEAD = (KOHYA_SGM.key,)
"""Spellings that fewer programs read than the dialect's usual one."""


def dialect_for(
    adapters: Sequence[Adapter], names: Iterable[ModuleName], architecture: str | None
) -> Dialect:
    """The inputs' own dialect, if it is one, a file's, and written; else kohya's.

    kohya's and ComfyUI's readers have the single file's names of a model that is known by two namings: where
    the layers have diffusers' names, the file is diffusers'.
    """
    own = {adapter.dialect for adapter in adapters if adapter.family != "para"}
    found = DIALECTS.get(own.pop()) if len(own) == 1 else None
    writable = found is not None and found.spell is not None and found.parts and not found.folder
    dialect = found if found is not None and writable and found.key not in _KOHYA_INSTEAD else KOHYA
    kohya_has_them = dialect.underscored and record_of(architecture).kohya.diffusers
    if dialect.original and not kohya_has_them and _by_diffusers(names, architecture):
        return DIFFUSERS
    return dialect


def _by_diffusers(names: Iterable[ModuleName], architecture: str | None) -> bool:
    known = record_of(architecture).name
    found = (spelled(known, name.path) for name in names if name.component in NOISE)
    return any(each is not None and each.naming == "diffusers" for each in found)
