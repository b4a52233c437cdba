"""The request of ``convert``, and its checks before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paramerge.adapters import Adapter
from paramerge.apply.amounts import check_amounts
from paramerge.checkpoints.layout import Base
from paramerge.errors import FamilyError, UsageError
from paramerge.files.dtype_names import parse_dtype
from paramerge.files.outputs import check_output_file, check_output_folder, inputs_of
from paramerge.formats.layers import bare_norm, clip_path, unet_path
from paramerge.formats.registry import DIALECTS, named_dialect, writable
from paramerge.listing import listed
from paramerge.merge.request import Input
from paramerge.models.names import MODEL, ModuleName, split_kind
from paramerge.models.registry import records
from paramerge.wording import call, option


@dataclass(frozen=True)
class ConvertOptions:
    """The options of ``paramerge convert``.

    Attributes
    ----------
    to:
        The key of a dialect that is written (:func:`paramerge.formats.registry.writable`), or its alias.
    dtype:
        ``F16``, ``BF16`` or ``F32``; None to keep each tensor's (of a PaRa that becomes a LoRA: F16).
    partial:
        Leave out layers that the format cannot hold, and keys that are no layer's, instead of refusing.
    private:
        As for a merge: no names, and no metadata except those on the kind of model.
    rank:
        Write layers of other families as the nearest LoRA of at most this rank; None keeps their families.
    """

    to: str
    dtype: str | None = None
    partial: bool = False
    private: bool = False
    rank: int | None = None

    def __post_init__(self) -> None:
        formats = {name: key for key, each in writable().items() for name in (key, *each.aliases)}
        if self.to not in formats:
            raise UsageError("no such format", where=option("to"), expected=", ".join(formats), found=self.to)
        object.__setattr__(self, "to", formats[self.to])
        check_amounts(rank=self.rank)
        if self.dtype is not None:
            object.__setattr__(self, "dtype", parse_dtype(self.dtype))


def check_request(
    inputs: Sequence[Input], adapters: Sequence[Adapter], options: ConvertOptions, base: Base | None
) -> bool:
    """Whether PaRas become a LoRA; refuses inputs that do not go together."""
    families = {adapter.family for adapter in adapters}
    of_paras = named_dialect(options.to).parts in ("para", "deft")
    to_lora = "para" in families and not of_paras
    if options.rank is not None and (of_paras or families <= {"para", "lora"}):
        raise UsageError(
            "a rank was given to a conversion that lowers none",
            where=option("rank", options.rank),
            expected="an adapter of a family such as LoHa or LoKr, for a format of LoRAs",
            found=f"{', '.join(sorted(families))}, for {options.to}",
            hint=f"lower the rank of a LoRA or PaRa with {call('resize', rank=options.rank)}",
        )
    for given, adapter in zip(inputs, adapters, strict=True):
        if given.scale != 1 and (adapter.family == "para" or not to_lora):
            raise UsageError(
                "a strength was given to a conversion, which keeps its input's",
                where=given.path,
                expected="the file alone",
                found=f"@{given.scale:g}",
                hint="give the strength where the adapter is used",
            )
    if len(adapters) > 1 and not to_lora:
        raise UsageError(
            "several adapters were given to be converted into one",
            where=", ".join(str(given.path) for given in inputs),
            expected="one adapter, or PaRas and LoRAs for a LoRA's format",
            hint="make them one first: paramerge merge A B -o BOTH",
        )
    if not to_lora:
        return False
    if others := sorted(families - {"para", "lora"}):
        raise FamilyError(
            "an adapter that is neither a PaRa nor a LoRA cannot become a part of one LoRA",
            where=options.to, found=", ".join(others),
            hint=f"bake them all, and extract a LoRA: {call('extract', tuned='BAKED', base='BASE')}",
        )  # fmt: skip
    if base is None:
        raise FamilyError(
            "no base was given, and a PaRa is a LoRA for one base alone",
            where=option("to", options.to),
            expected=option("base"),
            found="no base",
            hint="give the checkpoint that the LoRA will be used with, or convert "
            f"{option('to', 'para')} or deft",
        )
    return True


def refuse_unread_names(adapters: Sequence[Adapter]) -> None:
    """Refuse names of other models with underscores: only the checkpoint settles which are dots."""
    for adapter in adapters:
        dialect = DIALECTS.get(adapter.dialect)
        if dialect is None or not dialect.underscored:
            continue
        unread = [
            str(name)
            for name in adapter.modules
            if "." not in name.path and not (unet_path(name.path) or clip_path(name.path))
        ]
        if unread:
            raise UsageError(
                "the names of the layers cannot be read: their underscores may be dots",
                where=adapter.path,
                expected=f"{option('base')}, whose keys settle it",
                found=listed(unread, 3),
            )


def refuse_other_names(adapter: Adapter, base: Base | None) -> None:
    """Refuse layers whose names in diffusers' implementation of the model are not known.

    They are Stable Diffusion's, those of architectures whose records map them (FLUX), those of a base that
    is a folder, and those of an adapter that names a pipeline's component or that PEFT saved from the model
    itself. Other names are of the model's original implementation (``diffusion_model.``, kohya's), and
    diffusers would load nothing of them.

    Raises
    ------
    UsageError
    """
    if base is not None and base.is_folder:
        return
    spelled = base is None and adapter.dialect in ("diffusers", "diffusers-old", "peft", "peft-deft")
    unknown = [
        str(name)
        for name, module in adapter.modules.items()
        if not _is_known_to_diffusers(name)
        and not (spelled and (adapter.dialect.startswith("peft") or _names_component(module.keys[0], name)))
    ]
    if unknown:
        mapped = [record.title for record in records() if record.key_map is not None]
        raise UsageError(
            "diffusers' names for layers of this adapter are not known",
            where=adapter.path,
            expected=f"layers of Stable Diffusion or {' or '.join(mapped)}, or {option('base')} with a "
            "folder in diffusers' layout",
            found=listed(unknown, 3),
            hint="these are the names of the model's original implementation: give that folder as "
            f"{option('base')}, or keep the file for the programs that read such names",
        )


def _is_known_to_diffusers(name: ModuleName) -> bool:
    path = split_kind(name.path)[0]
    if name.component.startswith("text_encoder"):
        return "." in path
    if unet_path(path) or clip_path(path) or bare_norm(path):
        return True
    return any(record.key_map.path(path) for record in records() if record.key_map is not None)


def _names_component(key: str, name: ModuleName) -> bool:
    """Whether the key begins with the component of a pipeline, and not with ComfyUI's prefix or nothing."""
    return name.component != MODEL and key.startswith(f"{name.component}.")


def check_output(
    output: Path, to: str, adapters: Sequence[Adapter], base: Base | None, *, overwrite: bool
) -> Path:
    """Refuse an output that may not be written, and give it with its ending; raises OutputError."""
    inputs = inputs_of(base, *adapters)
    if named_dialect(to).folder:
        return check_output_folder(output, inputs, overwrite=overwrite)
    return check_output_file(output, inputs, overwrite=overwrite)
