"""Files that are no safetensors are called what they are, by whichever verb meets them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramerge.checkpoints.layout import open_base
from paramerge.errors import FileFormatError
from paramerge.files.header import encode_header, read_header
from paramerge.formats import open_adapter


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
    return stream.getvalue()


def saved_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros(3))
    return stream.getvalue()


def tarred() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 6938040682\n"
FILES = {
    "git-lfs": LFS,
    "GGUF": b"GGUF" + struct.pack("<IQQ", 3, 10, 2) + bytes(100),
    "zip archive": zipped(),
    "pickle": pickle.dumps({"state_dict": {}}, protocol=2),
    "a pickle": saved_array(),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "archive": gzip.compress(b"weights"),
    "a compressed archive": tarred(),
    "HTML": b"\n  <!doctype html>\n<html lang=en><title>404</title>",
    "web": "\ufeff<html>\n<p>Vous n'êtes pas connecté</p>".encode(),
    "JSON": json.dumps({"error": "Repository not found"}).encode(),
    "an index": json.dumps({"metadata": {}, "weight_map": {}}, indent=2).encode(),
    "text": b"Entry not found",
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("said", FILES)
def test_a_file_is_called_what_it_is(said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(FILES[said])
    for read in (open_base, open_adapter, read_header):
        with pytest.raises(FileFormatError, match=said) as caught:
            read(path)
        damaged = said == "GGUF" and read is open_base  # which is read, and this one ends too early
        assert damaged or "truncated" not in str(caught.value)
        assert damaged or caught.value.hint


def test_a_pointer_says_how_to_get_the_file(tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_bytes(LFS)
    with pytest.raises(FileFormatError) as caught:
        open_base(tmp_path / "p.safetensors")
    assert "git lfs pull" in str(caught.value)


@given(kept=st.integers(1, 400), name=st.text("ab", min_size=1, max_size=300))
def test_a_cut_file_stays_a_cut_file(tmp_path_factory: pytest.TempPathFactory, kept: int, name: str) -> None:
    """Lengths of headers whose bytes look like a pickle's first ones (80 02: 640 bytes) among them."""
    whole = encode_header([(name + "x" * pad, "F32", (4,), 16) for pad in (0, 300)], {}, align=640)
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(whole[: min(kept, len(whole) - 1)])
    with pytest.raises(FileFormatError) as caught:
        read_header(path)
    said = str(caught.value)
    assert ("this is" not in said and "truncated" in said) or kept <= 8
