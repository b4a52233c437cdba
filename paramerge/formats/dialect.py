"""The record of a dialect: a way in which files of adapters name layers and the parts of their changes.

A key of an adapter is a stem, which names a layer, a separator, and an ending, which names the part of the
layer's change: ``lora_unet_mid_block_attentions_0_proj_in`` ``.`` ``lora_up.weight``. Each dialect has a file
of its own, which reads and writes its names, and ends with its :class:`Dialect`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, Protocol

from paramerge.adapters import registry
from paramerge.errors import UsageError
from paramerge.files.header import Header
from paramerge.formats.layers import is_read_back
from paramerge.models.names import ModuleName


class Place(NamedTuple):
    """The layer that a key's stem names, and the dialect of the name.

    Attributes
    ----------
    layer:
        False for a norm or an embedding, whose name is then without ``.weight``.
    dialect:
        The key of the dialect that it is spelled in.
    """

    name: ModuleName
    layer: bool
    dialect: str


class Role(NamedTuple):
    """A key, understood: the place, and the part that the tensor is of its change (``up``, ``hada_w1_a``)."""

    place: Place
    role: str
    key: str


class WrittenLayer(Protocol):
    """A layer that was written, from which a dialect's metadata are made."""

    @property
    def name(self) -> ModuleName:
        """The layer; of a norm, without ``.weight``."""

    @property
    def family(self) -> str:
        """The key of its family."""

    @property
    def rank(self) -> int:
        """Its rank; 0 where its family has none."""

    @property
    def alpha(self) -> float | None:
        """Its alpha; None where the rank is meant, or there is none."""


def _no_embeddings(header: Header) -> Collection[str]:
    return ()


def _no_metadata(layers: Sequence[WrittenLayer], architecture: str | None) -> dict[str, str]:
    return {}


@dataclass(frozen=True, eq=False)
class Dialect:
    """One way to name layers, read and written.

    Attributes
    ----------
    key, names:
        The name in reports, recipes and ``convert --to``; and the naming in a few words.
    claims:
        Whether a key, or its stem alone, is spelled in this dialect; its layer need not be known.
    place:
        The layer that a stem names; None for a stem that can be no module's name.
    separator:
        The text between a stem and an ending.
    endings:
        The endings that it does not share with most, by their roles (``up``: ``lora_B.weight``), as they are
        written. Where the separator is a dot, other roles have the first ending of their family, and all
        endings that any family knows are read; where it is not, they go by their own names.
    also_read:
        Endings that are read in this dialect alone, beside an ``up`` as it is written in it, and their roles.
    cut:
        The stem and role of a key, where the separator does not divide them.
    indexed:
        The layers of a file's stems, where only its keys and metadata together decide.
    embeddings:
        The keys of a file that hold token embeddings, where its metadata tell them.
    spell:
        The stem of a layer (or of a norm, without ``.weight``) in an adapter for an architecture. It raises
        UsageError for a layer that the dialect has no name for. None where nothing is written so.
    underscored:
        Whether the dots of paths are underscores in its names.
    original:
        Whether its readers have the names of single files for a model that is known by two namings.
    parts:
        The format whose parts it has: families say for ``kohya``, ``diffusers``, ``peft``, ``para`` and
        ``deft`` which tensors hold a layer of theirs. Empty where ``convert`` does not write it.
    alpha:
        The place of a layer's alpha: in a tensor, in the configuration, or nowhere, so that it is multiplied
        into the factors.
    metadata:
        The metadata of a file with these layers, for an architecture.
    aliases:
        Other names that ``convert --to`` takes for it.
    folder:
        Whether an adapter is a folder with a configuration.
    variant_of:
        The dialect that this one is a spelling of; one file may have both.
    """

    key: str
    names: str
    claims: Callable[[str], bool]
    place: Callable[[str], Place | None]
    separator: str = "."
    endings: Mapping[str, str] = field(default_factory=dict)
    also_read: Mapping[str, str] = field(default_factory=dict)
    cut: Callable[[str], tuple[str, str] | None] | None = None
    indexed: Callable[[Header], Mapping[str, Place]] | None = None
    embeddings: Callable[[Header], Collection[str]] = _no_embeddings
    spell: Callable[[ModuleName, str | None], str] | None = None
    underscored: bool = False
    original: bool = False
    parts: str = ""
    alpha: Literal["tensor", "configuration", "folded"] = "tensor"
    metadata: Callable[[Sequence[WrittenLayer], str | None], dict[str, str]] = _no_metadata
    aliases: tuple[str, ...] = ()
    folder: bool = False
    variant_of: str | None = None

    @property
    def base(self) -> str:
        """The key of the dialect that this is a spelling of, or its own."""
        return self.variant_of or self.key

    def written(self, stem: str, role: str) -> str:
        """The key of the part ``role`` of the layer ``stem``."""
        other = registry.written(role) if self.separator == "." else role
        return f"{stem}{self.separator}{self.endings.get(role, other)}"

    def stem(self, name: ModuleName, architecture: str | None) -> str:
        """The stem of a layer's keys, which is read back as that layer; of a folder, which is of one model,
        as one of its path.

        Raises
        ------
        UsageError
            The dialect has no name for it, or is only read.
        """
        if self.spell is None:
            raise UsageError("this format cannot be written", where=self.key)
        stem = self.spell(name, architecture)
        place = self.place(stem)
        found = None if place is None else place.name
        same = found is not None and is_read_back(found, name)
        if not same and not (self.folder and found is not None and found.path == name.path):
            raise UsageError(
                "this format has no name for a layer of the adapter", where=name, expected=self.names
            )
        return stem

    @cached_property
    def roles(self) -> Mapping[str, str]:
        """The roles of :attr:`endings`, by their written endings."""
        return {ending: role for role, ending in self.endings.items()}
