"""Named vectors of block weights: the numbers that users' tables have."""

from __future__ import annotations

import pytest

from paramerge.resolve.block_presets import PRESETS
from paramerge.resolve.blocks import block_names, parse_blocks

KNOWN = {
    "GRAD_V": "0 1 .9166666667 .8333333333 .75 .6666666667 .5833333333 .5 .4166666667 .3333333333 .25 "
    ".1666666667 .0833333333 0 .0833333333 .1666666667 .25 .3333333333 .4166666667 .5 "
    ".5833333333 .6666666667 .75 .8333333333 .9166666667 1",
    "WRAP12": "0 1 1 1 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1 1 1 1 1",
    "MID12_50": "0 0 0 0 0 0 .5 .5 .5 .5 .5 .5 .5 .5 .5 .5 .5 .5 .5 .5 0 0 0 0 0 0",
    "OUT12_5": "0 0 0 0 0 0 0 0 0 0 0 0 0 .5 1 1 1 1 1 1 1 1 1 1 1 1",
    "RING08_SOFT": "0 0 0 0 0 0 .5 1 1 1 .5 0 0 0 0 0 .5 1 1 1 .5 0 0 0 0 0",
    "RING10_3": "0 0 0 0 0 0 0 1 1 1 1 1 0 0 0 1 1 1 1 1 0 0 0 0 0 0",
    "SMOOTHSTEP*3": "0 0 .01519097222 .0590277778 .12890625 .2222222222 .3363715278 .46875 .6167534722 "
    ".7777777778 .94921875 .8715277778 .6870659722 .5 .3129340278 .1284722222 .05078125 "
    ".2222222222 .3832465278 .53125 .6636284722 .7777777778 .87109375 .9409722222 .9848090278 1",
    "SMOOTHSTEP/3": "0 0 .04296875 .15625 .31640625 .5 .68359375 .84375 .95703125 1 .95703125 .84375 "
    ".68359375 .5 .31640625 .15625 .04296875 0 .04296875 .15625 .31640625 .5 .68359375 .84375 .95703125 1",
    "FAKE_CUBIC_HERMITE": "0 0 .157576196 .2849151235 .384765625 .4598765432 .5129967207 .546875 .5642602238 "
    ".5679012346 .560546875 .5449459877 .5238474151 .5 .4761525849 .4550540123 .439453125 "
    ".4320987654 .4357397762 .453125 .4870032793 .5401234568 .615234375 .7150848765 .842423804 "
    "1",
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_numbers_are_those_that_people_have(name: str) -> None:
    assert PRESETS[name] == pytest.approx([float(text) for text in KNOWN[name].split()], abs=1e-9)


@pytest.mark.parametrize("name", PRESETS)
def test_each_is_a_vector_of_sd15_by_its_name(name: str) -> None:
    weights = parse_blocks(name.lower()).resolve("sd15")
    assert list(weights) == block_names("sd15")
    assert all(0 <= weight <= 1 for weight in weights.values())
