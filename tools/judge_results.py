"""Judge results of ``paramerge experiment`` anew, by today's claims and tests: nothing is trained or drawn.

    python -m paramerge.training.experiments.emoji emoji-subjects
    tools/judge_results.py docs/results --data emoji-subjects
    tools/write_results.py

What a claim needs and the results do not have is called "not measured".
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from paramerge.files.writer import write_bytes
from paramerge.training.evaluation.records import json_lines
from paramerge.training.experiments.budgets import BUDGETS
from paramerge.training.experiments.dataset import Dataset, open_dataset
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.registry import EXPERIMENTS
from paramerge.training.experiments.report import result_folders
from paramerge.training.experiments.verdict import judge_all


def marked(line: Line, data: Dataset, tuned: set[str]) -> Line:
    """The line, marked where a subject for tuning is in it, and where its prompt is the plain one."""
    subjects, _, prompt = line.column.partition(": ")
    plain = prompt == data.prompts.plain.format(subject="[V]")
    return replace(line, tuning=line.tuning or not tuned.isdisjoint(subjects.split(" and ")), plain=plain)


def _lacking(experiment: str, lines: Sequence[Line]) -> list[str]:
    """What results of an earlier version do not have."""
    if experiment != "editing" or any("changed by the text" in line.metrics for line in lines):
        return []
    return [
        "drawn by an earlier version: image scores compare with all pictures of the subject, not with the "
        "one that was learnt alone, and how far the text changes pictures of one seed was not measured"
    ]


def judge_folder(folder: Path, data: Dataset) -> int:
    """Write the verdicts of one experiment's folder anew; returns how many differ."""
    summary = json.loads((folder / "summary.json").read_text())
    experiment, budget = EXPERIMENTS[summary["experiment"]], BUDGETS[summary["budget"]]
    tuning = budget.tuning_subjects if experiment.held_out else 0
    tuned = {subject.name for subject in data.subjects[:tuning]}
    records = (folder / "results.jsonl").read_text().splitlines()
    lines = [marked(Line(**json.loads(record)), data, tuned) for record in records]
    before = {verdict["claim"]: verdict["verdict"] for verdict in summary["verdicts"]}
    verdicts = judge_all(experiment.claims(budget), lines)
    summary["notes"] = [*budget.notes, *_lacking(experiment.name, lines)]
    summary["verdicts"] = [verdict.as_dict() for verdict in verdicts]
    write_bytes(folder / "results.jsonl", json_lines(line.as_dict() for line in lines), overwrite=True)
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    write_bytes(folder / "summary.json", text.encode(), overwrite=True)
    return sum(before.get(verdict.claim.text) != verdict.verdict for verdict in verdicts)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
def main(folder: Path, data: Path) -> None:
    """Judge all experiments in FOLDER anew."""
    dataset = open_dataset(data)
    for found in result_folders(folder):
        click.echo(f"{found}: {judge_folder(found, dataset)} verdicts are others")


if __name__ == "__main__":
    main()
