"""Patterns of PEFT's configurations: as PEFT's own rule has it, and in time linear in the name."""

from __future__ import annotations

import re

import pytest

from paramerge.adapters.ia3 import Ia3Settings
from paramerge.adapters.layer_patterns import check_patterns, first_match, whole_match
from paramerge.adapters.oft import OftSettings
from paramerge.errors import AdapterError
from paramerge.formats.peft import read_tuner

_PATHS = [
    "to_q",
    "down_blocks.1.attentions.0.to_q",
    "down_blocks.11.attentions.0.to_q",
    "mid_block.to_out.0",
    "mid_block.to_out_0",
    "text_model.encoder.layers.0.fc1",
    "xto_q",
    "",
]
_PATTERNS = [
    *(
        "to_q",
        "to_out.0",
        "down_blocks.1.attentions.0.to_q",
        "encoder.layers.0.fc1",
        "text_model.encoder",
        "",
    ),
    *(
        r"^mid_block.*",
        r".*attn.*|to_[qk]",
        r"down_blocks\.\d\..*",
        r"(to_q|to_k)",
        r"[^.]+",
        "fc1",
        "blocks",
    ),
]


@pytest.mark.parametrize("pattern", _PATTERNS)
def test_patterns_name_the_layers_that_they_name_to_peft(pattern):
    check_patterns("alpha_pattern", [pattern], "here")
    for path in _PATHS:
        spellings = (path, path.removeprefix("text_model."))
        expected = any(re.match(rf"(.*\.)?({pattern})$", spelling) for spelling in spellings)
        assert (first_match([pattern], path) is not None) == expected, path
        assert whole_match(pattern, path) == (re.fullmatch(pattern, path) is not None), path


def test_the_first_pattern_counts():
    assert first_match(["to_k", "to_.", "to_q"], "a.to_q") == "to_."


@pytest.mark.parametrize("pattern", ["(([a-z_0-9]+)[.]?)+!", "(a|a)*b", "(.*)*x", r"(\w+\s?)*$x"])
def test_no_expression_takes_exponential_time(pattern):
    check_patterns("alpha_pattern", [pattern], "here")
    assert first_match([pattern], "a." * 50_000) is None
    assert not whole_match(pattern, "a" * 100_000)


_BAD = ["(", "(?!a)b", r"(a)\1", "a{1000}{1000}", "(a{1000}){1000}", "[", "(" * 100_000, "+" * 10, "(?i)to_q"]


@pytest.mark.parametrize("pattern", _BAD)
def test_what_cannot_be_matched_is_refused_by_name(pattern):
    for config in (
        {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "alpha_pattern": {pattern: 1}},
        {"peft_type": "LOKR", "r": 2, "alpha": 2, "rank_pattern": {pattern: 1}},
        {"peft_type": "IA3", "feedforward_modules": pattern},
    ):
        with pytest.raises(AdapterError, match="impossible value") as refusal:
            read_tuner(config, "here")
        assert len(str(refusal.value)) < 1500


_VALUES = [None, True, False, 0, -1, 3, 10**300, 1e300, "x", "(", [], [1], {}, {"a": None}, {"a": [1]}, [[]]]
_OPTIONS = [
    *(
        "r",
        "alpha",
        "lora_alpha",
        "alpha_pattern",
        "rank_pattern",
        "use_rslora",
        "use_dora",
        "bias",
        "peft_type",
    ),
    *("init_lora_weights", "feedforward_modules", "block_share", "use_cayley_neumann", "layer_replication"),
    *("peft_type", "num_cayley_neumann_terms", "target_modules", "use_qalora"),
]


@pytest.mark.parametrize("option", _OPTIONS)
@pytest.mark.parametrize("tuner", ["LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3"])
def test_options_of_wrong_types_are_refused_or_mean_something(tuner, option):
    for value in _VALUES:
        config = {"peft_type": tuner, "r": 2, "lora_alpha": 2, "alpha": 2, option: value}
        try:
            settings = read_tuner(config, "here")
        except AdapterError:
            continue
        if settings.scaling is not None:
            settings.scaling.scaling("a.b", settings.scaling.rank_of("a.b"))
        if isinstance(settings, Ia3Settings):
            settings.scales_inputs("a.b")
        if isinstance(settings, OftSettings):
            assert settings.series_terms is None or settings.series_terms <= 100


def test_a_map_of_a_million_patterns_is_refused():
    patterns = {f"layer.{i}": 1 for i in range(20_000)}
    with pytest.raises(AdapterError, match="more entries than a model has layers"):
        read_tuner({"r": 2, "lora_alpha": 2, "rank_pattern": patterns}, "here")
