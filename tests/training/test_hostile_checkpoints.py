"""Checkpoints to resume from that are damaged, or made to harm: refused by name, before anything changes."""

from __future__ import annotations

import copy
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from paramerge.errors import CheckpointError, ParamergeError
from paramerge.training.state import TrainingState, load_checkpoint, save_checkpoint
from paramerge.training.tiny import checkpoint as tiny

IDENTITY = {"settings": "a", "data": "b", "whole_batch": 2}
KEY = "paramerge.training"


def state_of(seed: int, steps: int) -> TrainingState:
    """Three small parameters and their average after some steps of AdamW."""
    torch.manual_seed(seed)
    parameters = {
        "unet.a.weight": nn.Parameter(torch.randn(3, 4)),
        "unet.b": nn.Parameter(torch.randn(5)),
        "unet.unmoved": nn.Parameter(torch.randn(2)),
    }
    average = {name: value.detach().clone() for name, value in parameters.items()}
    state = TrainingState(parameters, torch.optim.AdamW(parameters.values(), 0.1), average)
    for step in range(steps):
        for name, value in parameters.items():
            value.grad = None if name == "unet.unmoved" else torch.randn_like(value)
        state.optimizer.step()
        state.step, state.losses = step + 1, [*state.losses, float(step)]
    return state


def written(folder: Path) -> Path:
    return save_checkpoint(state_of(0, 3), folder, IDENTITY, 0)


