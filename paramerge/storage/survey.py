"""The search for quantised layers among the tensors of a model, by keys, dtypes and what is said beside.

A weight of 8 bits or fewer is plain only if it has no tensor beside it but its bias, and no configuration and
no mark speaks of quantisation. All tensors of a quantised layer (codes, scales, zero points, marks) belong
to it: none of them is a weight of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from paramerge.errors import CheckpointError
from paramerge.files.dtypes import BITS
from paramerge.files.gguf import is_ggml
from paramerge.files.header import Header
from paramerge.files.tensors import StoredTensor, stored
from paramerge.storage.layer import StoredLayer
from paramerge.storage.quantised import Quantised
from paramerge.storage.registry import schemes
from paramerge.strict_json import parse

METADATA_KEY = "_quantization_metadata"
"""The key of a file's metadata by which ComfyUI lists quantised layers."""

_SCALES = frozenset(
    {
        *("scale_weight", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_scale_1"),
        *("qscale_weight", "weight_scales", "weight_zero_point", "weight_packed", "weight_shape"),
        *("weight_global_scale", "wscales", "comfy_quant", "SCB"),
    }
)
"""Names of tensors beside a weight that no plain layer has, whatever its dtype."""

_INSIDE = re.compile(
    r"(?P<key>.+\.weight)(?:[.:](?P<part>absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+"
    r"|_data|_scale|_shift|qdata|int_data|scale|scales|zero_point)|_(?P<joined>qdata|int_data))$"
)
"""Parts of a weight that was saved in parts."""

_UNMISTAKABLE = frozenset({"qweight", "W_q", "weight_packed", "absmax", "quant_map", "quant_state"})
"""Names that mean codes even beside a weight."""

_ALONE = frozenset({"_data", "qdata", "int_data"})
"""Names that mean codes where there is no weight."""

_PLAIN = ("bias", "running_mean", "running_var", "num_batches_tracked")
"""Names of tensors beside plain weights."""

_MARKER = "scaled_fp8"
"""The key, with any prefix, that marks all 8-bit weights under that prefix as scaled."""

_STACKED = {"_scale": "weight_scale", "_scale_inv": "weight_scale_inv", "_scale_2": "weight_scale_2"}
"""Ends of the keys of scales whose weight has no ``.weight``: matrices of experts, stacked."""


@dataclass(frozen=True)
class Survey:
    """The quantised layers of a model."""

    layers: tuple[Quantised, ...] = ()
    markers: tuple[str, ...] = ()
    """The keys that mark all 8-bit weights under their prefix as scaled."""
    by_key: Mapping[str, Quantised] = field(default_factory=dict)
    """The layer of every tensor that belongs to one, by key."""


def survey(headers: Sequence[Header], config: Mapping[str, object] | None = None) -> Survey:
    """Find the quantised layers in the files of one component.

    Parameters
    ----------
    headers:
        All its files.
    config:
        The ``quantization_config`` beside them, or None.

    Raises
    ------
    CheckpointError
        The list of quantised layers in a file's metadata is no such list.
    """
    home = {key: header for header in headers for key in header.tensors}
    listed: dict[str, Mapping[str, object]] = {}
    for header in headers:
        listed |= _listed(header)
    markers = tuple(key for key in home if key.rpartition(".")[2] == _MARKER)
    signs = _SCALES.union(*(scheme.signs for scheme in schemes()))
    found = []
    taken: set[str] = set()
    for key, parts in _candidates(home):
        weight = stored(home[key], key) if key in home else None
        entry = listed.get(key.removesuffix(".weight"))
        marker = _marker_of(key, markers)
        stated = bool(config or listed or marker)
        own = {part: stored(home[at], at) for part, at in parts.items() if _is_part(at, key)}
        if entry is None and not _is_quantised(weight, frozenset(parts), stated, signs):
            continue
        found.append(Quantised.of(StoredLayer(key, weight, own, entry, config or {}, marker)))
        taken.update(tensor.key for tensor in found[-1].tensors)
    found += [each for each in _stacked(home, config or {}) if each.layer.key not in taken]
    found += [each for each in _packed(home) if each.layer.key not in taken]
    by_key = {tensor.key: layer for layer in found for tensor in layer.tensors}
    return Survey(tuple(found), markers, by_key)


def _listed(header: Header) -> dict[str, Mapping[str, object]]:
    """The entries of a file's list of quantised layers, by the layer's name."""
    text = header.metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        layers = parse(text)["layers"]
        return {
            name: entry if isinstance(entry, dict) else {"format": entry} for name, entry in layers.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            "the list of quantised layers in the file's metadata cannot be read",
            where=f"{header.path}: {METADATA_KEY}",
            expected='a JSON object {"layers": {...}}',
            found=error,
            hint="take the checkpoint from its source again",
        ) from None


def _marker_of(key: str, markers: Iterable[str]) -> str | None:
    return next((marker for marker in markers if key.startswith(marker.removesuffix(_MARKER))), None)


def _candidates(keys: Iterable[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Keys of weights, there or not, each with the tensors beside it: the part's name and its key."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if match := _INSIDE.match(key):
            part = (match["part"] or match["joined"]).partition(".")[0]
            found.setdefault(match["key"].removesuffix(".weight"), {})[part] = key
            continue
        stem, _, part = key.rpartition(".")
        if stem and part not in _PLAIN and part != _MARKER:
            found.setdefault(stem, {})
            if part != "weight":
                found[stem][part] = key
    return ((f"{stem}.weight", parts) for stem, parts in found.items())


def _is_quantised(
    weight: StoredTensor | None, names: frozenset[str], stated: bool, signs: frozenset[str]
) -> bool:
    """Whether a layer with these tensors beside its weight is stored quantised."""
    if weight is None:
        return bool(names & (_UNMISTAKABLE | _ALONE))
    if is_ggml(weight.dtype):
        return True
    narrow = BITS[weight.dtype] <= 8 and weight.dtype != "BOOL"
    loose = weight.dtype == "U32" and "scales" in names
    return (narrow and (bool(names) or stated)) or bool(names & (_UNMISTAKABLE | signs)) or loose


def _is_part(key: str, weight: str) -> bool:
    """Whether a tensor beside a quantised weight is a part of it: all but what a module of its own has."""
    return not key.endswith((".weight", ".bias")) and key.startswith(weight.removesuffix("weight"))


def _packed(home: Mapping[str, Header]) -> Iterator[Quantised]:
    """Tensors of GGML types under keys that are no weight's."""
    for key, header in home.items():
        if is_ggml(header.tensors[key].dtype):
            yield Quantised.of(StoredLayer(key, stored(header, key), {}))


def _stacked(home: Mapping[str, Header], config: Mapping[str, object]) -> Iterator[Quantised]:
    """Matrices whose scales have their names behind their own."""
    for key, header in home.items():
        parts = {
            part: stored(home[key + end], key + end) for end, part in _STACKED.items() if key + end in home
        }
        if parts and not key.endswith(".weight"):
            yield Quantised.of(StoredLayer(key, stored(header, key), parts, None, config))
