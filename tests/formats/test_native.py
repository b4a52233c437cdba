"""The native PaRa format: its specification run as written, round trips, spans, versions."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from adapter_files import Array, save
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from strategies import ROUNDOFF, columns, generators, invertible, law, norm2, projector

from paramerge.adapters import ParaModule
from paramerge.algebra import orthonormalise
from paramerge.errors import (
    AdapterError,
    FileFormatError,
    NonFiniteError,
    OutputError,
    ParamergeError,
    ShapeError,
    UsageError,
)
from paramerge.formats import open_adapter, write_para
from paramerge.models.names import ModuleName

SPECIFICATION = Path(__file__).resolve().parents[2] / "docs" / "para-format.md"
TO_Q = ModuleName("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
CONV = ModuleName("unet", "down_blocks.0.resnets.0.conv1")
Q_PROJ = ModuleName("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj")
NUMPY_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}


def bases(seed: int = 0) -> dict[ModuleName, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((d, r)) for name, d, r in ((TO_Q, 6, 2), (CONV, 5, 3), (Q_PROJ, 4, 1))}


def written(path: Path, modules: dict[ModuleName, Array] | None = None, **options: Any) -> Path:
    write_para(path, bases() if modules is None else modules, **{"architecture": "sd15", **options})
    return path


def basis_of(module: Any) -> Array:
    assert isinstance(module, ParaModule)
    return module.basis.read_exact()


# the specification


def section(title: str) -> str:
    return SPECIFICATION.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_the_example_of_the_specification_runs_and_is_right(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", section("Reading it"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip() and "import" not in line]) <= 10
    rng = np.random.default_rng(1)
    shapes = {TO_Q: (6, 4), CONV: (5, 2, 3, 3), Q_PROJ: (4, 4)}
    weights = {f"{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}
    modules = bases() | {TO_Q: np.ones((6, 3))}  # dependent columns: one direction
    written(tmp_path / "para.safetensors", modules, dtype=dtype)
    save_file(weights, tmp_path / "layers.safetensors")
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    exec(compile(code, str(SPECIFICATION), "exec"), scope)  # the documentation's own text, not a user's
    for name, module in open_adapter("para.safetensors").modules.items():
        basis = orthonormalise(basis_of(module).astype(np.float64), rtol=1e-6)
        W = weights[f"{name}.weight"]
        flat = W.reshape(len(W), -1)
        expected = (flat - basis.Q @ (basis.Q.T @ flat)).reshape(W.shape)
        assert np.allclose(scope["weights"][f"{name}.weight"], expected, rtol=0, atol=1e-13)
        assert basis.rank == (1 if name == TO_Q else module.rank)


def test_the_metadata_are_those_of_the_specification(tmp_path: Path) -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", section("Metadata"), re.MULTILINE)
    stated = {key: when for keys, when in rows for key in re.findall(r"`([^`]+)`", keys)}
    full = written(tmp_path / "f.safetensors", base_sha256="a" * 64, gamma=0.025, targets=["to_q"])
    bare = written(tmp_path / "b.safetensors", architecture=None)
    assert open_adapter(full).metadata.keys() == stated.keys()
    assert open_adapter(bare).metadata.keys() == {key for key, when in stated.items() if when == "always"}


def test_the_version_is_that_of_the_specification(tmp_path: Path) -> None:
    (version,) = re.findall(r"^# .* version ([\d.]+)$", SPECIFICATION.read_text(), re.MULTILINE)
    assert open_adapter(written(tmp_path / "p.safetensors")).metadata["paramerge.format_version"] == version


def test_keys_shapes_and_size(tmp_path: Path) -> None:
    path = written(tmp_path / "p.safetensors")
    tensors = load_file(path)
    assert {key: array.shape for key, array in tensors.items()} == {
        f"{TO_Q}.para_B": (6, 2),
        f"{CONV}.para_B": (5, 3),
        f"{Q_PROJ}.para_B": (4, 1),
    }
    assert sum(array.nbytes for array in tensors.values()) == 2 * (12 + 15 + 4), (
        "half of a square layer's LoRA"
    )


# round trips and the span


@law
@given(
    rng=generators(),
    dtype=st.sampled_from(list(NUMPY_NAMES)),
    d=st.integers(1, 9),
    r=st.integers(1, 9),
    exponent=st.integers(-3, 3),
)
def test_round_trip_is_one_rounding(
    rng: np.random.Generator,
    dtype: str,
    d: int,
    r: int,
    exponent: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    B = rng.standard_normal((d, min(d, r))) * 10.0**exponent
    path = written(tmp_path_factory.getbasetemp() / "round.safetensors", {TO_Q: B}, dtype=dtype)
    (module,) = open_adapter(path, family="para").modules.values()
    rounded = B.astype(getattr(ml_dtypes, NUMPY_NAMES[dtype], NUMPY_NAMES[dtype]))
    assert np.array_equal(basis_of(module), rounded.astype(np.float32))
    assert (module.rank, module.out_features) == (B.shape[1], d)


@law
@given(
    B=columns().filter(lambda B: B.shape[1] > 0), rng=generators(), dtype=st.sampled_from(list(NUMPY_NAMES))
)
def test_only_the_span_counts(
    B: Array, rng: np.random.Generator, dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """T7: ``B G`` gives the projector of ``B``, up to the storage's rounding."""
    mixed = B @ invertible(rng, B.shape[1])
    path = tmp_path_factory.getbasetemp() / "span.safetensors"
    found = []
    for basis in (B, mixed):
        (module,) = open_adapter(written(path, {TO_Q: basis}, dtype=dtype)).modules.values()
        found.append(projector(orthonormalise(basis_of(module).astype(np.float64)).Q))
    # a relative change e of a matrix of condition c turns its span by at most about c e; c is 10 and 100 here
    allowed = 2 * 110 * np.sqrt(B.shape[1]) * ROUNDOFF[NUMPY_NAMES[dtype]]
    assert norm2(found[0] - found[1]) <= allowed


