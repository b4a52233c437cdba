"""The kinds of adapter modules in a file, told from all of its keys and shapes.

Nothing is chosen by the first key that looks familiar: every key is sorted, each module gets one family,
and a file that is not wholly understood is refused by name rather than half applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from paramerge.adapters import krona, lora, para, registry, svdiff
from paramerge.adapters.family import Family, ending_pattern, without_name
from paramerge.adapters.foreign import FOREIGN, PEFT_TUNERS
from paramerge.errors import AdapterError, FamilyError, ParamergeError
from paramerge.files.header import Header, TensorInfo
from paramerge.formats.diffusers import DIFFUSERS, DIFFUSERS_OLD
from paramerge.formats.peft import PEFT
from paramerge.formats.registry import dialect_of
from paramerge.formats.roles import common_key
from paramerge.listing import listed
from paramerge.wording import option

LORA, PARA, DIFFUSE_KRONA, SVDIFF = (each.FAMILY.label for each in (lora, para, krona, svdiff))
EMBEDDING = "textual inversion"
CHECKPOINT = "checkpoint"

_OLD_LORA = re.compile(r"(?P<module>.*\.to_(?:q|k|v|out)_lora)\.(?P<side>up|down)\.weight")
_PEFT_TUNER = re.compile(rf"(?P<module>.*)\.(?P<tuner>{PEFT_TUNERS})_\w+(?:\.\w+){{0,2}}")

_WHOLE_FILES: tuple[tuple[str, str], ...] = (
    ("AnimateDiff motion module", r"(?s:.*\bmotion_modules\..*)"),
    (
        CHECKPOINT,
        r"(?:model\.diffusion_model|first_stage_model|cond_stage_model|conditioner\.embedders)\..*"
        r"|(?:down_blocks|up_blocks)\.\d+\.\w+\.\d+\.(?:(?!lora|processor).)*\.(?:weight|bias)"
        r"|(?:encoder|decoder)\.(?:down|up|mid)(?:_block|_blocks)?\..*\.(?:weight|bias)"
        r"|text_model\.embeddings\.\w+\.weight",
    ),
    ("ControlNet-LLLite", r"lllite_\w+\..*"),
    ("Control-LoRA", r"lora_controlnet"),
    ("ControlNet", r"control_model\..*|controlnet_(?:down_blocks|mid_block|cond_embedding)\..*"),
    ("IP-Adapter", r"(?:ip_adapter|image_proj)\..*"),
    ("hypernetwork", r"\d+\.[01]\.linear\.\d+\.(?:weight|bias)"),
    (EMBEDDING, r"emb_params|string_to_param(?:\..*)?|clip_[lg]|<.+>|bundle_emb\..*"),
)
"""Kinds of files by keys that they alone have; the first that fits a key names it."""

_WHOLE_PATTERNS = [(kind, re.compile(pattern)) for kind, pattern in _WHOLE_FILES]
_LONGEST_KEY = 10_000
"""Characters of the longest key that is looked at: no layer of any model has a name of this length."""

_KRONA_SIDES = {320, 640, 768, 1024, 1280, 2048}
"""Sizes of attention projections in Stable Diffusion UNets."""


class _Kind(NamedTuple):
    """A family by the endings of its keys, and what it says of the axes of tensors where it can be baked."""

    label: str
    pattern: re.Pattern[str]
    family: Family | None

    def has_axes(self, ending: str, count: int) -> bool:
        """Whether the tensor of a key with this ending can have so many axes in this family."""
        forms = () if self.family is None else self.family.forms
        roles = [
            (form, role)
            for form in forms
            for name, role in form.roles.items()
            if without_name(name) == ending
        ]
        return not roles or any(form.has_axes(role, count) for form, role in roles)


@lru_cache(maxsize=4)
def _kinds(every: tuple[Family, ...]) -> tuple[_Kind, ...]:
    """All families; the first that a layer has a key of names the layer.

    A variant that cannot be baked comes before the family that it is a variant of.
    """
    kinds = [_kind(foreign.label, foreign.pattern) for foreign in FOREIGN if not foreign.of]
    for family in reversed(every):
        kinds += [_kind(foreign.label, foreign.pattern) for foreign in FOREIGN if foreign.of == family.key]
        if family.forms:
            kinds.append(_kind(family.label, ending_pattern(family.endings), family))
    return tuple(kinds)


def _kind(label: str, endings: str, family: Family | None = None) -> _Kind:
    return _Kind(label, re.compile(rf"(?P<module>.+?)\.(?P<ending>{endings})"), family)


def _supported() -> set[str]:
    return {family.label for family in registry.families()}


@dataclass(frozen=True)
class Survey:
    """The modules of a file by family, and the keys that belong to none (alphas among them)."""

    modules: Mapping[str, tuple[str, ...]]
    unclaimed: tuple[str, ...]

    def counts(self) -> str:
        """Families and numbers in words: ``LoRA (192 modules), LoKr (4 modules)``."""
        return ", ".join(f"{family} ({_plural(len(names))})" for family, names in self.modules.items())


def survey(header: Header) -> Survey:
    """Sort all keys of ``header`` into families."""
    claims: dict[str, list[str]] = {}
    families: dict[str, str] = {}
    order = {kind.label: rank for rank, kind in enumerate(_kinds(registry.families()))}
    unclaimed = []
    for key, info in header.tensors.items():
        claim = _claim(key, info)
        if claim is None:
            unclaimed.append(key)
            continue
        family, module = claim
        known = families.get(module)
        if known is None or order.get(family, -1) < order.get(known, -1):
            families[module] = family
    for module, family in families.items():
        claims.setdefault(family, []).append(module)
    _tell_krona_from_lora(header, claims)
    return Survey({family: tuple(names) for family, names in claims.items()}, tuple(unclaimed))


def refuse_foreign(found: Survey, path: Path) -> None:
    """Refuse a file that holds a family that cannot be baked (embeddings beside others may stay).

    Raises
    ------
    FamilyError
        The families are recognised and not supported, or several are mixed in one file.
    AdapterError
        The file is a checkpoint, or nothing in it is known.
    """
    families = set(found.modules)
    if beside := families & _BESIDE:
        raise _foreign_error(found, beside, path, mixed=False)
    supported = families & _supported()
    foreign = families - _supported() - {EMBEDDING, CHECKPOINT}
    if EMBEDDING in families and not supported:
        foreign.add(EMBEDDING)
    if foreign:
        raise _foreign_error(found, foreign, path, mixed=len(families) > 1)
    if PARA in supported and len(supported) > 1:
        raise FamilyError(
            f"this file mixes {' and '.join(sorted(supported - {PARA}))} and PaRa layers",
            where=path,
            expected="PaRa alone, or other families",
            found=found.counts(),
            hint=f"split it in two and give one with {option('para')} and one with {option('adapter')}",
        )
    whole = len(found.modules.get(CHECKPOINT, ()))
    if whole > 3 * sum(len(found.modules[family]) for family in supported):
        raise AdapterError(
            "this is a checkpoint, not an adapter",
            where=path,
            expected="an adapter file",
            found=f"whole weights, such as {found.modules[CHECKPOINT][0]}",
            hint=f"give it as {option('base')}",
        )
    if not supported:
        raise AdapterError(
            "nothing in this file is known as an adapter",
            where=path,
            expected="keys of an adapter (lora_up, lora_A, lokr_w1, hada_w1_a, oft_blocks, para_B ...)",
            found=listed(found.unclaimed) or "no tensors",
            hint="see what it holds with: paramerge inspect",
        )


def _foreign_error(found: Survey, foreign: set[str], path: Path, *, mixed: bool) -> FamilyError:
    named = " and ".join(sorted(foreign))
    examples = listed([found.modules[name][0] for name in sorted(foreign)])
    return FamilyError(
        f"this file mixes families, {named} among them"
        if mixed
        else f"{named} cannot be baked by this version",
        where=path,
        expected=f"PaRa, or {', '.join(sorted(_supported() - {PARA}))}",
        found=f"{found.counts()}, for example {examples}",
        hint=_HINTS.get(named, "convert it to LoRA with the tool it comes from; nothing of it was applied"),
    )


_BESIDE = {
    "ControlNet-LLLite",
    "Control-LoRA",
    "ControlNet",
    "IP-Adapter",
    "hypernetwork",
    "AnimateDiff motion module",
}
_RUNS_BESIDE = "it runs beside the layers of a pipeline: there is no weight of the checkpoint to bake it into"
_HINTS = {
    EMBEDDING: "an embedding changes no weights: give it to the user interface beside the checkpoint",
    **dict.fromkeys(_BESIDE, _RUNS_BESIDE),
}


def several_dialects(spoken: Mapping[str, Sequence[str]], path: Path) -> AdapterError:
    """The error for a file whose keys, by dialect, are of more than one."""
    return AdapterError(
        "this file mixes dialects",
        where=path,
        expected="one way to name layers",
        found="; ".join(f"{name}: {listed(keys, 2)}" for name, keys in sorted(spoken.items())),
        hint="it was probably joined from several files: take one of its parts",
    )


def wrong_family(wanted: str, found: str, path: Path) -> ParamergeError:
    """The error for an adapter given as a PaRa or a LoRA that is of another family."""
    labels = {family.key: family.label for family in registry.families()}
    names = {key: f"{'an' if name[0] in 'OI' else 'a'} {name}" for key, name in labels.items()}
    names["mixed"] = "an adapter of several families"
    return FamilyError(
        f"this is {names[found]}, not {names[wanted]}",
        where=path,
        expected=names[wanted],
        found=names[found],
        hint=f"give it as {option(found if found in ('lora', 'para') else 'adapter')}",
    )


def _claim(key: str, info: TensorInfo) -> tuple[str, str] | None:
    """The family that ``key`` speaks for, and its module."""
    if len(key) > _LONGEST_KEY:
        return None
    key = common_key(key)
    for kind, pattern in _WHOLE_PATTERNS:
        if pattern.fullmatch(key):
            return kind, key
    if match := _OLD_LORA.fullmatch(key):
        return LORA, match["module"]
    if found := _by_ending(key, info):
        return found
    if match := _PEFT_TUNER.fullmatch(key):
        return match["tuner"].upper(), match["module"]
    return None


def adapter_keys(keys: Iterable[str]) -> list[str]:
    """The keys that are an adapter's by name: by a family's ending, or by a dialect that models lack."""
    ending = _any_ending(registry.families())
    return [key for key in keys if len(key) <= _LONGEST_KEY and (_of_adapters(key) or ending.search(key))]


def _of_adapters(key: str) -> bool:
    """Whether the key is spelled as no model's is."""
    dialect = dialect_of(key)
    return dialect.base not in (DIFFUSERS.key, PEFT.key) or dialect is DIFFUSERS_OLD