def plain(state: TrainingState) -> list[Any]:
    """All that the state consists of, to be compared."""
    moments = [
        (index, kind, value.tolist())
        for index, each in state.optimizer.state_dict()["state"].items()
        for kind, value in sorted(each.items())
    ]
    tensors = [value.tolist() for value in (*state.parameters.values(), *state.average.values())]
    return [tensors, moments, state.step, state.losses, state.scale]


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    path = written(tmp_path)
    state = state_of(1, 0)
    load_checkpoint(state, path, IDENTITY)
    assert plain(state) == plain(state_of(0, 3))


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def with_facts(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change what the metadata say of the training."""

    def act(path: Path) -> None:
        header, data = parts(path)
        facts = json.loads(header["__metadata__"][KEY])
        found = change(facts)
        header["__metadata__"][KEY] = found if isinstance(found, str) else json.dumps(facts)
        write(path, header, data)

    return act


def with_header(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        header, data = parts(path)
        change(header)
        write(path, header, data)

    return act


def rename(old: str, new: str) -> Callable[[Path], None]:
    return with_header(lambda header: header.update({new: header.pop(old)}))


def as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def last_value(value: float) -> Callable[[Path], None]:
    """Another float32 at the end of the file, which belongs to a parameter."""
    return lambda path: path.write_bytes(path.read_bytes()[:-4] + struct.pack("<f", value))


MOMENT = "optimizer.exp_avg.unet.a.weight"
HARM: dict[str, Callable[[Path], None]] = {
    "step a text": with_facts(lambda facts: facts.update(step="3")),
    "step negative": with_facts(lambda facts: facts.update(step=-3)),
    "step huge": with_facts(lambda facts: facts.update(step=10**30)),
    "step a truth": with_facts(lambda facts: facts.update(step=True, losses=[0.0])),
    "step a fraction": with_facts(lambda facts: facts.update(step=3.0)),
    "step missing": with_facts(lambda facts: facts.pop("step")),
    "step of many digits": with_facts(
        lambda facts: json.dumps(facts).replace('"step": 3', '"step": 3' + "0" * 5000)
    ),
    "step before the moments": with_facts(lambda facts: facts.update(step=1, losses=[0.0])),
    "losses missing": with_facts(lambda facts: facts.pop("losses")),
    "losses a text": with_facts(lambda facts: facts.update(losses="abc")),
    "losses too few": with_facts(lambda facts: facts.update(losses=[1.0])),
    "a loss is NaN": with_facts(lambda facts: facts.update(losses=[1.0, float("nan"), 1.0])),
    "a loss is a list": with_facts(lambda facts: facts.update(losses=[1.0, [], 1.0])),
    "a loss beyond float": with_facts(lambda facts: facts.update(losses=[1.0, 10**400, 1.0])),
    "scale missing": with_facts(lambda facts: facts.pop("scale")),
    "scale of texts": with_facts(lambda facts: facts.update(scale={"scale": "x"})),
    "moments not said": with_facts(lambda facts: facts.pop("moments")),
    "moments of others": with_facts(lambda facts: facts.update(moments=["x"])),
    "moments of lists": with_facts(lambda facts: facts.update(moments=[[], {}])),
    "moments said to be fewer": with_facts(lambda facts: facts.update(moments=["unet.b"])),
    "facts a list": with_facts(lambda facts: "[]"),
    "facts no JSON": with_facts(lambda facts: "{"),
    "facts deep": with_facts(lambda facts: "[" * 200_000),
    "no facts": with_header(lambda header: header.pop("__metadata__")),
    "moments renamed": rename(MOMENT, "optimizer.moment.unet.a.weight"),
    "a parameter renamed": rename("parameter.unet.b", "parameter.unet.c"),
    "an average renamed": rename("average.unet.b", "averages.unet.b"),
    "another shape": with_header(lambda header: header["parameter.unet.a.weight"].update(shape=[4, 3])),
    "another dtype": with_header(lambda header: header[MOMENT].update(dtype="I32")),
    "a huge shape": with_header(lambda header: header[MOMENT].update(shape=[2**40, 2**20])),
    "a shape of text": with_header(lambda header: header[MOMENT].update(shape="12")),
    "header a list": lambda path: write(path, [], b""),
    "header deep": lambda path: write(path, b"[" * 200_000, b""),
    "header of 2^60 bytes": lambda path: path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:]),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"step": 3})),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a pipe": as_fifo,
    "a folder": as_folder,
    "not finite": last_value(float("inf")),
}


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_refused_and_nothing_changes(harm: str, tmp_path: Path) -> None:
    path = written(tmp_path)
    HARM[harm](path)
    state = state_of(1, 0)
    before = plain(state)
    with pytest.raises(ParamergeError):
        load_checkpoint(state, path, IDENTITY)
    assert plain(state) == before


def test_another_run_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    for name in IDENTITY:
        with pytest.raises(CheckpointError, match="another run"):
            load_checkpoint(state_of(1, 0), path, IDENTITY | {name: "other"})


VALUES = (
    None,
    True,
    -1,
    0,
    2,
    10**25,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x" * 50,
    [],
    [1],
    {},
    {"a": 1},
    [[]],
)


def mutated(rng: np.random.Generator, path: Path) -> None:
    """One to three changes of a real checkpoint: bytes, its header's entries, or its facts."""
    for _ in range(int(rng.integers(1, 4))):
        raw = bytearray(path.read_bytes())
        kind = int(rng.integers(4))
        if kind == 0 and raw:
            for place in rng.integers(0, len(raw), 3):
                raw[place] = rng.integers(256)
            path.write_bytes(raw)
            continue
        if kind == 1:
            path.write_bytes(raw[: int(rng.integers(len(raw) + 1))])
            continue
        try:
            header, data = parts(path)
            facts = json.loads(header["__metadata__"][KEY])
        except (ValueError, KeyError, TypeError, struct.error):
            return
        target = facts if kind == 2 else header
        if not isinstance(target, dict) or not target:
            return
        name = sorted(target)[int(rng.integers(len(target)))]
        value = copy.deepcopy(VALUES[int(rng.integers(len(VALUES)))])
        if kind == 3 and isinstance(target[name], dict) and target[name] and rng.random() < 0.7:
            target = target[name]
            name = sorted(target)[int(rng.integers(len(target)))]
        if rng.random() < 0.3:
            target.pop(name)
        else:
            target[name] = value
        if kind == 2:
            header["__metadata__"][KEY] = json.dumps(facts)
        write(path, header, data)


def test_mutations_are_resumed_from_or_refused_by_name(tmp_path: Path) -> None:
    """Seeded: what is resumed from is a state that a training can have had."""
    rng, path = np.random.default_rng(0), written(tmp_path)
    whole, refused = path.read_bytes(), 0
    for _ in range(400):
        path.write_bytes(whole)
        mutated(rng, path)
        state = state_of(1, 0)
        before = plain(state)
        try:
            load_checkpoint(state, path, IDENTITY)
        except ParamergeError:
            refused += 1
            assert plain(state) == before
        else:
            assert state.step == len(state.losses) <= 3
            assert all(bool(torch.isfinite(value).all()) for value in state.parameters.values())
    assert refused > 200


def test_the_small_models_own_checkpoints_are_read_as_carefully(tmp_path: Path) -> None:
    def part() -> tiny.TrainingState:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        return tiny.TrainingState(model, copy.deepcopy(model), torch.optim.AdamW(model.parameters(), 0.1))

    state = part()
    state.model(torch.ones(3)).sum().backward()
    state.optimizer.step()
    state.step, state.curve = 1, [(1, 0.5)]
    path = tmp_path / "part.safetensors"
    tiny.save_state(state, path, "me")
    tiny.load_state(part(), path, "me")
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        path.write_bytes(whole)
        mutated(rng, path)
        try:
            tiny.load_state(part(), path, "me")
        except ParamergeError:
            refused += 1
    assert refused > 100
