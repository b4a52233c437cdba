"""The lists of quantised layers beside the tensors, without the layers that are plain now."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence

from paramerge.storage.quantised import Quantised
from paramerge.storage.survey import METADATA_KEY
from paramerge.strict_json import parse

_SKIPPED = {
    "fp8": "modules_to_not_convert",
    "fbgemm_fp8": "modules_to_not_convert",
    "finegrained_fp8": "modules_to_not_convert",
    "bitsandbytes": "llm_int8_skip_modules",
    "compressed-tensors": "ignore",
}
"""By method of a configuration, its list of layers that are plain."""


def without_layers(metadata: Mapping[str, str], layers: Collection[Quantised]) -> dict[str, str]:
    """A file's metadata without ``layers`` in its list of quantised ones; without the list, if all are."""
    metadata = dict(metadata)
    if METADATA_KEY not in metadata or not layers:
        return metadata
    content = parse(metadata.pop(METADATA_KEY))
    gone = {layer.layer.name for layer in layers}
    content["layers"] = {name: entry for name, entry in content["layers"].items() if name not in gone}
    if content["layers"]:
        metadata[METADATA_KEY] = json.dumps(content)
    return metadata


def without_quantised(
    config: Mapping[str, object], layers: Sequence[Quantised], *, all_of_them: bool
) -> dict[str, object]:
    """A model's configuration in which ``layers`` are plain; ``all_of_them`` says that no other is left."""
    found = dict(config)
    for entry in ("quantization_config", "compression_config"):
        settings = found.get(entry)
        if not isinstance(settings, dict):
            continue
        if all_of_them:
            del found[entry]
            continue
        name = _SKIPPED.get(str(settings.get("quant_method")), "modules_to_not_convert")
        stated = settings.get(name)
        skipped = list(stated) if isinstance(stated, list) else []
        names = sorted(layer.layer.name for layer in layers)
        found[entry] = settings | {name: [*skipped, *(each for each in names if each not in skipped)]}
    return found
