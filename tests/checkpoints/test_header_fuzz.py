"""Headers are accepted as the safetensors library accepts them, on mutated headers and on chosen ones."""

from __future__ import annotations

import struct

import pytest
import safetensors
from header_fuzz import campaign

from paramerge.errors import FileFormatError
from paramerge.files.header import read_header

_ENTRY = '"dtype":"F32","shape":[2],"data_offsets":[0,8]'


def _write(tmp_path, text, data=8):
    raw = text if isinstance(text, bytes) else text.encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(data))
    return path


@pytest.mark.parametrize("seed", [0, 1])
def test_mutated_headers_are_judged_as_by_the_library(tmp_path, seed):
    verdicts = campaign(1500, seed, tmp_path)
    assert verdicts.both_accept > 200
    assert not verdicts.tracebacks
    assert not verdicts.only_ours
    assert not verdicts.differ
    assert set(verdicts.only_theirs) <= {"a key twice in one object"}


@pytest.mark.parametrize(
    "text",
    [
        '{"a":["F32",[2],[0,8]]}',
        '{"a":{"dtype":{"F32":null},"shape":[2],"data_offsets":[0,8]}}',
        f'{{"__metadata__":null,"a":{{{_ENTRY}}}}}',
        f'{{"a":{{{_ENTRY},"note":-0}}}}',
        f'{{"a":{{{_ENTRY},"note":{"9" * 300}}}}}',
        f'{{"a":{{{_ENTRY},"note":{"[" * 125}{"]" * 125}}}}}',
        f'{{"a":{{{_ENTRY},"note":"\\ud83d\\ude00"}}}}',
        f'{{"a\\\\ud800":{{{_ENTRY}}}}}',
        f' \n{{"a\\u0000":{{{_ENTRY}}}}}\t\r',
    ],
)
def test_what_the_library_accepts_is_accepted(tmp_path, text):
    path = _write(tmp_path, text)
    assert len(safetensors.deserialize(path.read_bytes())) == 1
    assert len(read_header(path).tensors) == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"a":{"dtype":"F32","shape":[2],"data_offsets":[-0,8]}}',
        '{"a":{"dtype":"F32","shape":[18446744073709551615,2,0],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"F32","shape":[18446744073709551616,0],"data_offsets":[0,0]}}',
        f'{{"a":{{"dtype":"F32","shape":[{"9" * 5000}],"data_offsets":[0,8]}}}}',
        f'{{"a":{{{_ENTRY},"note":1e400}}}}',
        f'{{"a":{{{_ENTRY},"note":{"9" * 310}}}}}',
        f'{{"a":{{{_ENTRY},"note":NaN}}}}',
        f'{{"a":{{{_ENTRY},"note":{"[" * 126}{"]" * 126}}}}}',
        f'{{"a":{{{_ENTRY},"note":"\\ud800"}}}}',
        f'{{"a":{{{_ENTRY},"note":"\\ud83d\\ud83d\\ude00\\ude00"}}}}',
        f'{{"__metadata__":{{"k":"\\uDC00"}},"a":{{{_ENTRY}}}}}',
        f'\ufeff{{"a":{{{_ENTRY}}}}}',
        "[" * 100_000,
        b'{"a\xff":{}}',
    ],
)
def test_what_the_library_refuses_is_refused(tmp_path, text):
    path = _write(
        tmp_path, text, 8 if b"[0,8]" in (text if isinstance(text, bytes) else text.encode()) else 0
    )
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(path.read_bytes())
    with pytest.raises(FileFormatError) as refusal:
        read_header(path)
    assert len(str(refusal.value)) < 1000 + len(str(path))


def test_keys_twice_are_refused_though_the_library_takes_the_last(tmp_path):
    path = _write(tmp_path, f'{{"a":{{{_ENTRY}}},"a":{{{_ENTRY}}}}}')
    assert len(safetensors.deserialize(path.read_bytes())) == 1
    with pytest.raises(FileFormatError, match="not valid JSON"):
        read_header(path)


def test_a_long_name_is_shortened_in_the_message(tmp_path):
    path = _write(tmp_path, '{"%s":{"dtype":"F31","shape":[0],"data_offsets":[0,0]}}' % ("n" * 3_000_000), 0)
    with pytest.raises(FileFormatError, match=r"n\.\.\.n") as refusal:
        read_header(path)
    assert len(str(refusal.value)) < 1000 + len(str(path))
