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
from paramerge.adapters.endings import Endings, Found, is_word, without_name
from paramerge.adapters.family import Family, Form
from paramerge.adapters.foreign import FOREIGN, PEFT_TUNERS
from paramerge.errors import AdapterError, FamilyError, ParamergeError
from paramerge.files.header import Header
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
_MOTION = ".motion_modules."
"""A part of the keys of AnimateDiff's motion modules, in any block."""

_WHOLE_FILES: tuple[tuple[str, str], ...] = (
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

_WHOLE_FILE = re.compile("|".join(f"(?P<k{n}>{pattern})" for n, (_, pattern) in enumerate(_WHOLE_FILES)))
_TUNERS = tuple(f"{tuner}_" for tuner in PEFT_TUNERS)
_TUNERS_WORDS = 3
"""Words of an ending that begins with a tuner's name, at most."""

_KRONA_SIDES = {320, 640, 768, 1024, 1280, 2048}
"""Sizes of attention projections in Stable Diffusion UNets."""


class _Kind(NamedTuple):
    """A family shown by an ending of a key, with the parts that the ending may be."""

    rank: int
    label: str
    parts: tuple[tuple[Form, str], ...]

    def has_axes(self, count: int) -> bool:
        """Whether the tensor can have so many axes in this family."""
        return not self.parts or any(form.has_axes(role, count) for form, role in self.parts)


class _Kinds(NamedTuple):
    """All families by the endings of their keys; a layer is of the first, by rank, that it has a key of.

    A variant that cannot be baked comes before the family that it is a variant of.
    """

    endings: Endings[_Kind]
    ranks: Mapping[str, int]


@lru_cache(maxsize=4)
def _kinds(every: tuple[Family, ...]) -> _Kinds:
    named: list[tuple[str, tuple[str, ...], tuple[Form, ...]]]
    named = [(foreign.label, foreign.endings, ()) for foreign in FOREIGN if not foreign.of]
    for family in reversed(every):
        named += [(foreign.label, foreign.endings, ()) for foreign in FOREIGN if foreign.of == family.key]
        named.append((family.label, tuple(family.endings), family.forms))
    entries = [
        (ending, _Kind(rank, label, _parts(forms, ending)))
        for rank, (label, endings, forms) in enumerate(named)
        for ending in endings
    ]
    return _Kinds(Endings(entries), {label: rank for rank, (label, _, _) in enumerate(named)})


def _parts(forms: Iterable[Form], ending: str) -> tuple[tuple[Form, str], ...]:
    """The roles of an ending in a family's forms."""
    plain = without_name(ending)
    return tuple(
        (form, role) for form in forms for name, role in form.roles.items() if without_name(name) == plain
    )


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
    kinds = _kinds(registry.families())
    unclaimed = []
    for key in header.tensors:
        claim = _claim(key, header, kinds)
        if claim is None:
            unclaimed.append(key)
            continue
        family, module = claim
        known = families.get(module)
        if known is None or kinds.ranks.get(family, -1) < kinds.ranks.get(known, -1):
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
            hint=OF_NO_FAMILY if adapter_keys(found.unclaimed) else "look at its content: paramerge inspect",
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
OF_NO_FAMILY = (
    "its keys are named as an adapter's, of no family that is known: a package that adds it may be missing"
)
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


def _claim(stated: str, header: Header, kinds: _Kinds) -> tuple[str, str] | None:
    """The family that a key is evidence of, and its module."""
    key = common_key(stated)
    if _MOTION in f".{key}":
        return "AnimateDiff motion module", key
    if match := _WHOLE_FILE.fullmatch(key):
        return _WHOLE_FILES[int(str(match.lastgroup)[1:])][0], key
    if "_lora." in key and (match := _OLD_LORA.fullmatch(key)):
        return LORA, match["module"]
    found = kinds.endings.find(key)
    if len(found) > 1:
        found = _ranked(found, len(header.tensors[stated].shape))
    return (found[0].value.label, found[0].stem) if found else _by_tuner(key)


def adapter_keys(keys: Iterable[str]) -> list[str]:
    """The keys that are an adapter's by name: by a family's ending, or by a dialect that models lack."""
    endings = _kinds(registry.families()).endings
    return [key for key in keys if _of_adapters(key) or endings.find(key) or _by_tuner(key)]


def _of_adapters(key: str) -> bool:
    """Whether the key is spelled as no model's is."""
    dialect = dialect_of(key)
    return dialect.base not in (DIFFUSERS.key, PEFT.key) or dialect is DIFFUSERS_OLD


def _ranked(every: Iterable[Found[_Kind]], axes: int) -> list[Found[_Kind]]:
    """The longest ending of each family by its rank; those that the tensor's axes fit first."""
    longest: dict[int, Found[_Kind]] = {}
    for found in every:
        longest.setdefault(found.value.rank, found)
    return sorted(
        longest.values(),
        key=lambda found: (not (found.named or found.value.has_axes(axes)), found.value.rank),
    )


def _by_tuner(key: str) -> tuple[str, str] | None:
    """The tuner of PEFT that the key is of, and its module: ``hra_u``, ``c3a_kernel.default``."""
    parts = key.rsplit(".", _TUNERS_WORDS)
    for start in reversed(range(1, len(parts))):
        if parts[start].startswith(_TUNERS):
            tuner = next(each for each in _TUNERS if parts[start].startswith(each))
            if parts[start] != tuner and all(map(is_word, parts[start:])):
                return tuner[:-1].upper(), ".".join(parts[:start])
    return None


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
