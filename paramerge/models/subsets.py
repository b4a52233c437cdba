"""The layers of a UNet that the paper's parameter subsets train (its Table 3), as rules on modules' names.

The paper's sizes come out exactly with the rules of the trainer that it built on: the layers are the linear
and convolution layers inside attentions, resnets and resamplers, so feed-forward layers, ``proj_in``,
``proj_out``, the embeddings and the outer convolutions are in no subset. Names are diffusers' paths inside
the UNet, without ``.weight``. Every rule is one regular expression that must match a whole path, which is
also what PEFT takes as ``target_modules``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType

from paramerge.errors import UsageError

PAPER_GAMMA = Fraction(1, 40)
"""The paper's rank boundary. Its Table 3 has it on convolutions only, Table 5 (at r = 32) on all layers."""

_ATTENTION = r"to_(?:q|k|v|out\.0)"
_SELF = rf"(?:.+\.)?attn1\.{_ATTENTION}"
_CROSS = rf"(?:.+\.)?attn2\.{_ATTENTION}"
_CONVOLUTIONAL = (
    r"(?:.+\.)?(?:resnets\.\d+\.(?:conv1|conv2|time_emb_proj|conv_shortcut)"
    r"|downsamplers\.\d+\.conv|upsamplers\.\d+\.conv)"
)


@dataclass(frozen=True, slots=True)
class Subset:
    """One row of the paper's Table 3, or the subset that its name means where the two differ."""

    name: str
    """Its name on the command line and in PaRaConfig."""
    label: str
    """The paper's name; empty where the paper has no such row."""
    pattern: str
    """Matches the whole path of a layer that is in the subset."""
    description: str

    def contains(self, path: str) -> bool:
        """Whether the layer at ``path`` of the UNet (diffusers' naming) is in the subset."""
        return re.fullmatch(self.pattern, path) is not None


def _either(*patterns: str) -> str:
    return "|".join(f"(?:{pattern})" for pattern in patterns)


_EXCLUDE_CROSS = _either(_SELF, _CONVOLUTIONAL)

SUBSETS: Mapping[str, Subset] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            Subset("ex-ca", "ExCA", _EXCLUDE_CROSS, "all but cross attention"),
            Subset(
                "ex-sa-table",
                "ExSA",
                _EXCLUDE_CROSS,
                "the row that Table 3 prints: its trainer's rule skips cross attention, so it is ex-ca",
            ),
            Subset(
                "ex-sa",
                "",
                _either(_CROSS, _CONVOLUTIONAL),
                "all but self attention: what the paper's text says, not what its table measures",
            ),
            Subset("sao", "SAO", _SELF, "self attention only"),
            Subset("cao", "CAO", _CROSS, "cross attention only"),
            Subset("fmt", "FMT", _either(_SELF, _CROSS, _CONVOLUTIONAL), "the full model"),
            Subset(
                "sca",
                "SCA",
                r"(?:.+\.)?attn2\.to_[qkv]",
                "strict cross attention as Table 3 measures it: queries, keys and values",
            ),
            Subset(
                "sca-qk",
                "",
                r"(?:.+\.)?attn2\.to_[qk]",
                "strict cross attention as the paper's text says it: queries and keys",
            ),
            Subset(
                "ex-ca-hl", "ExCA-HL", rf"(?=mid_block\.)(?:{_EXCLUDE_CROSS})", "ex-ca in the middle block"
            ),
            Subset(
                "ex-ca-hl-last",
                "ExCA-HL-Last",
                r"mid_block\.resnets\.1\.conv2",
                "the last convolution of the middle block",
            ),
        )
    }
)
"""The subsets by name, in the order of the paper's table."""


def subset(name: str) -> Subset:
    """The subset called ``name``, in any case (``ExCA-HL`` is ``ex-ca-hl``, ``ExSA`` the row of the table).

    Raises
    ------
    UsageError
        There is none.
    """
    wanted = name.lower()
    for entry in SUBSETS.values():
        if wanted in (entry.name, entry.label.lower()):
            # "ex-sa" and "ExSA" differ on purpose: the second is the paper's label of its table's row
            return entry
    raise UsageError(
        "there is no such subset of layers", where="subset", expected=", ".join(SUBSETS), found=name
    )


def in_subset(name: str, path: str) -> bool:
    """Whether the subset called ``name`` has the UNet's layer ``path``."""
    return subset(name).contains(path)


def select(name: str, paths: Iterable[str]) -> list[str]:
    """The ``paths`` (a UNet's linear and convolution layers) that the subset ``name`` has, in order.

    Raises
    ------
    UsageError
        There is no such subset, or it has none of these layers.
    """
    wanted = subset(name)
    chosen = [path for path in paths if wanted.contains(path)]
    if not chosen:
        raise UsageError(
            f"the subset {wanted.name} has none of these layers",
            where="subset",
            expected=f"layers such as {_EXAMPLES.get(wanted.name, 'mid_block.resnets.1.conv2')}",
            found="no such layer",
            hint="names are diffusers' paths inside the UNet, without its prefix and without .weight",
        )
    return chosen


_EXAMPLES = {
    name: f"mid_block.attentions.0.transformer_blocks.0.{kind}.to_q"
    for name, kind in (("sao", "attn1"), ("cao", "attn2"), ("sca", "attn2"), ("sca-qk", "attn2"))
}
