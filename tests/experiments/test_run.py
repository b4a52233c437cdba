"""Experiments with the smoke budget, from training to the page of results."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from baking import shapes_of
from contrastive_model import contrastive_model
from experiment_data import experiment_data
from PIL import Image
from rounding import U32
from tiny_pipelines import sd_pipeline

from paramerge.cli.main import main
from paramerge.errors import FileFormatError, NonFiniteError, UsageError
from paramerge.training.config import METHODS, TrainConfig
from paramerge.training.evaluation.clip import load_clip
from paramerge.training.evaluation.measuring import Measures
from paramerge.training.evaluation.processes import Processes
from paramerge.training.evaluation.sets import read_pictures
from paramerge.training.experiments import trained as trained_module
from paramerge.training.experiments.budgets import BUDGETS
from paramerge.training.experiments.composition import COMPOSITION
from paramerge.training.experiments.dataset import open_dataset
from paramerge.training.experiments.line import Line
from paramerge.training.experiments.order import _NOTHING, _ORDERS, _difference, predicted_loss
from paramerge.training.experiments.parts import rate_of
from paramerge.training.experiments.places import picture_job
from paramerge.training.experiments.plan import Budget, Plan, make_plan
from paramerge.training.experiments.rates import RATES, rates_of
from paramerge.training.experiments.registry import EXPERIMENTS
from paramerge.training.experiments.report import results_page
from paramerge.training.experiments.run import Outcome, _sets, run_experiment
from paramerge.training.experiments.table2 import METHODS_COMPARED, TABLE2
from paramerge.training.experiments.trained import kept, train_missing


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    sd_pipeline(folder)
    contrastive_model(folder / "clip")
    experiment_data(folder / "data")
    return folder


@pytest.fixture(scope="module")
def measures(files: Path) -> Measures:
    return Measures(load_clip(str(files / "clip")))


def plan_of(name: str, files: Path, seed: int = 0) -> Plan:
    return make_plan(EXPERIMENTS[name], BUDGETS["smoke"], files / "model", open_dataset(files / "data"), seed)


def command(files: Path) -> list[str]:
    """What a user types."""
    arguments = ["experiment", "table1", "--model", files / "model", "--data", files / "data"]
    arguments += ["--budget", "smoke", "--clip", files / "clip", "--lpips", "none", "--device", "cpu"]
    return [*map(str, arguments), "-o", str(files / "out")]


@pytest.fixture(scope="module")
def table1(files: Path, measures: Measures) -> Outcome:
    """Carried out by the command, and read again by a call that finds all done."""
    with pytest.raises(SystemExit) as caught:
        main(command(files))
    assert caught.value.code == 0
    plan = plan_of("table1", files)
    return run_experiment(plan, replace(measures, batch=plan.budget.sampling.batch), files / "out")


def check(outcome: Outcome) -> None:
    """Nothing diverged; every claim has a verdict with numbers; the folder has all files."""
    plan, folder = outcome.plan, outcome.folder
    assert not outcome.diverged
    claims = plan.experiment.claims(plan.budget)
    assert [verdict.claim for verdict in outcome.verdicts] == claims
    reasons = [v.reason for v in outcome.verdicts if not v.reason.startswith("perceptual")]  # not loaded here
    assert not [reason for reason in reasons if "not measured" in reason or "not known" in reason]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["measured_by"] == dict(outcome.models)
    assert all("(local" in name for metric, name in outcome.models.items() if metric in ("text", "image"))
    records = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [Line(**record) for record in records] == list(outcome.lines)
    for name in ("figure.png", "examples.png"):
        with Image.open(folder / name) as image:
            assert image.width > 200


def test_table_1_from_the_training_to_the_verdicts(
    table1: Outcome, files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check(table1)
    assert {line.row for line in table1.lines} == {"base", "PaRa r=4", "PaRa r=8"}
    for line in table1.lines:
        if line.row == "base":
            assert "parameters" not in line.metrics
        else:
            assert line.metrics["seconds"] > 0
    sizes = {line.row: line.metrics.get("parameters") for line in table1.lines}
    assert sizes["PaRa r=8"] == 2 * (sizes["PaRa r=4"] or 0) > 0

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(trained_module, "train", fail)
    monkeypatch.setattr("paramerge.training.experiments.run.load_variant", fail)
    before = (table1.folder / "results.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        main(command(files))
    shown = capfd.readouterr().out
    for words in ("PaRa r=8", "clip (local, sha256 ", "Table 1", "results.jsonl"):
        assert words in shown
    with pytest.raises(SystemExit):
        main([*command(files), "--json"])
    assert json.loads(capfd.readouterr().out)["verdicts"] == [v.as_dict() for v in table1.verdicts]
    assert (table1.folder / "results.jsonl").read_bytes() == before
    with pytest.raises(SystemExit) as caught:
        main([*command(files), "--seed", "1"])
    assert caught.value.code == UsageError.exit_code
    assert "other settings" in capfd.readouterr().err


def test_the_order_of_para_and_lora(files: Path, measures: Measures) -> None:
    """A PaRa of all of the LoRA's directions leaves nothing of it, in the algebra and in the pictures."""
    outcome = run_experiment(plan_of("order", files), measures, files / "out")
    check(outcome)
    name = "PaRa extracted from the LoRA, r=8"
    whole = [line for line in outcome.lines if line.row == name]
    assert whole
    plan = plan_of("order", files)
    cells = {(cell.row, cell.column): cell for cell in plan.cells}
    # pictures have 8 bits: a pixel that float32 moves over a boundary of rounding is one grey level off
    moved = U32 * math.sqrt(sum(math.prod(shape[1:]) for shape in shapes_of(files / "model").values()))
    grey_levels = math.sqrt(2 * 255 * moved)  # root mean square over all pixels
    for line in whole:
        # a cosine: each of 8 directions is stored in half precision, and turned by that
        assert line.metrics["predicted loss"] == pytest.approx(1, abs=8 * 2.0**-22)
        alone, right, wrong = (
            read_pictures(picture_job(plan, cells[f"{name} | {order}", line.column], outcome.folder).files)
            for order in _ORDERS
        )
        assert np.abs(wrong.astype(int) - alone).max() <= 1  # grey levels
        near = grey_levels / 255 / _difference(right, alone)
        assert near < 0.5
        assert line.metrics["measured loss"] == pytest.approx(1, abs=near)
    part = [line.metrics for line in outcome.lines if line.row == "PaRa extracted from the LoRA, r=1"]
    assert 0 < part[0]["predicted loss"] < 1
    assert {line.metrics["measured loss"] for line in outcome.lines if line.row == _NOTHING} == {0.0}


