"""Plans before anything is done, the data they are made from, and the paper's protocol in numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import REPOSITORY
from experiment_data import TOML, experiment_data

from paramerge.cli.experiment import _BUDGETS, _DISTANCES, NAMES
from paramerge.errors import FileFormatError, UsageError
from paramerge.training.evaluation.lpips import DISTANCES
from paramerge.training.experiments.budgets import BUDGETS
from paramerge.training.experiments.dataset import PAPER_SUBJECTS, open_dataset
from paramerge.training.experiments.described import plan_as_dict
from paramerge.training.experiments.plan import Plan, Training, make_plan
from paramerge.training.experiments.registry import EXPERIMENTS


@pytest.fixture
def dreambooth(tmp_path: Path) -> Path:
    """The DreamBooth dataset's layout with the paper's subjects, a picture each (empty files)."""
    for name in (*PAPER_SUBJECTS, "can"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00.jpg").touch()
    (tmp_path / "prompts_and_classes.txt").write_text(
        "Classes\n\nsubject_name,class\nbear_plushie,stuffed animal\ncat,cat\n\nPrompts\n\n"
        "'a {0} {1} in the jungle'.format(unique_token, class_token),\n"
    )
    return tmp_path


def plan_of(name: str, budget: str, data: Path, seed: int = 0) -> Plan:
    return make_plan(EXPERIMENTS[name], BUDGETS[budget], Path("sdxl.safetensors"), open_dataset(data), seed)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_plan_is_whole(name: str, budget: str, dreambooth: Path) -> None:
    """Plain data; all rows of a claim are drawn or derived; every adapter that is used is trained so far."""
    plan = plan_of(name, budget, dreambooth)
    assert json.loads(json.dumps(plan_as_dict(plan), default=str))["cells"]
    stops = {training.name: training.stops for training in plan.trainings}
    for cell in plan.cells:
        for use in cell.variant.uses:
            assert use.steps in stops[use.training.name]
        assert "{" not in cell.prompt + cell.text
        assert cell.text.find("sks") == -1
    assert len({(cell.row, cell.column) for cell in plan.cells}) == len(plan.cells)
    cost = plan.cost()
    assert cost.pictures == plan.budget.runs * sum(cells[0].count for cells in plan.drawn().values())
    assert cost.training_steps == sum(training.stops[-1] for training in plan.trainings)
    for training in plan.trainings:
        config = training.config(plan.model, plan.data, Path("out"), training.stops[0], 0)
        assert config.method == training.method


def test_the_papers_protocol(dreambooth: Path) -> None:
    """Section 4: 8 subjects, 500 pictures and 5 runs, 200 steps for PaRa, 1000 for others, gamma 1/40."""
    plan = plan_of("table1", "paper", dreambooth)
    assert [subject.name for subject in plan.data.first(8)] == list(PAPER_SUBJECTS)
    cost = plan.cost()
    # vanilla, r = 4 and r = 8; two prompts; eight subjects, of which the first is no evidence
    assert (cost.trainings, cost.training_steps) == (14, 14 * 200)
    assert cost.pictures == 3 * 2 * 7 * 500 * 5
    assert cost.ssim_pairs == 3 * 2 * 7 * 5 * (500 * 499 // 2)
    assert {dict(training.settings)["gamma"] for training in plan.trainings} == {1 / 40}
    other = plan_of("table2", "paper", dreambooth)
    last = {training.method: training.stops[-1] for training in other.trainings}
    assert last.pop("para") == 200
    assert set(last.values()) == {1000}
    assert {(t.method, t.rank) for t in other.trainings} >= {("lora", 4), ("lora", 8), ("lora", 16)}
    assert {use.strength for cell in other.cells for use in cell.variant.uses} == {1.0, 2.2}
    editing = plan_of("editing", "paper", dreambooth)
    assert {cell.count for cell in editing.cells} == {100}
    assert {training.pictures for training in editing.trainings} == {1}


@pytest.mark.parametrize("budget", ["small", "paper"])
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "rates"])
def test_no_subject_for_tuning_is_evidence(dreambooth: Path, name: str, budget: str) -> None:
    """Neither as what is measured nor in an adapter; where it is drawn (Table 2) it is marked."""
    plan = plan_of(name, budget, dreambooth)
    (tuned,) = plan.data.first(BUDGETS[budget].tuning_subjects)
    for cell in plan.cells:
        subjects = {cell.references, *(use.training.subject for use in cell.variant.uses)}
        assert cell.tuning == (tuned in subjects)
    assert any(not cell.tuning for cell in plan.cells)


def test_experiments_share_their_trainings(dreambooth: Path) -> None:
    first, second = (plan_of(name, "small", dreambooth).trainings for name in ("table1", "table2"))
    assert {training.name for training in first} <= {training.name for training in second}


def test_other_seeds_have_other_pictures(dreambooth: Path) -> None:
    seeds = [
        seed
        for number in range(3)
        for run in plan_of("table1", "small", dreambooth, number).seeds(8)
        for seed in run
    ]
    assert len(set(seeds)) == len(seeds)
    plan = plan_of("table1", "small", dreambooth)
    assert all(few == many[:2] for few, many in zip(plan.seeds(2), plan.seeds(8), strict=True))


def test_a_training_is_named_by_all_that_matters(dreambooth: Path) -> None:
    first, second, *_ = open_dataset(dreambooth).subjects
    names = {
        Training("para", 4, first, (1,)).name,
        Training("para", 8, first, (1,)).name,
        Training("para", 4, second, (1,)).name,
        Training("para", 4, first, (1,), (("gamma", 0.1),)).name,
        Training("para", 4, first, (1,), pictures=1).name,
    }
    assert len(names) == 5
    assert Training("para", 4, first, (1, 2)).name == Training("para", 4, first, (3,)).name


def test_a_training_has_the_same_name_however_its_data_are_named(
    dreambooth: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute, relative or moved: what was trained is found. Other folders are other subjects."""
    monkeypatch.chdir(dreambooth.parent)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    moved, other = (shutil.copytree(dreambooth, elsewhere / name) for name in (dreambooth.name, "other"))
    places = [dreambooth, Path(dreambooth.name), moved]
    names = {Training("para", 4, open_dataset(place).subjects[0], (1,)).name for place in places}
    assert len(names) == 1
    assert Training("para", 4, open_dataset(other).subjects[0], (1,)).name not in names