@lru_cache(maxsize=4)
def _any_ending(every: tuple[Family, ...]) -> re.Pattern[str]:
    """The endings of all families' keys, and of those that are known and cannot be read."""
    known = ending_pattern(ending for family in every for ending in family.endings)
    foreign = "|".join(family.pattern for family in FOREIGN)
    tuners = rf"(?:{PEFT_TUNERS})_\w+(?:\.\w+){{0,2}}"
    return re.compile(rf"\.(?:{known}|{foreign}|{tuners})\Z")


def _by_ending(key: str, info: TensorInfo) -> tuple[str, str] | None:
    """The family whose ending the key has, and the module; of several the one whose axes the tensor has."""
    others = None
    for kind in _kinds(registry.families()):
        match = kind.pattern.fullmatch(key)
        if match is None:
            continue
        found = kind.label, match["module"]
        if kind.has_axes(match["ending"], len(info.shape)):
            return found
        others = others or found
    return others


def _tell_krona_from_lora(header: Header, claims: dict[str, list[str]]) -> None:
    """Move DiffuseKronA's modules out of LoRA.

    Its published code saves Kronecker factors as ``...to_q_lora.{down,up}.weight``: down is (a2, a1) and up
    (b1, b2), with out = a1 * b1 and in = a2 * b2. Of LoRA's factors up (out, r) and down (r, in) the inner
    sizes agree; of these they do not, or only by chance.
    """
    pairs = {}
    for module in claims.get(LORA, []):
        sides = [header.tensors.get(f"{module}.{side}.weight") for side in ("up", "down")]
        up, down = (info.shape if info and len(info.shape) == 2 else None for info in sides)
        if up and down and _OLD_LORA.fullmatch(f"{module}.up.weight"):
            pairs[module] = (up, down)
    unequal = [module for module, (up, down) in pairs.items() if up[1] != down[0]]
    factored = [
        m
        for m in unequal
        if {pairs[m][0][0] * pairs[m][1][1], pairs[m][0][1] * pairs[m][1][0]} <= _KRONA_SIDES
    ]
    if not (factored or (unequal and len(unequal) == len(pairs))):
        return
    claims[DIFFUSE_KRONA] = list(pairs)
    rest = [module for module in claims.pop(LORA) if module not in pairs]
    if rest:
        claims[LORA] = rest


def _plural(count: int) -> str:
    return "1 module" if count == 1 else f"{count} modules"
