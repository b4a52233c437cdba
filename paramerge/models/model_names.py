"""Models recognised by keys that only they have, and models whose layers have names like an adapter's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

from paramerge.expressions import occurring
from paramerge.kinds import followed
from paramerge.models.record import ArchitectureRecord
from paramerge.models.registry import records
from paramerge.models.resemblance import CLIP_ENCODER, SHARED, Resemblance

_BESIDE = r"(^|\.)(controlnet_\w+|control_model|motion_modules)\."
"""Networks that run beside a model and are built of its blocks."""

_UNET_LIKE = re.compile(r"(?!.*(decoder|motion_modules)\.).*\b(output_blocks|up_blocks)\.\d+\.")
"""A block on a UNet's way up, which a ControlNet lacks and only a VAE's decoder has besides."""


def first_unet_key(keys: Iterable[str]) -> str | None:
    """The first key of a block on a UNet's way up."""
    return next((key for key in keys if "_blocks." in key and _UNET_LIKE.match(key)), None)


def recognise(keys: Iterable[str]) -> ArchitectureRecord | None:
    """The model that has these keys; None where there is none that is known, or it is a plain UNet."""
    keys = list(keys)
    found = occurring([_BESIDE, *(pattern for record in records() for pattern in record.patterns)], keys)
    if _BESIDE in found:
        return None
    unet = first_unet_key(keys) is not None
    for record in records():
        if record.patterns and (record.beside_unet or not unet) and found.issuperset(record.patterns):
            return record
    return None


@followed
@cache
def _resemblances() -> tuple[Resemblance, ...]:
    """The resemblances that are known: one architecture's own come first."""
    own = [found for record in records() for found in record.resembles if found not in SHARED]
    return (*dict.fromkeys(own), *SHARED)


def looks_like(paths: Iterable[str]) -> str | None:
    """The model that the names of an adapter's layers resemble, for messages; None if none is known."""
    return next(iter(resemblances(paths)), None)


def resemblances(paths: Iterable[str]) -> list[str]:
    """All resemblances of the names of layers; narrower ones come first."""
    return [found.title for found in _reminders(paths)]


def _reminders(paths: Iterable[str]) -> list[Resemblance]:
    found = occurring([each.pattern for each in _resemblances()], paths)
    return [each for each in _resemblances() if each.pattern in found]


def allows(paths: Iterable[str], architecture: str) -> bool:
    """Whether layers of these names can be of an architecture that metadata state (``sd15``, ``flux`` ...).

    CLIP text encoders are in several, and names that remind of nothing exclude nothing.
    """
    found = [reminder for reminder in _reminders(paths) if reminder != CLIP_ENCODER]
    if not found:
        return True
    of = [record.name for record in records() if found[0] in record.resembles]
    return any(architecture.startswith(name) for name in of)