def test_a_stopped_training_goes_on(files: Path, tmp_path: Path, table1: Outcome) -> None:
    """What is kept is found; what is missing is trained, to the same bytes."""
    plan = table1.plan
    source = files / "out" / "trained" / "model"
    shutil.copytree(source, tmp_path / "trained")
    training = plan.trainings[0]
    lost = kept(plan, training, tmp_path / "trained", 1).paths[0]
    content = lost.read_bytes()
    shutil.rmtree(lost.parent)
    with pytest.raises(FileFormatError, match="not there"):
        kept(plan, training, tmp_path / "trained", 1)
    steps: list[tuple[int, int]] = []
    train_missing(plan, tmp_path / "trained", "cpu", report=lambda *progress: steps.append(progress))
    assert lost.read_bytes() == content
    assert steps[-1] == (1, 1)


def test_the_page_of_results(table1: Outcome, tmp_path: Path) -> None:
    """Every claim, verdict and reason, and how the run is carried out again."""
    page = results_page([table1.folder], tmp_path / "results.md")
    for verdict in table1.verdicts:
        assert verdict.claim.text in page
        assert verdict.reason.replace("|", "\\|") in page
    assert "clip (local, sha256 " in page
    assert "paramerge experiment table1 --model model --data data --budget smoke --seed 0" in page


def test_the_best_steps_are_chosen_on_other_subjects(files: Path) -> None:
    """Of two stops the one that is better on the subject for tuning is reported of the one held out."""
    plan = plan_of("table2", files)
    budget = replace(BUDGETS["small"], other_stops=(50, 100, 200))
    plan = Plan(plan.experiment, budget, plan.model, plan.data, 0, plan.cells, plan.trainings)
    scores = {50: (0.5, 0.6), 100: (0.9, 0.1), 200: (0.7, 0.8)}
    lines = [
        Line(f"LoRA r=8, {steps} steps", f"{subject}: p", 0, {"image": value}, subject == "a")
        for steps, values in scores.items()
        for subject, value in zip("ab", values, strict=True)
    ]
    assert TABLE2.derive is not None
    derived = TABLE2.derive(lines, plan, files)
    assert derived == [Line("LoRA r=8, best steps", "b: p", 0, {"image": 0.1, "steps": 100})]