def test_orthonormal_after_loading_though_not_as_stored(tmp_path: Path) -> None:
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 16)))[0]
    (module,) = open_adapter(written(tmp_path / "p.safetensors", {TO_Q: Q}, dtype="BF16")).modules.values()
    stored = basis_of(module).astype(np.float64)
    loaded = orthonormalise(stored).Q
    assert norm2(stored.T @ stored - np.eye(16)) > 1e-4
    assert norm2(loaded.T @ loaded - np.eye(16)) < 1e-13


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for number in range(3):
        modules = dict(bases() if number else reversed(bases().items()))
        path = written(
            tmp_path / f"{number}.safetensors",
            modules,
            base_sha256=["a" * 64, "b" * 64],
            targets=["to_v", "to_q"] if number else ["to_q", "to_v"],
            gamma=1 / 40,
            metadata={"author": "someone"},
        )
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_what_is_known_of_it_is_read_back(tmp_path: Path) -> None:
    path = written(
        tmp_path / "p.safetensors",
        architecture="sdxl",
        base_sha256=["a" * 64, "0" * 64],
        gamma=0.025,
        metadata={"author": "someone"},
    )
    adapter = open_adapter(path)
    assert (adapter.family, adapter.dialect, adapter.architecture) == ("para", "paramerge", "sdxl")
    assert adapter.base_hashes == ("a" * 64, "0" * 64)
    assert (adapter.metadata["author"], adapter.metadata["paramerge.gamma"]) == ("someone", "0.025")
    assert json.loads(adapter.metadata["paramerge.ranks"]) == {str(TO_Q): 2, str(CONV): 3, str(Q_PROJ): 1}
    assert json.loads(adapter.metadata["paramerge.targets"]) == ["conv1", "q_proj", "to_q"]


def test_what_it_states_counts_before_what_names_suggest(tmp_path: Path) -> None:
    modules = {ModuleName("text_encoder_2", "text_projection"): np.eye(3, 1)}
    assert (
        open_adapter(written(tmp_path / "a.safetensors", modules, architecture=None)).architecture == "sdxl"
    )
    path = written(tmp_path / "b.safetensors", modules, architecture="sdxl-refiner")
    assert open_adapter(path).architecture == "sdxl-refiner"


def test_a_raw_file_without_metadata_is_read(tmp_path: Path) -> None:
    path = tmp_path / "raw.safetensors"
    save_file({f"{TO_Q}.para_B": np.eye(3, 2)}, path)
    adapter = open_adapter(path)
    assert (list(adapter.modules), adapter.architecture) == ([TO_Q], None)


def test_unknown_layers_are_left_over(tmp_path: Path) -> None:
    B = np.eye(3, 2, dtype=np.float32)
    keys = ("unet.somewhere.to_q.para_B", "vae.decoder.conv_in.para_B", "extra")
    adapter = open_adapter(save(tmp_path / "p.safetensors", {f"{TO_Q}.para_B": B, **dict.fromkeys(keys, B)}))
    assert [leftover.keys for leftover in adapter.leftovers] == [keys]


# what is refused


