"""Mutated safetensors headers, and how two readers judge them: ours, and the safetensors library's own."""

from __future__ import annotations

import json
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import safetensors

from paramerge.errors import FileFormatError
from paramerge.files.header import read_header

_NUMBERS = (
    *("0", "-0", "1", "-1", "2", "8", "1.0", "1e0", "0e1", "-0.0", "1E400", "1e-400", "1e308", "-1e309"),
    *("18446744073709551615", "18446744073709551616", "9223372036854775808", "4294967296", "01", "1.", "+1"),
    *("9" * 300, "9" * 309, "9" * 310, "9" * 5000, "NaN", "Infinity", "-Infinity", "0x1", "1_0", "\u0661"),
)
_STRINGS = (
    *('"F32"', '"f32"', '"F4"', '"F6_E2M3"', '"F8_E8M0"', '"BOOL"', '"C64"', '"F8_E4M3FNUZ"', '"F128"', '""'),
    *(
        '"\\ud800"',
        '"\\udc00"',
        '"\\ud83d\\ude00"',
        '"\\ud83dx"',
        '"\\\\ud800"',
        '"\\u0000"',
        '"\\x"',
        '"\x01"',
    ),
    *(
        '"\x7f"',
        '"é"',
        '"\\u00e9"',
        '"dtype"',
        '"shape"',
        '"data_offsets"',
        '"__metadata__"',
        '"\\u005f_metadata__"',
    ),
)
_OTHERS = (
    "null",
    "true",
    "[]",
    "{}",
    "[0,0]",
    "[2]",
    '{"F32":null}',
    '["F32",[2],[0,8]]',
    "[null]",
    '{"a":"b"}',
)
_FIELD_VALUES = (*_NUMBERS, *_STRINGS, *_OTHERS)
_SPACES = (" ", "\n", "\t", "\r", "\f", "\xa0", "\ufeff", "\u2028", "")
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "BOOL": 1, "U64": 8}
_REASONS = (
    ("is there twice", "a key twice in one object"),
    ("is not valid JSON", "not valid JSON"),
)


@dataclass
class Verdicts:
    """What both readers said of ``count`` headers; the first examples of each disagreement."""

    count: int = 0
    both_accept: int = 0
    only_ours: list[bytes] = field(default_factory=list)
    tracebacks: list[tuple[str, bytes]] = field(default_factory=list)
    differ: list[bytes] = field(default_factory=list)
    only_theirs: Counter[str] = field(default_factory=Counter)
    examples: dict[str, bytes] = field(default_factory=dict)
    slowest: float = 0.0
    """Seconds of the processor that the slowest header took us."""

    def lines(self) -> list[str]:
        """The figures, a line each."""
        return [
            f"headers: {self.count}, both accept: {self.both_accept}",
            f"the library refuses and we accept: {len(self.only_ours)}",
            f"read differently: {len(self.differ)}",
            f"tracebacks: {len(self.tracebacks)}",
            f"the slowest took {self.slowest:.3f} s",
            *(f"the library accepts and we refuse, {why}: {n}" for why, n in self.only_theirs.most_common()),
        ]


def mutated_files(seed: int) -> Iterator[bytes]:
    """Small safetensors files without end, most with a header that something is wrong with."""
    chance = random.Random(seed)
    while True:
        header, size = _sound_header(chance)
        text = _spelled(header, chance)
        for _ in range(chance.choice((0, 1, 1, 1, 2, 3))):
            text = chance.choice(_MUTATIONS)(text, chance)
        raw = text.encode("utf-8", "surrogatepass")
        if chance.random() < 0.1:
            raw = _with_bytes_changed(raw, chance)
        length = len(raw) + (chance.choice((-1, 1, 2, -8, 2**40, 2**63)) if chance.random() < 0.04 else 0)
        size += chance.choice((-1, 1, 8)) if chance.random() < 0.04 else 0
        yield struct.pack("<Q", max(length, 0)) + raw + bytes(max(size, 0))


def judge(files: Iterator[bytes], count: int, folder: Path) -> Verdicts:
    """Read ``count`` of ``files`` with both readers; ``folder`` is for the one file that is written anew."""
    verdicts = Verdicts()
    path = folder / "header.safetensors"
    for _ in range(count):
        content = next(files)
        path.write_bytes(content)
        _judge_one(content, path, verdicts)
    return verdicts


def campaign(count: int, seed: int, folder: Path) -> Verdicts:
    """The verdicts on ``count`` mutated headers."""
    return judge(mutated_files(seed), count, folder)


def _judge_one(content: bytes, path: Path, verdicts: Verdicts) -> None:
    theirs = _library(content)
    verdicts.count += 1
    began = time.process_time()
    try:
        header = read_header(path)
    except FileFormatError as error:
        if theirs is not None:
            found = str(error)
            why = next((reason for part, reason in _REASONS if part in found), error.what)
            verdicts.only_theirs[why] += 1
            verdicts.examples.setdefault(why, content)
        return
    except Exception as error:
        verdicts.tracebacks.append((repr(error)[:200], content))
        return
    finally:
        verdicts.slowest = max(verdicts.slowest, time.process_time() - began)
    if theirs is None:
        verdicts.only_ours.append(content)
        return
    verdicts.both_accept += 1
    ours = {key: (info.dtype, list(info.shape), info.nbytes) for key, info in header.tensors.items()}
    if ours != theirs:
        verdicts.differ.append(content)


