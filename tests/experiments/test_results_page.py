"""The page of results: what several runs say together, and which learning rates were the best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from paramerge.errors import FileFormatError
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.report import results_page, together_of


def results(folder: Path, lines: list[Line], **more: Any) -> Path:
    """The files of an experiment's folder that a page is made of."""
    folder.mkdir()
    summary = {
        "experiment": "table1",
        "title": "Diversity",
        "source": "Table 1",
        "version": "1",
        "model": "model",
        "data": "data",
        "data_sha256": "0" * 64,
        "subjects": ["dog"],
        "budget": "smoke",
        "seed": 0,
        "stops": {"para": [1], "others": [1, 2]},
        "pictures": [3],
        "runs": 2,
        "sampling": {"steps": 1, "scheduler": "ddim", "guidance": 1.0},
        "rates": {},
        "notes": ["a note"],
        "diverged": {},
        "measured_by": {"image": "clip (local)"},
        "verdicts": [],
    }
    (folder / "summary.json").write_text(json.dumps(summary | more))
    (folder / "results.jsonl").write_text("".join(json.dumps(line.as_dict()) + "\n" for line in lines))
    return folder


def verdicts(*found: str) -> list[dict[str, Any]]:
    return [
        {"claim": f"claim {place}", "where": "Table 1", "verdict": verdict, "reason": "a | b"}
        for place, verdict in enumerate(found)
    ]


def test_two_seeds_side_by_side(tmp_path: Path) -> None:
    """Where they disagree nothing can be told; how many claims hold stands at the top."""
    lines = [Line("base", "dog: p", run, {"image": value}) for run, value in enumerate((0.25, 0.75))]
    first = results(tmp_path / "a", lines, verdicts=verdicts("holds", "cannot be told", "does not hold"))
    second = results(tmp_path / "b", lines, verdicts=verdicts("holds", "holds", "does not hold"), seed=1)
    page = results_page([second, first], tmp_path / "results.md")
    assert "| table1, model, data, budget smoke | Table 1 | 0, 1 | 3 | 1 | 1 | 0 | 1 |" in page
    assert "| claim 1 | Table 1 | cannot be told | holds | **cannot be told: the runs disagree** |" in page
    assert "| claim 0 | Table 1 | holds | holds | **holds** |" in page
    assert "2 runs with other seeds agree on 2 of 3 verdicts" in page
    assert "--budget smoke --seed 1" in page
    assert "(b/figure.png)" in page
    assert "| base | 0.5000 ± 0.3536 |" in page
    assert "| claim 2 | **does not hold** |  |  | a \\| b |" in page
    assert "## Learning rates" not in page


def test_runs_on_other_pictures_are_no_other_seeds(tmp_path: Path) -> None:
    """Each stands by itself, however many claims they share."""
    first = results(tmp_path / "a", [], verdicts=verdicts("holds"))
    second = results(tmp_path / "b", [], verdicts=verdicts("does not hold"), data_sha256="1" * 64)
    page = results_page([first, second], tmp_path / "results.md")
    assert page.count("| table1, model, data, budget smoke | Table 1 | 0 | 1 |") == 2
    assert "seeds agree" not in page


def test_many_claims_at_once(tmp_path: Path) -> None:
    """p is adjusted for all claims of a seed, those with the very same numbers once; so are the counts."""
    told = verdicts("holds", "holds", "does not hold", "holds")
    for verdict, p, same in zip(told, (0.004, 0.03, None, 0.004), ("", "", "", "claim 0"), strict=True):
        verdict.update({"p": p, "same_as": same})
    other = verdicts("cannot be told") + verdicts("holds")
    for verdict, p in zip(other, (0.2, 0.04), strict=True):
        verdict["p"] = p
    first = results(tmp_path / "a", [], verdicts=told)
    second = results(tmp_path / "b", [], verdicts=other, experiment="gamma")
    page = results_page([first, second], tmp_path / "results.md")
    assert "| claim 0 | **holds** | 0.004 | 0.016 |" in page
    assert "| claim 1 | **holds** | 0.03 | 0.09 |" in page
    assert "(the very numbers of: claim 0)" in page
    assert "| 0 | 4 | 3 | 1 |" in page
    assert "| Table 1 | 0 | 3 | 2 | 1 | 0 | 0 |" in page


def test_one_run_alone(tmp_path: Path) -> None:
    page = results_page([results(tmp_path / "a", [], verdicts=verdicts("holds"))], tmp_path / "results.md")
    assert "| table1, model, data, budget smoke | Table 1 | 0 | 1 | 1 | 0 | 0 | 0 |" in page
    assert "| together |" not in page
    assert "seeds agree" not in page


def test_a_side_only_where_all_runs_are_on_it() -> None:
    assert together_of(["holds", "holds"]) == "holds"
    assert together_of(["does not hold", "holds"]) == "cannot be told: the runs disagree"


@pytest.mark.parametrize("damage", ["{}", "{", '{"verdicts": [{}]}'])
def test_damaged_results(damage: str, tmp_path: Path) -> None:
    folder = results(tmp_path / "a", [])
    (folder / "summary.json").write_text(damage)
    with pytest.raises(FileFormatError, match="no results"):
        results_page([folder], tmp_path / "results.md")


def rates(folder: Path, seed: int, scores: Mapping[str, tuple[float | None, ...]]) -> Path:
    lines = [
        Line(row, "dog: p", 0, {"both": score})
        for row, values in scores.items()
        if (score := values[seed]) is not None
    ]
    used = {"para": 0.02, "lora": 1e-4, "lora, scale 2.2": 1e-4, "oft": 0.5}
    return results(folder, lines, experiment="rates", seed=seed, rates=used)


def test_the_best_rate_of_all_seeds_together(tmp_path: Path) -> None:
    """The budget's or another, and whether it lies at the edge of those tried."""
    scores = {
        "para, 0.01": (0.1, 0.3),
        "para, 0.02": (0.5, 0.3),
        "para, 0.04": (0.2, 0.4),  # the best of the second seed alone
        "lora, 0.0001": (0.1, 0.2),
        "lora, 0.0002": (0.2, 0.2),
        "lora, 0.0004": (0.9, None),  # it diverged with the other seed
        "oft, 0.5": (0.5, None),
        "lora, scale 2.2, 0.0001": (0.25, 0.25),
    }
    folders = [rates(tmp_path / f"seed-{seed}", seed, scores) for seed in range(2)]
    page = results_page(folders, tmp_path / "results.md")
    assert "(0, 1)" in page
    assert (
        "| para | 0.02: 0.4000 ± 0.1414 | 0.01: 0.2000 ± 0.1414; 0.04: 0.3000 ± 0.1414 | **the budget's** |"
    ) in page
    assert (
        "| lora | 0.0001: 0.1500 ± 0.0707 | 0.0002: 0.2000 ± 0.0000; 0.0004: diverged "
        "| **0.0002, not the budget's, by 0.0500** |"
    ) in page
    assert "| oft | 0.5: diverged |  |  |" in page
    assert "| lora, scale 2.2 | 0.0001: 0.2500 ± 0.0000 |  | **the budget's**" in page
    assert "## Verdicts" not in page
    alone = results_page(folders[:1], tmp_path / "results.md")
    assert (
        "| lora | 0.0001: 0.1000 | 0.0002: 0.2000; 0.0004: 0.9000 | **0.0004, not the budget's, by 0.8000**"
        in alone
    )
