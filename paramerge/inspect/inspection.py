"""The kind and the content of a file, as data: an adapter, one that cannot be baked, a checkpoint, or
neither.

Headers decide; tensors are read only of adapters that can be baked, for their norms and ranks.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from paramerge.adapters import Adapter, LayerModule, ParaModule
from paramerge.adapters.numbers import is_real, is_single
from paramerge.adapters.overflow import overflowing
from paramerge.arguments import as_path
from paramerge.checkpoints.layout import Base, base_of, open_base
from paramerge.errors import CheckpointError, FamilyError, NonFiniteError
from paramerge.files.gguf import is_gguf
from paramerge.files.header import Header
from paramerge.files.recipe_text import RECIPE_KEY, parsed_recipe
from paramerge.files.tensors import stored
from paramerge.formats.families import CHECKPOINT, OF_NO_FAMILY, Survey, adapter_keys
from paramerge.formats.layers import clip_path, unet_path
from paramerge.formats.opening import is_adapter_folder, read_adapter, survey_file
from paramerge.formats.provenance import possible_architectures
from paramerge.formats.registry import place_of
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.models.layer_kinds import layer_kind
from paramerge.models.model_names import looks_like
from paramerge.models.names import COMPONENTS, ModuleName
from paramerge.shipped import named_model
from paramerge.summarised import Summarised
from paramerge.system_faults import reading


@dataclass(frozen=True)
class LayerFacts:
    """One layer of an adapter.

    Attributes
    ----------
    shape:
        (out, in) of the change, a convolution flattened; (out,) for a PaRa and where the file does not show
        the inputs, () where it shows neither.
    alpha, scale:
        Of families with factors: the file's alpha (None: alpha = rank), and the factor on their product.
    norm:
        ``||W' - W||``, Frobenius, of families that do not depend on the weight; NaN where a tensor is not
        finite.
    directions:
        Of a PaRa: the numerical rank of B, at most ``rank``; 0 where B is not finite.
    family, form:
        The family, and how it is represented here, in words.
    rank_bound:
        The most that the rank of the change can be; None where the file alone does not tell.
    """

    name: ModuleName
    rank: int
    shape: tuple[int, ...]
    dtype: str
    alpha: float | None = None
    scale: float | None = None
    norm: float | None = None
    directions: int | None = None
    family: str = "lora"
    form: str = ""
    rank_bound: int | None = None

    @property
    def kind(self) -> str:
        """``self-attention``, ``feed-forward`` ..."""
        return layer_kind(self.name)


@dataclass(frozen=True, repr=False)
class AdapterFacts(Summarised):
    """An adapter that ``bake`` takes."""

    adapter: Adapter
    layers: tuple[LayerFacts, ...] = field(repr=False)
    size: int
    """Bytes of its weights' file."""

    def summary(self) -> Mapping[str, object]:
        """The facts that it is shown by."""
        return {**self.adapter.summary(), "bytes": self.size}

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's own metadata."""
        return self.adapter.metadata

    @property
    def possible(self) -> tuple[str, ...]:
        """The architectures that have all its layers, where the adapter does not state its own."""
        return () if self.adapter.architecture else possible_architectures(self.adapter.modules)

    @property
    def looks_like(self) -> str | None:
        """The models whose layers have names like its own, where these are none of Stable Diffusion's."""
        return looks_like(
            name.path for name in self.adapter.modules if not (unet_path(name.path) or clip_path(name.path))
        )


@dataclass(frozen=True)
class ForeignFacts:
    """An adapter of a family that is known by name and cannot be baked, with the refusal of ``bake``."""

    path: Path
    reason: str
    hint: str | None
    families: Mapping[str, int]
    """Modules of each family."""
    components: Mapping[tuple[str, str], int]
    """Modules by component and kind of layer, as far as their names are known."""
    unnamed: int
    """Modules whose names are not known."""
    alphas: Mapping[float, int]
    dtypes: Mapping[str, int]
    tensors: int
    size: int
    metadata: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class ComponentFacts:
    """One component of a checkpoint."""

    component: str
    tensors: int
    layers: int
    """Layers that adapters can reach."""
    size: int
    dtypes: Mapping[str, int]


@dataclass(frozen=True)
class CheckpointFacts:
    """A base checkpoint, or a baked one."""

    base: Base
    components: tuple[ComponentFacts, ...]
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(component.size for component in self.components)

    @property
    def quantised(self) -> Mapping[str, int]:
        """The number of quantised layers by scheme; the name of one that is not read says so."""
        layers = dict.fromkeys(layer for file in self.base.files for layer in file.quantised.values())
        names = (layer.title if layer.fault is None else f"{layer.title}, not read" for layer in layers)
        return dict(Counter(names).most_common())


@dataclass(frozen=True)
class UnknownFacts:
    """A safetensors file that is neither, with the reason why not."""

    path: Path
    reason: str
    keys: tuple[str, ...] = field(repr=False)
    dtypes: Mapping[str, int]
    size: int
    metadata: Mapping[str, str] = field(repr=False)


