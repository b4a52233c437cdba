"""Weights that are stored quantised: which tensors belong to one, and by which scheme.

A weight of 8 bits or fewer is plain only if it has no tensor beside it but its bias, and no configuration and
no mark speaks of quantisation. All tensors of a quantised layer (codes, scales, zero points, marks) go by the
scheme's name: an adapter cannot be baked into such a layer, and no dtype can be given to any of these
tensors. Schemes are recognised here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paramerge.errors import CheckpointError
from paramerge.files.dtypes import BITS

METADATA_KEY = "_quantization_metadata"
"""The key of a file's metadata by which ComfyUI lists quantised layers."""

_SCALES = (
    "scale_weight",
    "weight_scale",
    "weight_scale_inv",
    "weight_scale_2",
    "qscale_weight",
    "weight_scales",
    "weight_scale_1",
    "weight_zero_point",
    "weight_packed",
    "weight_shape",
    "weight_global_scale",
    "wscales",
    "comfy_quant",
    "SCB",
)
"""Names of tensors beside a weight that no plain layer has, whatever its dtype."""

_INSIDE = re.compile(
    r"(?P<key>.+\.weight)[._:](?P<part>absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+"
    r"|_data|_scale|_shift|qdata|int_data|scale|scales|zero_point)$"
)
"""Parts of a weight that was saved in parts."""

_UNMISTAKABLE = frozenset({"qweight", "W_q", "weight_packed", "absmax", "quant_map", "quant_state"})
"""Names that mean codes even beside a weight."""

_PLAIN = ("bias", "running_mean", "running_var", "num_batches_tracked")
"""Names of tensors beside plain weights."""

_MARKS = ("scaled_fp8",)
"""Keys, with any prefix, that mark all 8-bit weights of a file as scaled."""


@dataclass(frozen=True)
class _Scheme:
    """A scheme, known from the tensors beside a weight: any of ``parts``, and the weight's dtype where it
    matters."""

    name: str
    parts: frozenset[str]
    dtypes: tuple[str, ...] = ()

    def fits(self, dtype: str | None, parts: frozenset[str]) -> bool:
        return bool(parts & self.parts) and (not self.dtypes or dtype in self.dtypes)


_FP8 = tuple(name for name in BITS if name.startswith("F8_"))
_SCHEMES = (
    _Scheme("SVDQuant (nunchaku)", frozenset({"wscales", "smooth_factor", "smooth", "smooth_factor_orig"})),
    _Scheme("SVDQuant (nunchaku)", frozenset({"lora_up", "lora_down", "proj_up", "proj_down"})),
    _Scheme("GPTQ or AWQ", frozenset({"qweight"})),
    _Scheme("bitsandbytes, 4 bits", frozenset({"absmax", "quant_map", "quant_state"})),
    _Scheme("bitsandbytes, 8 bits", frozenset({"SCB"})),
    _Scheme("compressed-tensors", frozenset({"weight_packed", "weight_global_scale"})),
    _Scheme("NVFP4", frozenset({"weight_scale_2"}), ("U8", "F4", "I8")),
    _Scheme("optimum-quanto", frozenset({"_data", "_scale"})),
    _Scheme("torchao", frozenset({"qdata", "int_data"})),
    _Scheme("HQQ", frozenset({"W_q"})),
    _Scheme("MLX", frozenset({"scales"}), ("U32",)),
)  # fmt: skip
"""Schemes with names, in the order in which they are tried; others go by dtype and scale."""

WITHOUT_WEIGHTS = frozenset(
    scheme.name for scheme in _SCHEMES if scheme.name not in ("bitsandbytes, 8 bits", "NVFP4", "MLX")
)
"""Schemes whose layers have no weight of their own shape: a model of them cannot be laid out at all."""


def quantised_tensors(dtypes: Mapping[str, str], config: str | None = None) -> dict[str, str]:
    """The scheme of every tensor that belongs to a quantised layer, by key.

    Parameters
    ----------
    dtypes:
        Every key of the files of one component, with its dtype by the header's name.
    config:
        The quantisation that a configuration beside them states, or None.
    """
    siblings = _siblings(dtypes)
    marks = [key for key in dtypes if key.rpartition(".")[2] in _MARKS]
    stated = config or ("scaled fp8" if marks else None)
    found: dict[str, str] = {}
    for stem, parts in siblings.items():
        key = f"{stem}.weight"
        scheme = _scheme(dtypes.get(key), parts, stated)
        if scheme is not None:
            found |= {other: scheme for other in parts.values() if _is_part(other, stem)}
            found |= {key: scheme} if key in dtypes else {}
    for key, dtype in dtypes.items():  # stacked matrices have their scale's name behind their own
        scales = [key + end for end in ("_scale", "_scale_inv", "_scale_2") if key + end in dtypes]
        if scales and key not in found and not key.endswith(".weight"):
            scheme = "scaled fp8" if dtype in _FP8 else f"{dtype} with a scale"
            found |= dict.fromkeys((key, *scales), scheme)
    return found | dict.fromkeys(marks, "scaled fp8")


def _siblings(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """By layer, the tensors beside (or instead of) its weight: the part's name and its key."""
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        if match := _INSIDE.match(key):
            found.setdefault(match["key"].removesuffix(".weight"), {})[match["part"].partition(".")[0]] = key
            continue
        stem, _, part = key.rpartition(".")
        if stem and part not in _PLAIN:
            found.setdefault(stem, {})
            if part != "weight":
                found[stem][part] = key
    return found


def _scheme(dtype: str | None, parts: Mapping[str, str], stated: str | None) -> str | None:
    """The scheme of a layer with a weight of this dtype (None: without) and these tensors beside it."""
    names = frozenset(parts)
    narrow = dtype is not None and BITS.get(dtype, 16) <= 8 and dtype != "BOOL"
    coded = names & _UNMISTAKABLE or (dtype is None and names & {"_data", "qdata", "int_data"})
    scaled = dtype is not None and names & {*_SCALES}
    loose = dtype == "U32" and "scales" in names
    if not (narrow and (names or stated)) and not coded and not scaled and not loose:
        return None
    known = next((scheme.name for scheme in _SCHEMES if scheme.fits(dtype, names)), None)
    if known is not None:
        return known
    if dtype in _FP8:
        return "scaled fp8" if names or stated == "scaled fp8" else f"{stated}, as its config.json says"
    if not names:
        return f"{stated}, as its config.json says"
    return f"{dtype} with {', '.join(sorted(names))}"


def _is_part(key: str, stem: str) -> bool:
    """Whether a tensor beside a quantised weight is a part of it: all but what a module of its own has."""
    return not key.endswith((".weight", ".bias")) and key.startswith(f"{stem}.")


def quantised_layer(where: object, scheme: str) -> CheckpointError:
    """The error for a layer whose numbers are needed and that is stored by ``scheme``."""
    return CheckpointError(
        f"this layer is stored quantised ({scheme}): the stored numbers are not its weight",
        where=where,
        expected="F16, BF16, F32, F64 or plain F8",
        found=scheme,
        hint="take the fp16 or bf16 checkpoint, and quantise the result",
    )