def test_adapters_of_other_pictures_are_refused(
    files: Path, tmp_path: Path, table1: Outcome, measures: Measures
) -> None:
    """Subjects of the same names with other pictures: nothing of theirs is taken for these."""
    data = shutil.copytree(files / "data", tmp_path / "data")
    picture = next(data.rglob("*.png"))
    Image.new("RGB", (64, 64), "red").save(picture)
    plan = make_plan(EXPERIMENTS["gamma"], BUDGETS["smoke"], files / "model", open_dataset(data))
    with pytest.raises(UsageError, match="other settings") as caught:
        run_experiment(plan, measures, table1.folder.parent)
    assert "data_sha256" in str(caught.value)


def test_other_words_are_no_other_settings(files: Path, tmp_path: Path, measures: Measures) -> None:
    """Notes and estimates may change between two calls; a learning rate that counts may not."""

    def again(budget: Budget) -> Outcome:
        data = open_dataset(files / "data")
        return run_experiment(
            make_plan(EXPERIMENTS["table1"], budget, files / "model", data), measures, tmp_path
        )

    smoke = BUDGETS["smoke"]
    first = again(smoke)
    others = (("lora", 0.5),)
    assert again(replace(smoke, notes=("new",), seconds=(1, 1, ""), rates=others)).lines == first.lines
    assert json.loads((first.folder / "summary.json").read_text())["notes"] == ["new"]
    with pytest.raises(UsageError, match="other settings"):
        again(replace(smoke, rates=(("para", 0.5),)))


def test_of_two_subjects_the_worse_counts(files: Path) -> None:
    lines = [
        Line("PaRa joint | first", "a and b: p", 0, {"image": 0.7, "text": 0.3}),
        Line("PaRa joint | second", "a and b: p", 0, {"image": 0.4, "text": 0.3}),
    ]
    assert COMPOSITION.derive is not None
    (found,) = COMPOSITION.derive(lines, plan_of("composition", files), files)
    assert found.row == "PaRa joint"
    assert found.metrics == {
        "text": 0.3,
        "worse": 0.4,
        "image of the first": 0.7,
        "image of the second": 0.4,
    }


def test_every_picture_of_a_cell_is_measured_once(files: Path) -> None:
    """Runs share no picture, and a cell with fewer pictures than the tables' has all of its own."""
    plan = plan_of("table2", files)
    sets = _sets(plan, files)
    counts = [cell.count for cell in plan.cells for _ in range(plan.budget.runs)]
    assert [len(each.pictures) for each in sets] == counts
    assert len(set(counts)) > 1
    assert plan.cost().pictures == plan.budget.runs * sum(
        max(cell.count for cell in cells) for cells in plan.drawn().values()
    )
    for place in range(0, len(sets), plan.budget.runs):
        pictures = [path for each in sets[place : place + plan.budget.runs] for path in each.pictures]
        assert len(set(pictures)) == len(pictures)