def inspect_path(
    path: str | os.PathLike[str], interpretation: Interpretation = BY_TRAINER
) -> AdapterFacts | ForeignFacts | CheckpointFacts | UnknownFacts:
    """Find out the kind of a file or folder, or of the shipped model by its name.

    ``interpretation`` is for what trainers disagree on.

    Raises
    ------
    FileFormatError
        It is missing, damaged, or a pickle.
    AdapterError
        It is an adapter that is incomplete or contradicts itself.
    CheckpointError
        It is a folder that is neither an adapter nor a checkpoint.
    """
    opened = open_any(path, interpretation)
    if not isinstance(opened, OpenedAdapter):
        return opened
    layers = tuple(_layer(module) for module in opened.adapter.modules.values())
    return AdapterFacts(opened.adapter, layers, opened.size)


@dataclass(frozen=True)
class OpenedAdapter:
    """An adapter that ``bake`` takes, none of whose tensors was read."""

    adapter: Adapter
    size: int
    """Bytes of its weights' file."""


def open_any(
    path: str | os.PathLike[str], interpretation: Interpretation = BY_TRAINER
) -> OpenedAdapter | ForeignFacts | CheckpointFacts | UnknownFacts:
    """Find out the kind by the headers alone; raises as :func:`inspect_path` does."""
    path = named_model(as_path(path))
    with reading(path):
        is_folder = path.is_dir()
    if (is_folder and not is_adapter_folder(path)) or is_gguf(path):
        return _checkpoint(open_base(path))
    surveyed = survey_file(path)
    header, found = surveyed.whole, surveyed.found
    if CHECKPOINT in found.modules or not found.modules:
        try:
            return _checkpoint(base_of(header))
        except CheckpointError as error:
            if not set(found.modules) - {CHECKPOINT}:
                return _unknown(header, error)
    try:
        adapter = read_adapter(surveyed, interpretation=interpretation)
    except FamilyError as error:
        return _foreign(surveyed.header, found, error)
    return OpenedAdapter(adapter, header.file_size)


def read_recipe(metadata: Mapping[str, str]) -> object:
    """The recipe that ``bake`` left in ``metadata``; None without one, the text itself if it is no JSON."""
    text = metadata.get(RECIPE_KEY)
    if text is None:
        return None
    try:
        return parsed_recipe(text)
    except ValueError:
        return text


def _layer(module: LayerModule) -> LayerFacts:
    with overflowing():
        norm = module.norm()
    alpha: float | None = getattr(module, "alpha", None)
    return LayerFacts(
        module.name,
        module.rank,
        tuple(size for size in (module.out_features, module.in_features) if size is not None),
        module.dtype,
        alpha,
        module.scale,
        norm,
        _directions(module) if isinstance(module, ParaModule) else None,
        module.family,
        module.form,
        module.rank_bound,
    )


def _directions(module: ParaModule) -> int:
    try:
        return module.directions().rank
    except NonFiniteError:
        return 0


def _checkpoint(base: Base) -> CheckpointFacts:
    tensors: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    layers: Counter[str] = Counter()
    dtypes: dict[str, Counter[str]] = {}
    for file in base.files:
        layers.update(name.component for name, target in file.targets.items() if not target.stack)
        for key, info in file.header.tensors.items():
            component = file.components[key]
            tensors[component] += 1
            sizes[component] += info.nbytes
            dtypes.setdefault(component, Counter())[info.dtype] += 1
    order = {name: place for place, name in enumerate((*COMPONENTS, "other"))}
    components = tuple(
        ComponentFacts(name, tensors[name], layers[name], sizes[name], dict(dtypes[name].most_common()))
        for name in sorted(tensors, key=lambda name: (order.get(name, len(order)), name))
    )
    headers = [file.header.metadata for file in base.files]
    recipes = [metadata for metadata in headers if RECIPE_KEY in metadata]
    return CheckpointFacts(base, components, next(iter([*recipes, *headers]), {}))


def _foreign(header: Header, found: Survey, error: FamilyError) -> ForeignFacts:
    names = [_layer_of(module) for modules in found.modules.values() for module in modules]
    components = Counter((name.component, layer_kind(name)) for name in names if name is not None)
    return ForeignFacts(
        path=header.path,
        reason=error.what,
        hint=error.hint,
        families={family: len(modules) for family, modules in found.modules.items()},
        components=components,
        unnamed=sum(name is None for name in names),
        alphas=_alphas(header),
        dtypes=_dtypes(header),
        tensors=len(header.tensors),
        size=header.file_size,
        metadata=header.metadata,
    )


def _layer_of(module: str) -> ModuleName | None:
    """The layer of a module of any family, if its name is known."""
    place = place_of(module)
    return place.name if place else None


def _alphas(header: Header) -> dict[float, int]:
    alphas: Counter[float] = Counter()
    for key in header.tensors:
        if key.endswith(".alpha") and is_single(tensor := stored(header, key)) and is_real(tensor):
            alphas[float(tensor.read().reshape(()).astype(np.float64))] += 1
    return dict(alphas.most_common())


def _dtypes(header: Header) -> dict[str, int]:
    return dict(Counter(info.dtype for info in header.tensors.values()).most_common())


def _unknown(header: Header, error: CheckpointError) -> UnknownFacts:
    reason = OF_NO_FAMILY if adapter_keys(header.tensors) else error.what
    return UnknownFacts(
        header.path, reason, tuple(header.tensors), _dtypes(header), header.file_size, header.metadata
    )
