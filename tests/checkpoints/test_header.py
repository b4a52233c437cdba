"""The checked header reader: agrees with the safetensors library, and refuses every lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from paramerge import strict_json
from paramerge.errors import FileFormatError
from paramerge.files import header as header_module
from paramerge.files.header import encode_header, read_header
from paramerge.files.tensors import stored
from paramerge.files.writer import write_safetensors


def file_of(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, a lie or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def tensor(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def refused(path: Path, text: str) -> None:
    with pytest.raises(FileFormatError, match=text) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 4), max_size=4)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    tensors=st.dictionaries(NAMES, SHAPES, min_size=1, max_size=8),  # without any, safetensors writes no JSON
    dtype=st.sampled_from([np.float32, np.float16, np.int64, np.uint8]),
    metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
def test_reads_what_safetensors_writes(
    tmp_path_factory: pytest.TempPathFactory,
    tensors: dict[str, list[int]],
    dtype: Any,
    metadata: dict[str, str],
) -> None:
    path = tmp_path_factory.mktemp("oracle") / "file.safetensors"
    arrays = {key: np.ones(shape, dtype) for key, shape in tensors.items()}
    save_file(arrays, path, metadata)
    header = read_header(path)
    assert header.metadata == metadata
    with safetensors.safe_open(path, "numpy") as reference:
        assert set(header.tensors) == set(reference.keys())
        for key in reference.keys():  # noqa: SIM118
            assert np.array_equal(stored(header, key).read(), reference.get_tensor(key))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    tensors=st.dictionaries(NAMES, SHAPES, max_size=8),
    metadata=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
)
def test_safetensors_reads_what_we_write(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, list[int]], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("oracle") / "file.safetensors"
    rng = np.random.default_rng(0)
    arrays = {key: rng.standard_normal(shape).astype(np.float16) for key, shape in tensors.items()}
    write_safetensors(path, arrays, metadata)
    with safetensors.safe_open(path, "numpy") as reference:
        assert set(reference.keys()) == set(arrays)
        assert (reference.metadata() or {}) == metadata
        for key, array in arrays.items():
            assert np.array_equal(reference.get_tensor(key), array)


def test_the_data_begin_aligned() -> None:
    encoded = encode_header([("a", "F32", (2,), 8)], {"x": "y"})
    assert len(encoded) % 8 == 0
    assert len(encoded) == 8 + struct.unpack("<Q", encoded[:8])[0]


def test_half_precision_floats_are_read_exactly(tmp_path: Path) -> None:
    values = torch.randn(5, 3)
    path = tmp_path / "a.safetensors"
    from safetensors.torch import save_file as save_torch

    dtypes = {"b": torch.bfloat16, "h": torch.float16, "e4": torch.float8_e4m3fn, "e5": torch.float8_e5m2}
    save_torch({key: values.to(dtype) for key, dtype in dtypes.items()}, path)
    header = read_header(path)
    for key, dtype in dtypes.items():
        exact = stored(header, key).read_exact()
        assert exact.dtype == np.float32
        assert np.array_equal(exact, values.to(dtype).float().numpy())


@pytest.mark.parametrize("size", [0, 1, 7])
def test_too_short(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\0" * size)
    refused(path, "too short" if size else "the file is empty")


def test_length_past_the_end(tmp_path: Path) -> None:
    refused(file_of(tmp_path / "a.safetensors", {}, length=10_000), "past the end|longer than the file")


def test_a_huge_header(tmp_path: Path) -> None:
    """100 MB of JSON, which a reader without a limit would parse for minutes."""
    path = tmp_path / "a.safetensors"
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", 150_000_000))
        stream.truncate(150_000_100)
    refused(path, "header")


def test_deep_json(tmp_path: Path) -> None:
    refused(file_of(tmp_path / "a.safetensors", b"[" * 200_000), "JSON")


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "JSON"),
        (b"\xff\xfe{}", "JSON"),
        ([1, 2], "JSON object"),
        (b'{"a": 1, "a": 2}', "twice|duplicate"),
        ({"a": 3}, "a"),
        ({"a": {"dtype": "F32"}}, "a"),
        ({"a": tensor("F33")}, "dtype"),
        ({"a": tensor(shape=[-2])}, "shape"),
        ({"a": tensor(shape=[2.0])}, "shape"),
        ({"a": tensor(shape=[True, 2])}, "shape"),
        ({"a": tensor(shape="2")}, "shape"),
        ({"a": tensor(shape=[2**62, 2**62])}, "offsets|shape|bytes"),
        ({"a": tensor(offsets=[0, 4])}, "do not agree"),
        ({"a": tensor(offsets=[8, 0])}, "offsets"),
        ({"a": tensor(offsets=[-8, 0])}, "offsets"),
        ({"a": tensor(offsets=[0])}, "offsets"),
        ({"a": tensor(offsets=[0, 8]), "b": tensor(offsets=[4, 12])}, "overlap"),
        ({"a": tensor(offsets=[0, 8]), "b": tensor(offsets=[0, 8])}, "overlap"),
        ({"a": tensor(offsets=[0, 8]), "b": tensor(offsets=[12, 20])}, "gap|hole"),
        ({"__metadata__": {"a": 1}, "t": tensor()}, "metadata"),
        ({"__metadata__": [], "t": tensor()}, "metadata"),
    ],
)
def test_lies(tmp_path: Path, header: object, reason: str) -> None:
    refused(file_of(tmp_path / "a.safetensors", header, b"\0" * 20), f"(?i){reason}")


def test_truncated_data_and_data_that_nothing_names(tmp_path: Path) -> None:
    refused(file_of(tmp_path / "a.safetensors", {"a": tensor()}, b"\0" * 4), "(?i)truncated|end|shorter")
    refused(file_of(tmp_path / "b.safetensors", {"a": tensor()}, b"\0" * 12), "(?i)bytes|after|end")


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(raw=st.binary(max_size=200), claim=st.integers(0, 2**64 - 1) | st.none())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, claim: int | None
) -> None:
    path = file_of(tmp_path_factory.mktemp("fuzz") / "a.safetensors", raw, length=claim)
    with pytest.raises(FileFormatError):
        read_header(path)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(position=st.integers(8, 400), byte=st.integers(0, 255))
def test_a_byte_changed_in_the_header_never_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "a.safetensors"
    write_safetensors(path, {f"layer.{i}": np.zeros((2, 3), np.float16) for i in range(4)}, {"m": "x"})
    data = bytearray(path.read_bytes())
    data[min(position, len(data) - 1)] = byte
    path.write_bytes(data)
    try:
        header = read_header(path)
    except FileFormatError:
        return
    assert all(info.stop <= len(data) for info in header.tensors.values())


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.pth"])
def test_pickles_are_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"PK\x03\x04" + b"\0" * 100)
    refused(path, "(?i)pickle")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02}q\x00", b"\x80\x04\x95"])
def test_pickles_are_refused_by_content(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(start + b"\0" * 100)
    refused(path, "(?i)pickle")


def test_gguf_html_and_missing(tmp_path: Path) -> None:
    missing = tmp_path / "missing.safetensors"
    with pytest.raises(FileFormatError):
        read_header(missing)
    page = tmp_path / "page.safetensors"
    page.write_bytes(b"<!DOCTYPE html><html>Not found</html>" * 10)
    refused(page, "(?i)html|header")
    with pytest.raises(FileFormatError):
        read_header(tmp_path)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ([1] * 1000, 1),
        ([1] * 1000 + [2], 2),
        ([1] * 100 + [2] * 40, None),  # larger than the file
        ([2] * 70, None),
        ([2] * 70 + [0], None),
        ([0] * 1000, 0),
        ([2] * 3 + [1] * 100 + [0, *([2**64 - 1] * 100)], 0),
        ([2] * 3 + [1] * 100 + [0, 2**64], None),
        ([1] * 100 + [True], None),
        ([1] * 100 + [-1], None),
        ([1] * 100 + [1.0], None),
    ],
)
def test_shapes_of_many_sizes_are_judged_as_the_library_does(
    tmp_path: Path, shape: list[object], count: int | None
) -> None:
    path = file_of(tmp_path / "a.safetensors", {"a": tensor("U8", shape, (0, count or 0))}, bytes(count or 0))
    if count is None:
        with pytest.raises(safetensors.SafetensorError):
            safetensors.deserialize(path.read_bytes())
        refused(path, "sizes|agree")
    else:
        assert len(safetensors.deserialize(path.read_bytes())) == 1
        assert read_header(path).tensors["a"].elements == count


def test_more_values_than_any_model_has_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strict_json, "MAX_VALUES", 100)
    few = {f"t{i}": tensor("U8", (), (i, i + 1)) for i in range(25)}
    assert len(read_header(file_of(tmp_path / "few.safetensors", few, bytes(25))).tensors) == 25
    for name, entry in {
        "tensors": {f"t{i}": tensor("U8", (), (i, i + 1)) for i in range(26)},
        "metadata": {"__metadata__": {f"t{i}": "" for i in range(102)}},
        "shape": {"a": tensor("U8", [1] * 100, (0, 1))},
        "note": {"a": {**tensor("U8", (), (0, 1)), "note": [1.5] * 100}},
    }.items():
        refused(file_of(tmp_path / f"{name}.safetensors", entry, bytes(34)), "not valid JSON")


def test_tensors_are_made_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header may have a million tensors, of which a refusal needs none."""
    order = (2, 0, 1)
    entries = {f"t{i}": tensor("U8", (), (i, i + 1)) for i in order}
    path = file_of(tmp_path / "a.safetensors", entries, bytes(3))
    header = read_header(path)
    assert list(header.tensors) == ["t0", "t1", "t2"]
    assert [info.start - header.data_start for info in header.tensors.values()] == [0, 1, 2]
    assert header.tensors == read_header(path).tensors
    monkeypatch.setattr(header_module, "TensorInfo", None)
    assert len(read_header(path).tensors) == 3
