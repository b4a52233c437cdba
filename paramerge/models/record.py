"""The record of an architecture: all that paramerge knows of it, in one place.

Most fields may be left out: a name, and keys by which it is recognised, are enough for a model whose layers
go by the names that its files have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from paramerge.models.clip_keys import EncoderPrefix
from paramerge.models.key_map import KeyMap
from paramerge.models.names import MODEL
from paramerge.models.resemblance import Resemblance
from paramerge.models.unet_facts import UNetTraits
from paramerge.models.unet_keys import LDM_UNET_PREFIX
from paramerge.models.unet_structure import UNetStructure


class Published(Protocol):
    """The tensors of a published checkpoint, without their values."""

    @property
    def components(self) -> tuple[str, ...]:
        """The components that adapters reach."""

    def shapes(self, component: str) -> Mapping[str, tuple[int, ...]]:
        """The tensors of one component: keys by the names of layers that paramerge speaks, and shapes."""


@dataclass(frozen=True, eq=False)
class BlockNames:
    """The blocks whose weights a user may give (``FILE@1:IN04=0.5``).

    Attributes
    ----------
    names:
        In order; the first is for what lies in no block. Those that end in digits may be named together by
        what stands before these.
    of:
        The block of a layer's path (also with ``.weight`` or ``.bias``); None for what is no layer.
    vectors:
        The blocks that a vector names, by how many numbers it has.
    """

    names: tuple[str, ...]
    of: Callable[[str], str | None]
    vectors: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class KohyaNames:
    """An architecture's names in kohya's scripts, and its components' in names of layers."""

    version: str | None = None
    """``ss_base_model_version``, as it is written."""
    also: tuple[str, ...] = ()
    """Other beginnings of it that are read."""
    v2: bool = False
    """Whether ``ss_v2`` is true of it, and of nothing else."""
    prefixes: Mapping[str, str] = field(
        default_factory=lambda: {
            "unet": "lora_unet_",
            "text_encoder": "lora_te_",
            "text_encoder_2": "lora_te2_",
        }
    )
    """By component what its layers' names begin with."""


@dataclass(frozen=True, eq=False)
class ArchitectureRecord:
    """One architecture.

    Attributes
    ----------
    name:
        What reports and recipes call it: ``sd15``, ``flux`` ...; lower case, digits and hyphens.
    label:
        What people call it; by default its name.
    component:
        What the model itself is in a pipeline: ``unet``, ``transformer`` or, alone, ``model``.
    family:
        The architecture of whose layers it is made, whose adapters are meant for it too (``sd15`` of
        ``sd15-inpainting``); by default itself.
    patterns:
        How it is recognised: regular expressions, each of which must occur in some key of the file, with
        whatever prefix. Empty for a UNet of Stable Diffusion (``unet``).
    vague:
        Whether the patterns are of many models, so that a configuration's own name for one says more.
    beside_unet:
        Whether it has blocks that are named as a UNet's way up, which else is Stable Diffusion's.
    unet:
        By which blocks a UNet of Stable Diffusion is it.
    inputs:
        The names of its variants that differ in what goes in alone, by the number of channels.
    prefixes:
        What may stand before its keys in single files; the first that is there is taken.
    encoders:
        Where its single files have text encoders.
    key_map:
        The names of its layers in single files and in diffusers; None where they are the same, or LDM's.
    ldm:
        The blocks of a UNet, where LDM numbers them as of these levels.
    blocks:
        The blocks that have weights of their own.
    published:
        Makes the published checkpoint's layout.
    context_width:
        The width of the text that cross attention reads, where that is of no other architecture.
    encoder_width:
        The width of its first text encoder, where that is of no other architecture.
    shown_by:
        A regular expression that occurs in ``component.path`` of layers that no other architecture has.
    resembles:
        What its layers' names remind of: an adapter that says it is for this architecture is believed if the
        names of its layers remind of one of these, or of nothing.
    modelspec:
        ``modelspec.architecture`` of its models and, with ``/lora`` behind it, of its adapters.
    modelspec_read:
        Beginnings of ``modelspec.architecture`` that are read as it.
    resolution:
        ``modelspec.resolution``: width and height of the pictures that it was trained on.
    kohya:
        Its names in kohya's files.
    pipeline:
        The class of diffusers that makes pictures with it.
    unordered_rows:
        A regular expression of layers' paths whose rows files of one name and shape have in several orders.
    kinds:
        What sort of layer it is whose ``.path.`` has this in it, for reports.
    columns:
        What a layer whose path ends so is called above a column of a heat map, in order.
    """

    name: str
    label: str = ""
    component: str = "transformer"
    family: str | None = None
    patterns: tuple[str, ...] = ()
    vague: bool = False
    beside_unet: bool = False
    unet: UNetTraits | None = None
    inputs: Mapping[int, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = (LDM_UNET_PREFIX, "diffusion_model.", "transformer.", "")
    encoders: tuple[EncoderPrefix, ...] = ()
    key_map: KeyMap | None = None
    ldm: UNetStructure | None = None
    blocks: BlockNames | None = None
    published: Callable[[], Published] | None = None
    context_width: int | None = None
    encoder_width: int | None = None
    shown_by: str | None = None
    resembles: tuple[Resemblance, ...] = ()
    modelspec: str | None = None
    modelspec_read: tuple[str, ...] = ()
    resolution: str | None = None
    kohya: KohyaNames = KohyaNames()
    pipeline: str | None = None
    unordered_rows: str | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    def variant(self, name: str, **facts: Any) -> ArchitectureRecord:
        """The record of another model of the same layers: what is of this one alone is left out.

        ``facts`` are fields that the other has.
        """
        return replace(self, **(_OF_ONE | {"name": name, "family": self.plain} | facts))

    @property
    def plain(self) -> str:
        """The architecture whose layers it has: its family, or itself."""
        return self.family or self.name

    @property
    def title(self) -> str:
        """The name for people."""
        return self.label or self.name

    @property
    def stated_name(self) -> str:
        """The name that its adapters state in ``modelspec.architecture``, before the slash."""
        return self.modelspec or self.name

    @property
    def file_prefixes(self) -> tuple[str, ...]:
        """The possible prefixes of its keys: none where it is a model on its own."""
        return ("",) if self.component == MODEL else self.prefixes


_OF_ONE: dict[str, Any] = {
    "label": "",
    "patterns": (),
    "unet": None,
    "inputs": {},
    "published": None,
    "context_width": None,
    "encoder_width": None,
    "shown_by": None,
    "modelspec": None,
    "modelspec_read": (),
    "resolution": None,
    "pipeline": None,
}
"""Fields that :meth:`ArchitectureRecord.variant` leaves out."""
