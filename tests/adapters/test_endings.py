"""Endings of keys: the look-up by words agrees with a regular expression for each ending."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from paramerge.adapters.endings import Endings, without_name
from paramerge.adapters.registry import families

_ENDINGS = sorted({ending for family in families() for ending in family.endings})
_WORDS = sorted({word for ending in _ENDINGS for word in without_name(ending).split(".")})
_keys = st.lists(st.sampled_from([*_WORDS, "default", "a", "", "a-b", "é", "0"]), max_size=7).map(".".join)


def _expression(ending: str) -> re.Pattern[str]:
    optional = r"(?:\.\w+)?"
    return re.compile(rf"(?P<stem>(?s:.+?))\.{re.escape(ending).replace(re.escape('.<name>'), optional)}")


_EXPRESSIONS = {ending: _expression(ending) for ending in _ENDINGS}


@given(_keys)
def test_the_look_up_finds_what_a_regular_expression_for_each_ending_finds(key: str) -> None:
    found: dict[str, str] = {}
    for stem, _, ending in Endings((ending, ending) for ending in _ENDINGS).find(key):
        found.setdefault(ending, stem)  # the longest
    matches = {ending: pattern.fullmatch(key) for ending, pattern in _EXPRESSIONS.items()}
    assert found == {ending: match["stem"] for ending, match in matches.items() if match}


def test_the_longest_ending_comes_first_and_those_of_one_length_in_their_order() -> None:
    every = Endings([("b", 1), ("a.<name>", 2), ("a.b", 3), ("b", 4)])
    assert [found.value for found in every.find("x.a.b")] == [2, 3, 1, 4]
    assert [(found.stem, found.named) for found in every.find("x.a.b")] == [
        ("x", True),
        ("x", False),
        ("x.a", False),
        ("x.a", False),
    ]
    assert every.find("a.b")[0] == ("a", False, 1)  # an ending stands behind something