def _library(content: bytes) -> dict[str, tuple[str, list[int], int]] | None:
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError:
        return None
    return {key: (info["dtype"], list(info["shape"]), len(info["data"])) for key, info in tensors}


def _sound_header(chance: random.Random) -> tuple[dict[str, object], int]:
    header: dict[str, object] = {}
    if chance.random() < 0.5:
        header["__metadata__"] = {f"m{i}": "v" for i in range(chance.randint(0, 2))}
    position = 0
    for number in range(chance.randint(0, 4)):
        dtype = chance.choice(list(_SIZES))
        shape = [chance.choice((0, 1, 1, 2, 3)) for _ in range(chance.randint(0, 3))]
        size = _SIZES[dtype]
        for factor in shape:
            size *= factor
        header[f"t.{number}"] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [position, position + size],
        }
        position += size
    items = list(header.items())
    if chance.random() < 0.3:
        chance.shuffle(items)
    return dict(items), position


def _spelled(header: dict[str, object], chance: random.Random) -> str:
    text = json.dumps(header, separators=chance.choice(((",", ":"), (", ", ": "))))
    return text + " " * chance.choice((0, 0, 1, 7))


def _places(text: str, chars: str) -> list[int]:
    return [i for i, char in enumerate(text) if char in chars]


def _put(text: str, place: int, piece: str, instead: int = 0) -> str:
    return text[:place] + piece + text[place + instead :]


def _number(text: str, chance: random.Random) -> str:
    """Another number in the place of one."""
    starts = [
        i
        for i, char in enumerate(text)
        if char.isdigit() and not text[i - 1].isalnum() and text[i - 1] != "."
    ]
    if not starts:
        return text
    start = chance.choice(starts)
    stop = start
    while stop < len(text) and text[stop].isdigit():
        stop += 1
    return _put(text, start, chance.choice(_NUMBERS), stop - start)


def _value(text: str, chance: random.Random) -> str:
    """Another value behind a colon."""
    colons = _places(text, ":")
    if not colons:
        return text
    start = chance.choice(colons) + 1
    depth, stop = 0, start
    while stop < len(text):
        depth += (text[stop] in "[{") - (text[stop] in "]}")
        if depth < 0 or (depth == 0 and text[stop] == ","):
            break
        stop += 1
    return _put(text, start, chance.choice(_FIELD_VALUES), stop - start)


def _new_field(text: str, chance: random.Random) -> str:
    """A field more: unknown, doubled, or deep."""
    braces = _places(text, "{")
    if not braces:
        return text
    place = chance.choice(braces) + 1
    value = chance.choice((*_FIELD_VALUES, _deep(chance), _deep(chance)))
    comma = "," if text[place:].lstrip()[:1] != "}" else ""
    return _put(text, place, f"{chance.choice(_STRINGS)}:{value}{comma}")


def _deep(chance: random.Random) -> str:
    depth = chance.choice((3, 100, 123, 124, 125, 126, 127, 128, 900, 20_000))
    before, after = chance.choice((("[", "]"), ('{"a":', "}")))
    return before * depth + "1" + after * depth


def _space(text: str, chance: random.Random) -> str:
    places = [0, len(text), *_places(text, ",:[]{}")]
    return _put(text, chance.choice(places), chance.choice(_SPACES))


def _shape(text: str, chance: random.Random) -> str:
    """Sizes whose product is large, or zero after being large."""
    place = text.find('"shape":')
    if place < 0:
        return text
    start, stop = text.find("[", place), text.find("]", place)
    sizes = (
        chance.choice((0, 1, 2, 2**31, 2**32, 2**61, 2**63, 2**64 - 1)) for _ in range(chance.randint(1, 4))
    )
    return _put(text, start, str(list(sizes)), stop + 1 - start)


def _positional(text: str, chance: random.Random) -> str:
    """The entries of tensors as lists, which serde reads as their fields in order."""
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(header, dict):
        return text
    for key, entry in header.items():
        if isinstance(entry, dict) and key != "__metadata__" and chance.random() < 0.7:
            header[key] = list(entry.values())
    return json.dumps(header)


def _cut(text: str, chance: random.Random) -> str:
    if not text:
        return text
    start = chance.randrange(len(text))
    return _put(text, start, "", chance.choice((1, 1, 2, 5, len(text))))


def _punctuation(text: str, chance: random.Random) -> str:
    return _put(text, chance.randint(0, len(text)), chance.choice('{}[],:"\\-.eE0 /'), chance.randint(0, 1))


def _with_bytes_changed(raw: bytes, chance: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(chance.randint(1, 2) if changed else 0):
        changed[chance.randrange(len(changed))] = chance.choice(
            (0, 0x1F, 0x7F, 0x80, 0xC0, 0xED, 0xFF, 0x22, 0x5C)
        )
    return bytes(changed)


_MUTATIONS = (
    _number,
    _number,
    _value,
    _value,
    _new_field,
    _new_field,
    _space,
    _shape,
    _positional,
    _cut,
    _punctuation,
)