def test_a_training_that_diverges_is_an_outcome(
    files: Path, tmp_path: Path, measures: Measures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is left out and named, also when the run is resumed; the other subject is reported."""
    budget = replace(BUDGETS["smoke"], para_stops=(1, 2))
    plan = make_plan(EXPERIMENTS["table1"], budget, files / "model", open_dataset(files / "data"))
    train = trained_module.train
    lost = next(t for t in plan.trainings if t.rank == 8)
    tries: list[str] = []

    def diverging(config: TrainConfig, **options: Any) -> Any:
        tries.append(config.output.name)
        if config.output.name.startswith(lost.name):
            raise NonFiniteError("the training diverged: the loss is not finite", where="step 1")
        return train(config, **options)

    monkeypatch.setattr(trained_module, "train", diverging)
    first = run_experiment(plan, measures, tmp_path)
    count = len(tries)
    assert run_experiment(plan, measures, tmp_path) == first
    assert len(tries) == count == 2 * len(plan.trainings) - 1  # no second stop after what ended at the first
    words = "the training diverged: the loss is not finite (step 1)"
    assert dict(first.diverged) == {lost.name: words}
    found = {(line.row, line.column.partition(": ")[0]) for line in first.lines}
    both = {subject.name for subject in plan.data.subjects[:2]}
    assert {subject for row, subject in found if row == "PaRa r=8"} == both - {lost.subject.name}
    assert {subject for row, subject in found if row == "PaRa r=4"} == both
    page = results_page([first.folder], tmp_path / "results.md")
    assert f"{lost.name}: {words}; left out" in page


def test_rates_are_compared_on_the_subjects_for_tuning(files: Path) -> None:
    """Every method once at each rate, on what no verdict uses, with the scores' mean."""
    data = open_dataset(files / "data")
    budget = replace(BUDGETS["smoke"], rates=(("para", 0.02),), rate_factors=(0.5, 1.0))
    plan = make_plan(RATES, budget, files / "model", data)
    assert {cell.references for cell in plan.cells} == set(data.first(1))
    rates = {dict(t.settings)["learning_rate"] for t in plan.trainings if t.method == "para"}
    assert rates == {0.01, 0.02}
    kinds = {(method, strength) for method, _, strength in METHODS_COMPARED.values()}
    assert {
        (cell.variant.uses[0].training.method, cell.variant.uses[0].strength) for cell in plan.cells
    } == kinds
    assert len(plan.trainings) == 2 * len(kinds)
    lines = [
        Line("para, 0.01", "a: p", 0, {"image": 0.5, "text": 0.25}),
        Line("para, 0.02", "a: p", 0, {"image": 0.5}),
    ]
    assert RATES.derive is not None
    assert RATES.derive(lines, plan, files) == [Line("para, 0.01", "a: p", 0, {"both": 0.375})]


def test_what_is_overdriven_has_a_rate_of_its_own(files: Path) -> None:
    """A LoRA that is applied with 2.2 is trained at the budget's rate for that, by its rows alone."""
    data = open_dataset(files / "data")
    budget = replace(BUDGETS["smoke"], rates=(("lora", 0.02), ("lora, scale 2.2", 0.005)))
    assert (rate_of("lora", budget, 2.2), rate_of("lora", budget)) == (0.005, 0.02)
    assert rate_of("lora", replace(budget, rates=budget.rates[:1]), 2.2) == 0.02
    assert rate_of("para", budget) is None
    assert rates_of(budget)["lora, scale 2.2"] == 0.005
    assert rates_of(BUDGETS["smoke"]) == METHODS | {"lora, scale 2.2": METHODS["lora"]}
    for experiment in (TABLE2, RATES):
        plan = make_plan(experiment, budget, files / "model", data)
        found = {
            (use.strength, dict(use.training.settings)["learning_rate"])
            for cell in plan.cells
            for use in cell.variant.uses
            if use.training.method == "lora"
        }
        assert found == {(1.0, 0.02), (2.2, 0.005)}
    assert {cell.row for cell in plan.cells} >= {"lora, 0.02", "lora, scale 2.2, 0.005"}


@pytest.mark.slow  # a process of its own that loads torch
def test_processes_share_the_trainings(files: Path, tmp_path: Path, table1: Outcome) -> None:
    """Each trains its own, in a process that knows nothing of the others: the same bytes as alone."""
    plan = table1.plan
    half = [t for t in plan.trainings if t.rank == 4 and t.subject.name == "butterfly"]
    plan = Plan(plan.experiment, plan.budget, plan.model, plan.data, 0, plan.cells, tuple(half))
    train_missing(plan, tmp_path, "cpu", Processes(1, 2))
    assert not list(tmp_path.iterdir())  # the one training is the first process's
    train_missing(plan, tmp_path, "cpu", Processes(0, 2))
    alone, shared = (kept(plan, half[0], f, 1) for f in (files / "out" / "trained" / "model", tmp_path))
    assert shared.paths[0].read_bytes() == alone.paths[0].read_bytes()
    assert (shared.parameters, shared.bytes) == (alone.parameters, alone.bytes)


def test_nothing_is_lost_where_the_para_is_orthogonal(tmp_path: Path) -> None:
    """The predicted loss over layers: all of one layer, nothing of another, none where there is no PaRa."""
    import numpy as np

    from paramerge import LoraFactors, ModuleName, write_lora, write_para

    first, second, third = (
        ModuleName("unet", f"mid_block.resnets.{i}") for i in ("0.conv1", "0.conv2", "1.conv1")
    )
    eye = np.eye(8, dtype=np.float32)
    down = np.ones((1, 4), np.float32)
    factors = {name: LoraFactors(eye[:, :1] * size, down, 1.0) for name, size in
               ((first, 3.0), (second, 4.0), (third, 12.0))}  # fmt: skip
    write_lora(tmp_path / "lora.safetensors", factors, architecture="sd15")
    write_para(tmp_path / "para.safetensors", {first: eye[:, :2], second: eye[:, 1:3]}, architecture="sd15")
    found = predicted_loss(tmp_path / "para.safetensors", tmp_path / "lora.safetensors")
    assert found == pytest.approx(3 / 13, rel=1e-6)


_LONG = ("subsets", "table2", "rates")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in _LONG else name
        for name in EXPERIMENTS
        if name not in ("table1", "order")
    ],
)
def test_the_other_experiments(name: str, files: Path, measures: Measures) -> None:
    check(run_experiment(plan_of(name, files), measures, files / "out"))
