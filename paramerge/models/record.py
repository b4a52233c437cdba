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
        """The tensors of one component: keys by paramerge's names of layers, and shapes."""


@dataclass(frozen=True, eq=False)
class BlockNames:
    """The blocks whose weights a user may give (``FILE@1:IN04=0.5``).

    Attributes
    ----------
    names:
        In order; the first is for layers in no block. Those that end in digits may be named together by the
        letters before these.
    of:
        The block of a layer's path (also with ``.weight`` or ``.bias``); None for anything but a layer.
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
    diffusers: bool = False
    """Whether layers go by diffusers' names in kohya's files, where those are not the single file's."""
    prefixes: Mapping[str, str] = field(
        default_factory=lambda: {
            "unet": "lora_unet_",
            "text_encoder": "lora_te_",
            "text_encoder_2": "lora_te2_",
            "transformer": "lora_unet_",
            "text_encoder_3": "lora_te3_",
        }
    )
    """The beginnings of layers' names, by component."""


@dataclass(frozen=True, eq=False)
class ArchitectureRecord:
    """One architecture.

    Attributes
    ----------
    name:
        Its name in reports and recipes: ``sd15``, ``flux`` ...; lower case, digits and hyphens.
    label:
        Its name for people; by default ``name``.
    component:
        The model's own component in a pipeline: ``unet``, ``transformer`` or, alone, ``model``.
    family:
        The architecture of whose layers it is made, whose adapters are meant for it too (``sd15`` of
        ``sd15-inpainting``); by default itself.
    patterns:
        Regular expressions by which it is recognised: each must occur in some key of the file, with any
        prefix. Empty for a UNet of Stable Diffusion (``unet``).
    vague:
        Whether the patterns are of many models, so that a configuration's own name for one says more.
    beside_unet:
        Whether it has blocks that are named as a UNet's way up, which else is Stable Diffusion's.
    unet:
        The blocks by which a UNet of Stable Diffusion is recognised.
    inputs:
        The names of its variants that differ in their inputs alone, by the number of channels.
    prefixes:
        The possible prefixes of its keys in single files; the first that is there is taken.
    encoders:
        The places of text encoders in its single files.
    key_map:
        The names of its layers in single files and in diffusers; None where they are not known, or LDM's.
    other_maps:
        Key maps of further namings that single files of it have, with the same names in diffusers.
    proportions:
        Rows of a layer for each of its columns, by the end of its path: tells it from models of like names.
    like_it:
        Architectures with layers of the same names; this one is meant where nothing tells them apart.
    ldm:
        The blocks of a UNet, where LDM numbers them as of these levels.
    blocks:
        The blocks that have weights of their own.
    published:
        The function that makes the published checkpoint's layout.
    context_width:
        The width of the text that cross attention reads, where that is of no other architecture.
    encoder_width:
        The width of its first text encoder, where that is of no other architecture.
    shown_by:
        A regular expression that occurs in ``component.path`` of layers that no other architecture has.
    resembles:
        Resemblances of its layers' names: an adapter that says it is for this architecture is believed if its
        layers' names have one of these, or none.
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
        The kind of a layer, by a text in its ``.path.``, for reports.
    columns:
        The title of a column of a heat map, by the end of layers' paths, in order.
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
    prefixes: tuple[str, ...] = (LDM_UNET_PREFIX, "diffusion_model.", "model.", "net.", "transformer.", "")
    encoders: tuple[EncoderPrefix, ...] = ()
    key_map: KeyMap | None = None
    other_maps: tuple[KeyMap, ...] = ()
    proportions: Mapping[str, int] = field(default_factory=dict)
    like_it: tuple[str, ...] = ()
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
        """The record of another model of the same layers: fields of this one alone are left out.

        ``facts`` are fields that the other has.
        """
        return replace(self, **(_OF_ONE | {"name": name, "family": self.plain} | facts))

    @property
    def key_maps(self) -> tuple[KeyMap, ...]:
        """All key maps; that of the naming which is written comes first."""
        return self.other_maps if self.key_map is None else (self.key_map, *self.other_maps)

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