def test_the_dreambooth_layout(dreambooth: Path) -> None:
    data = open_dataset(dreambooth)
    assert [subject.name for subject in data.subjects] == [*PAPER_SUBJECTS, "can"]
    assert (data.subjects[0].kind, data.subjects[1].kind) == ("stuffed animal", "cat")
    assert data.subjects[2].kind == "dog"  # not in the list: from the folder's name
    assert data.subjects[0].word == "sks stuffed animal"


def test_the_real_dreambooth_data(shared_dir: Path) -> None:
    """The paper's subjects first, with the dataset's own classes."""
    folder = shared_dir / "data" / "dreambooth"
    if not folder.is_dir():
        pytest.skip("the DreamBooth data is not beside this checkout")
    data = open_dataset(folder)
    assert [subject.name for subject in data.subjects[:8]] == list(PAPER_SUBJECTS)
    assert {subject.name: subject.kind for subject in data.subjects}["duck_toy"] == "toy"
    assert plan_of("table2", "paper", folder).cost().lpips_pairs > 10**6


def test_a_dataset_of_ones_own(tmp_path: Path) -> None:
    data = open_dataset(experiment_data(tmp_path / "data"))
    assert next((s.name, s.word, s.kind) for s in data.subjects) == ("butterfly", "<v1>", "butterfly")
    assert data.prompts.plain == "a noto {subject}"
    cells = plan_of("composition", "smoke", tmp_path / "data").cells
    assert (cells[0].prompt, cells[0].text) == ("a noto <v1> and a <v2>", "a noto butterfly and a pineapple")
    # textual inversion teaches a word of its own
    prompts = {
        cell.prompt
        for cell in plan_of("table2", "smoke", tmp_path / "data").cells
        if cell.row.startswith("textual")
    }
    assert "a noto <sks>" in prompts


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('plain = "a noto {subject}"', 'plain = "a noto cat"', "no place for its subject"),
        ('plain = "a noto {subject}"', "", "plain"),
        ("[prompts]", "[prompts", "not valid TOML"),
        ('word = "<v1>"', "", "word"),
    ],
)
def test_a_dataset_that_is_wrong_is_said(tmp_path: Path, old: str, new: str, words: str) -> None:
    folder = experiment_data(tmp_path / "data")
    (folder / "dataset.toml").write_text(TOML.replace(old, new, 1))
    with pytest.raises(FileFormatError, match=words):
        open_dataset(folder)


def test_data_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        open_dataset(tmp_path / "missing")
    with pytest.raises(UsageError, match="no subject"):
        open_dataset(tmp_path)
    (tmp_path / "dog").mkdir()
    with pytest.raises(UsageError, match="no picture"):
        open_dataset(tmp_path)
    with pytest.raises(UsageError, match="too few subjects"):
        plan_of("table1", "small", experiment_data(tmp_path / "data"))


def test_the_choices_are_those_of_the_library() -> None:
    """The command names them itself: its help must not import torch."""
    assert set(NAMES) == set(EXPERIMENTS)
    assert set(_BUDGETS) == set(BUDGETS)
    assert {*_DISTANCES} - {"none"} == set(DISTANCES)


def test_the_results_page_is_generated() -> None:
    """Where there are results, the page beside them is what the tool writes of them."""
    page = REPOSITORY / "docs" / "results.md"
    from paramerge.training.experiments.report import result_folders, results_page

    folders = result_folders(REPOSITORY / "docs" / "results")
    if not folders:
        assert not page.exists()
        pytest.skip("no results are committed yet")
    assert page.read_text() == results_page(folders, page)


def test_the_shipped_models_unseen_subjects(tmp_path: Path) -> None:
    """Each with five pictures that differ, a word of its own, and prompts that the model's captions know."""
    from paramerge.training.experiments.emoji import write_subjects
    from paramerge.training.tiny.pictures import drawn_gallery
    from paramerge.training.tiny.split import make_split
    from paramerge.training.tiny.subjects import first_subjects
    from paramerge.training.tiny.tokenizer import PLACEHOLDERS, caption_words

    unseen = make_split(first_subjects(120)).unseen
    write_subjects(tmp_path, unseen, drawn_gallery(unseen))
    data = open_dataset(tmp_path)
    assert [subject.name for subject in data.subjects] == [subject.name for subject in unseen]
    assert len({subject.word for subject in data.subjects} & set(PLACEHOLDERS)) == len(unseen) >= 8
    for subject in data.subjects:
        files = sorted(subject.folder.glob("*.png"))
        assert len(files) == 5
        assert len({file.read_bytes() for file in files}) >= 3
    known = {*caption_words(), *PLACEHOLDERS, "[v]"}
    for cell in plan_of("table2", "small", tmp_path).cells + plan_of("composition", "small", tmp_path).cells:
        assert set(cell.text.split()) <= known
