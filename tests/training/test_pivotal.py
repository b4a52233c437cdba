"""A new word and an adapter together: both learn, both are saved, and together they are what was trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from baking import plan_of
from safetensors.torch import load_file
from training_runs import settings

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.errors import UsageError
from paramerge.generation.loading import load_pipeline
from paramerge.training import loop
from paramerge.training.loop import train
from paramerge.training.methods.pivotal import WORD_FILE
from paramerge.training.models.unet import UNET

MORE: dict[str, Any] = {
    "pivotal": True, "instance_prompt": "a <sks> dog", "initializer": "dog", "placeholder_vectors": 2,
    "subset": "sao", "init": "orthonormal", "train_text_encoder": True, "steps": 3, "save_every": 1,
}  # fmt: skip


def test_both_are_what_was_trained(
    sd: Path, dog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    original = loop.load_model

    def watched(*arguments: Any) -> Any:
        seen["pipeline"], kind = original(*arguments)
        return seen["pipeline"], kind

    monkeypatch.setattr(loop, "load_model", watched)
    config = settings(sd, dog, tmp_path / "a", **MORE)
    result = train(config)
    adapter, word = result.adapter
    assert (adapter.name, word.name) == ("adapter.safetensors", WORD_FILE)
    bake(plan_of(sd, Step("adapter", adapter)), tmp_path / "baked")
    pipeline = load_pipeline(open_base(tmp_path / "baked"), torch.float32)
    before = len(pipeline.tokenizer)
    plain = UNET.encode(pipeline, "a dog dog dog", "cpu").states
    pipeline.load_textual_inversion(word, token="<sks>")
    assert len(pipeline.tokenizer) == before + 2
    wanted = UNET.encode(seen["pipeline"], "a <sks> dog", "cpu").states
    found = UNET.encode(pipeline, "a <sks> dog", "cpu").states
    change = float((wanted - plain).norm())
    assert float((found - wanted).norm()) < 0.02 * change  # the adapter has 11 bits
    start = pipeline.text_encoder.get_input_embeddings().weight[pipeline.tokenizer("dog").input_ids[1]]
    assert float((load_file(word)["<sks>"] - start).abs().max()) > 1e-3

    def interrupt(done: int, total: int, loss: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    part = replace(config, output=tmp_path / "part")
    with pytest.raises(KeyboardInterrupt):
        train(part, report=interrupt)
    for one, other in zip(train(part, resume=True).adapter, result.adapter, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_the_word_has_a_rate_of_its_own_and_does_not_decay(sd: Path) -> None:
    pipeline = load_pipeline(open_base(sd), torch.float32)
    more = {**MORE, "method": "lora", "learning_rate": 1e-4, "placeholder_rate": 3e-3}
    config = settings(sd, Path("p"), Path("o"), **more)
    torch.manual_seed(0)
    trained = loop.attach(pipeline, config)
    model, word = loop._optimizer(trained, config).param_groups
    assert (model["lr"], word["lr"], word["weight_decay"]) == (1e-4, 3e-3, 0.0)
    assert len(word["params"]) == 1
    prodigy = replace(config, optimiser="prodigy", placeholder_rate=None, learning_rate=None)
    assert prodigy.word_rate == 1.0


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"method": "textual-inversion", "pivotal": True, "instance_prompt": "a <sks> dog"}, "pivotal"),
        ({"pivotal": True}, "instance_prompt"),
        ({"placeholder_rate": 1e-3}, "placeholder_rate"),
        (
            {"pivotal": True, "instance_prompt": "<sks>", "placeholder_rate": 1.0, "optimiser": "prodigy"},
            "placeholder_rate",
        ),
    ],
)
def test_what_does_not_go_together(wrong: dict[str, Any], where: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(Path("m"), Path("p"), Path("o"), **wrong)
    assert caught.value.where == where