@pytest.mark.parametrize("version", ["2.0", "2", "10.0", "0.9", "", "one", "1.x", "-1", "1.0.0", "9" * 5000])
def test_another_major_version_is_refused(version: str, tmp_path: Path) -> None:
    metadata = {"paramerge.format": "para", "paramerge.format_version": version}
    path = save(tmp_path / "p.safetensors", {f"{TO_Q}.para_B": np.eye(3, 2, dtype=np.float32)}, metadata)
    with pytest.raises(FileFormatError, match="unknown version"):
        open_adapter(path)


@pytest.mark.parametrize("version", ["1", "1.0", "1.7"])
def test_another_minor_version_is_read(version: str, tmp_path: Path) -> None:
    metadata = {"paramerge.format_version": version, "paramerge.something_new": "to ignore"}
    path = save(tmp_path / "p.safetensors", {f"{TO_Q}.para_B": np.eye(3, 2, dtype=np.float32)}, metadata)
    assert len(open_adapter(path).modules) == 1


@pytest.mark.parametrize(
    "metadata",
    [
        {"paramerge.format": "something"},
        {"paramerge.ranks": "{"},
        {"paramerge.ranks": "[]"},
        {"paramerge.ranks": "{}"},
        {"paramerge.ranks": json.dumps({str(TO_Q): 1})},
        {"paramerge.ranks": json.dumps({str(TO_Q): 2, str(CONV): 1})},
        {"paramerge.ranks": json.dumps({str(TO_Q): "2"})},
        {"paramerge.gamma": "0"},
        {"paramerge.gamma": "nan"},
        {"paramerge.gamma": "2"},
        {"paramerge.gamma": "much"},
    ],
)
def test_metadata_that_contradict_are_refused(metadata: dict[str, str], tmp_path: Path) -> None:
    path = save(tmp_path / "p.safetensors", {f"{TO_Q}.para_B": np.eye(3, 2, dtype=np.float32)}, metadata)
    with pytest.raises(ParamergeError):
        open_adapter(path)


@pytest.mark.parametrize(
    ("basis", "error"),
    [
        (np.ones((3, 0), np.float32), AdapterError),
        (np.ones((0, 0), np.float32), AdapterError),
        (np.ones((2, 3), np.float32), ShapeError),
        (np.ones(3, np.float32), ShapeError),
        (np.ones((3, 2, 1, 1), np.float32), ShapeError),
        (np.ones((3, 2), np.int64), AdapterError),
    ],
)
def test_a_basis_that_is_none_is_refused_when_read(
    basis: Array, error: type[ParamergeError], tmp_path: Path
) -> None:
    with pytest.raises(error):
        open_adapter(save(tmp_path / "p.safetensors", {f"{TO_Q}.para_B": basis}))


@pytest.mark.parametrize(
    ("basis", "error"),
    [
        (np.full((3, 1), np.nan), NonFiniteError),
        (np.full((3, 1), 1e30), NonFiniteError),  # beyond half precision
        (np.zeros((3, 1)), ShapeError),
        (np.full((3, 1), 1e-30), ShapeError),  # vanishes in half precision
        (np.eye(3)[:, :0], AdapterError),
        (np.ones((2, 3)), ShapeError),
        (np.ones(3), ShapeError),
    ],
)
def test_a_basis_that_is_none_is_not_written(
    basis: Array, error: type[ParamergeError], tmp_path: Path
) -> None:
    path = tmp_path / "p.safetensors"
    path.write_text("the old output")
    with pytest.raises(error):
        written(path, {TO_Q: basis})
    assert path.read_text() == "the old output"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "options",
    [
        {"modules": {}},
        {"dtype": "F64"},
        {"base_sha256": "abc"},
        {"base_sha256": "A" * 64},
        {"metadata": {"paramerge.recipe": "{}"}},
        {"modules": {TO_Q: np.eye(3, 1), ModuleName("unet", "no.such.layer"): np.eye(3, 1)}},
        {"modules": {ModuleName("transformer", "no layer"): np.eye(3, 1)}},
        {"modules": {ModuleName("vae", "decoder.conv_in"): np.eye(3, 1)}},
        {"gamma": 0.0},
        {"gamma": 1.5},
        {"gamma": float("nan")},
    ],
)
def test_a_call_that_the_format_does_not_allow(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises((UsageError, AdapterError)):
        written(tmp_path / "p.safetensors", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        written(tmp_path / "none" / "p.safetensors")


def test_safetensors_itself_reads_it(tmp_path: Path) -> None:
    path = written(tmp_path / "p.safetensors", dtype="F32")
    with safe_open(path, "pt") as file:
        assert file.metadata()["paramerge.format"] == "para"
        assert tuple(file.get_tensor(f"{CONV}.para_B").shape) == (5, 3)
