"""The metadata that stay true when an adapter is resized or merged: titles, triggers, tags, bases.

Metadata on the file itself (hashes of its bytes, ranks, alphas, how it was made) are not kept: they are
written anew, or would be untrue.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

from paramerge.formats import diffusers
from paramerge.formats.native import ARCHITECTURE_KEY
from paramerge.strict_json import check_bounds, parse

INPUTS_KEY = "merge.metadata"
"""Metadata key of a merge of several: the kept metadata of each input, as a JSON list in their order."""

_OF_THE_FILE = frozenset(
    {
        "format",
        "ss_network_alpha",
        "ss_network_args",
        "ss_network_dim",
        "ss_network_module",
        "ss_new_sd_model_hash",
        "modelspec.architecture",
        "modelspec.hash_sha256",
        "modelspec.implementation",
        "modelspec.sai_model_spec",
        ARCHITECTURE_KEY,
        diffusers.METADATA_KEY,
    }
)
_PREFIXES_OF_THE_FILE = ("sshs_", "paramerge.", "merge.", "resize.")
_TAGS, _TRIGGER = "ss_tag_frequency", "modelspec.trigger_phrase"


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The entries that are true of the same adapter at a lower rank."""
    return {
        key: value
        for key, value in metadata.items()
        if key not in _OF_THE_FILE and not key.startswith(_PREFIXES_OF_THE_FILE)
    }


def kept_of_several(all_metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The entries that are true of several adapters together, and those of each under :data:`INPUTS_KEY`.

    Entries that all have alike are theirs together; trigger phrases are listed, tags are counted together by
    folder.
    """
    kept = [kept_metadata(metadata) for metadata in all_metadata]
    if len(kept) == 1:
        return kept[0]
    together = {
        key: value for key, value in kept[0].items() if all(other.get(key) == value for other in kept)
    }
    phrases = list(dict.fromkeys(phrase for one in kept if (phrase := one.get(_TRIGGER))))
    if phrases:
        together[_TRIGGER] = ", ".join(phrases)
    if tags := _joined_tags([one[_TAGS] for one in kept if _TAGS in one]):
        together[_TAGS] = tags
    if any(kept):
        together[INPUTS_KEY] = json.dumps(kept, separators=(",", ":"), sort_keys=True)
    return together


def _joined_tags(texts: Sequence[str]) -> str | None:
    """kohya's counts of tags by folder, added up; None where none can be read."""
    folders: dict[str, Counter[str]] = {}
    for text in texts:
        try:
            content = parse(text)
            check_bounds(content)
        except ValueError:
            continue
        for folder, tags in content.items() if isinstance(content, dict) else ():
            if isinstance(tags, dict):
                counts = {tag: count for tag, count in tags.items() if type(count) is int}
                folders.setdefault(folder, Counter()).update(counts)
    return json.dumps(folders, separators=(",", ":")) if folders else None
