"""Open an adapter of any dialect: find its files, survey all its keys, and read them in their dialect."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from paramerge.adapters import Adapter, LayerModule, Leftover
from paramerge.adapters.registry import vague_roles
from paramerge.arguments import as_path
from paramerge.errors import AdapterError, FamilyError, FileFormatError
from paramerge.files.header import LONGEST_KEY, Header, read_header
from paramerge.files.source import Source
from paramerge.formats import native, peft, released
from paramerge.formats.families import (
    CHECKPOINT,
    EMBEDDING,
    LORA,
    PARA,
    Survey,
    refuse_foreign,
    survey,
    wrong_family,
)
from paramerge.formats.family_files import read_layers
from paramerge.formats.provenance import base_hashes, guess_architecture
from paramerge.formats.registry import dialects
from paramerge.formats.roles import part_of
from paramerge.formats.whole_layers import whole_layers
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.listing import listed
from paramerge.models.names import ModuleName
from paramerge.regular_files import is_there
from paramerge.shipped import named_adapter
from paramerge.system_faults import reading

_DIFFUSERS_WEIGHTS = "pytorch_lora_weights.safetensors"
_WITH_LORA = frozenset({"lora", "full", "norm"})
"""Families of what trainers of LoRAs save beside the factors: biases, norms, whole modules."""

_NO_LAYER = "the name is not that of a layer of an SD or SDXL UNet or CLIP text encoder"
_NO_PART = "the key is no part of a LoRA or of another family"
_EMBEDDING = "token embeddings of a textual inversion"
_TOO_LONG = "the key is longer than any name of a layer"


@dataclass(frozen=True)
class AdapterFiles:
    """The files of an adapter: its weights, and PEFT's configuration if there is one that belongs to them."""

    weights: Path
    config: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        """The weights, then the configuration."""
        return (self.weights,) if self.config is None else (self.weights, self.config)


def find_files(path: str | os.PathLike[str]) -> AdapterFiles:
    """The files that ``path`` means: a safetensors file, a folder that PEFT or diffusers saved, or an adapter
    that ships, by its name.

    Raises
    ------
    FileFormatError
        There is no such file, or the folder is neither PEFT's nor diffusers'.
    """
    path = as_path(path)
    with reading(path):
        return _find_files(named_adapter(path))


def _find_files(path: Path) -> AdapterFiles:
    if not path.is_dir():
        beside = path.with_name(peft.CONFIG_NAME)
        return AdapterFiles(path, beside if is_there(beside) else None)
    if is_there(path / peft.CONFIG_NAME):
        return AdapterFiles(_peft_weights(path), path / peft.CONFIG_NAME)
    if is_there(path / _DIFFUSERS_WEIGHTS):
        return AdapterFiles(path / _DIFFUSERS_WEIGHTS, None)
    nested = sorted(config.parent for config in path.glob(f"*/{peft.CONFIG_NAME}"))
    checkpoint = is_there(path / "model_index.json")
    raise FileFormatError(
        "this folder is a checkpoint, not an adapter" if checkpoint else "this folder holds no adapter",
        where=path,
        expected=f"{peft.WEIGHTS_NAME} with {peft.CONFIG_NAME}, or {_DIFFUSERS_WEIGHTS}",
        found=listed(sorted(entry.name for entry in path.iterdir())) or "an empty folder",
        hint=f"give each adapter on its own: {', '.join(map(str, nested))}" if nested else None,
    )


def is_adapter_folder(path: Path) -> bool:
    """Whether PEFT or diffusers saved an adapter in the folder ``path``."""
    with reading(path):
        return any(is_there(path / name) for name in (peft.CONFIG_NAME, _DIFFUSERS_WEIGHTS))


def _peft_weights(folder: Path) -> Path:
    """PEFT's weights in ``folder``; those of a pickle, where there are no others, are refused when read."""
    pickled = folder / "adapter_model.bin"
    weights = folder / peft.WEIGHTS_NAME
    return pickled if is_there(pickled) and not is_there(weights) else weights


@dataclass(frozen=True)
class SurveyedFile:
    """A file that may be an adapter, open, with its keys in families."""

    path: Path
    """The path as given: the file, or its folder."""
    files: AdapterFiles
    whole: Header
    header: Header
    """With the keys alone that can be names."""
    too_long: tuple[str, ...]
    """The other keys, which no pattern is tried on."""
    found: Survey


def survey_file(path: str | os.PathLike[str]) -> SurveyedFile:
    """Open what may be an adapter and sort its keys; nothing is refused for what they are.

    Raises
    ------
    FileFormatError
        A missing or damaged file, a pickle.
    """
    files = find_files(path)
    whole = read_header(files.weights)
    header, too_long = _short_names(whole)
    return SurveyedFile(Path(path), files, whole, header, too_long, survey(header))


