"""``explain`` finds in checkpoints what was put there, with bars that hold what they promise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from random_mixtures import LORAS, PARAS, Mixture, Workshop, bake, mixtures, workshop

import paramerge as pm
from paramerge.explain.findings import AdapterFinding, Explanation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return workshop(tmp_path_factory.mktemp("explain") / "shop")


def explained(made: Workshop, mixture: Mixture, folder: Path) -> Explanation:
    tuned = bake(made, mixture, folder / "tuned")
    return pm.explain(tuned, made.base(mixture.dtype), made.adapters)


def findings(found: Explanation) -> dict[str, AdapterFinding]:
    return {finding.name.removesuffix(".safetensors"): finding for finding in found.adapters}


def order_of(found: Explanation) -> list[str]:
    return [name.removesuffix(".safetensors") for step in found.order.steps for name in step]


def check_mixture(found: Explanation, mixture: Mixture) -> Iterator[float]:
    """Assert verdicts and order; by adapter, how many bars its strength is off."""
    adapters = findings(found)
    for name in (*PARAS, *LORAS):
        wanted = mixture.strengths.get(name, 0.0)
        finding = adapters[name]
        assert finding.verdict == ("there" if wanted else "absent"), (mixture, finding)
        off = abs(finding.strength - wanted) / finding.bar
        assert off < 3, (mixture, finding)  # six standard errors
        yield off
    assert found.unexplained == 0, mixture
    if found.order.told and found.order.matters:
        check_order(found, mixture)


def check_order(found: Explanation, mixture: Mixture) -> None:
    """The order of each PaRa and LoRA; of two PaRas, where they were applied one after the other."""
    claimed, wanted = order_of(found), [name for name, _ in mixture.steps]
    for first, second in pairwise(wanted):
        kinds = {first in PARAS, second in PARAS}
        if kinds == {True, False} or (kinds == {True} and not mixture.joint):
            assert claimed.index(first) < claimed.index(second), mixture


def run(made: Workshop, folder: Path, count: int, seed: int) -> None:
    offs: list[float] = []
    told = several = 0
    for mixture in mixtures(count, seed):
        found = explained(made, mixture, folder)
        offs += check_mixture(found, mixture)
        if any(name in PARAS for name in mixture.strengths) and len(mixture.steps) > 1:
            several += 1
            told += found.order.told
    within = np.mean(np.array(offs) <= 1)
    # a bar of 95 percent; neither too small nor safe by being huge
    spread = np.sqrt(0.95 * 0.05 / len(offs))
    assert 0.95 - 4 * spread < within < min(0.95 + 4 * spread, 0.995), within
    assert told > 0.9 * several


def test_mixtures_are_found_again_within_their_bars(made: Workshop, tmp_path: Path) -> None:
    run(made, tmp_path, 40, 1)


@pytest.mark.slow
def test_a_thousand_mixtures_are_found_again_within_their_bars(made: Workshop, tmp_path: Path) -> None:
    run(made, tmp_path, 1000, 2)