def open_adapter(
    path: str | os.PathLike[str],
    family: str | None = None,
    interpretation: Interpretation = BY_TRAINER,
) -> Adapter:
    """Open the adapter at ``path``, of any dialect; no tensor but its alphas is read.

    Parameters
    ----------
    family:
        ``para`` or ``lora`` to refuse every other; None or ``adapter`` to take any.
    interpretation:
        The user's decisions where trainers disagree on the meaning of tensors.

    Raises
    ------
    FileFormatError
        A missing or damaged file, a pickle.
    FamilyError
        A family that cannot be baked, several families in one file, or not the ``family`` asked for.
    AdapterError
        A file that is no adapter, or one that is incomplete or contradicts itself.
    """
    return read_adapter(survey_file(path), family, interpretation)


def read_adapter(
    surveyed: SurveyedFile, family: str | None = None, interpretation: Interpretation = BY_TRAINER
) -> Adapter:
    """Read the adapter (:func:`open_adapter`) in a file that is open already."""
    header, found, too_long = surveyed.header, surveyed.found, surveyed.too_long
    configured = surveyed.files.config if _is_peft(header, surveyed.path) else None
    config = None if configured is None else Source.open(configured)
    tuner = None if config is None else peft.read_tuner(peft.read_config(config), str(config.path))
    refuse_foreign(found, header.path)
    modules: Mapping[ModuleName, LayerModule]
    if PARA in found.modules:
        if family == "lora":
            raise wrong_family(family, "para", header.path)
        dialect = "paramerge"
        modules, leftovers = native.read_modules(header)
    elif released.is_light(header):
        dialect, modules, leftovers = released.LIGHT, released.read_light(header), ()
    else:
        if family == "para" and set(found.modules) <= {LORA, EMBEDDING, CHECKPOINT}:
            raise wrong_family(family, "lora", header.path)
        dialect, modules, used = read_layers(header, found, tuner, interpretation)
        modules = released.read_released(header, modules, interpretation)
        leftovers = _leftovers(header, used, found)
    leftovers = (*leftovers, *([Leftover(too_long, _TOO_LONG)] if too_long else []))
    parsed = len(modules)
    modules, leftovers = whole_layers(modules, leftovers)
    if parsed and not modules:
        raise FamilyError(
            "no layer of this adapter is understood whole",
            where=header.path,
            expected="keys that are all of a known family",
            found=listed([key for leftover in leftovers for key in leftover.keys]),
            hint="; ".join(leftover.reason for leftover in leftovers),
        )
    families = {module.family for module in modules.values()}
    actual = families.pop() if len(families) == 1 else "mixed"
    beside = actual == "mixed" and {m.family for m in modules.values()} <= _WITH_LORA
    if modules and family not in (None, "adapter", actual) and not (family == "lora" and beside):
        raise wrong_family(str(family), actual, header.path)
    if not modules:
        raise AdapterError(
            "no layer of this adapter is known",
            where=header.path,
            expected="names of layers, such as unet.mid_block.attentions.0.proj_in.lora_A.weight",
            found=listed([key for leftover in leftovers for key in leftover.keys]),
            hint="look at its content: paramerge inspect",
        )
    return Adapter(
        path=header.path,
        opened=(header.source,) if config is None else (header.source, config),
        family=actual,
        dialect=dialect,
        modules=modules,
        leftovers=leftovers,
        metadata=header.metadata,
        architecture=guess_architecture(modules, header.metadata),
        base_hashes=base_hashes(header.metadata),
        interpretation=interpretation,
    )


def _short_names(header: Header) -> tuple[Header, tuple[str, ...]]:
    too_long = tuple(key for key in header.tensors if len(key) > LONGEST_KEY)
    if not too_long:
        return header, ()
    tensors = {key: info for key, info in header.tensors.items() if len(key) <= LONGEST_KEY}
    return replace(header, tensors=tensors), too_long


def _is_peft(header: Header, path: Path) -> bool:
    """Whether a configuration beside the weights is theirs: by the folder, the name or the keys."""
    named = path.is_dir() or path.name == peft.WEIGHTS_NAME
    return named or any(key.startswith(peft.PREFIX) for key in header.tensors)


def _leftovers(header: Header, used: Collection[str], found: Survey) -> tuple[Leftover, ...]:
    """The keys that became no part of a layer, by reason."""
    embeddings = {
        *found.modules.get(EMBEDDING, ()),
        *(key for dialect in dialects() for key in dialect.embeddings(header)),
    }
    reasons: dict[str, list[str]] = {}
    for key in header.tensors:
        if key not in used:
            reasons.setdefault(_EMBEDDING if key in embeddings else _reason(key), []).append(key)
    return tuple(Leftover(tuple(keys), reason) for reason, keys in reasons.items())


def _reason(key: str) -> str:
    part = part_of(key)
    if part is not None and part not in vague_roles():
        return _NO_LAYER
    return peft.leftover_reason(key) or _NO_PART
