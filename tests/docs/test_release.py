"""The files by which others build, test and publish the project agree with the project itself."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from conftest import REPOSITORY

from paramerge.cli.main import COMMANDS

WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_call_what_is_there(path: object) -> None:
    """Files of the repository that a step names exist, and so do the jobs that others wait for."""
    text = path.read_text()  # type: ignore[attr-defined]
    content = yaml.safe_load(text)
    for job in content["jobs"].values():
        needed = job.get("needs", [])
        assert {needed} if isinstance(needed, str) else set(needed) <= set(content["jobs"])
    for name in re.findall(r"(?:tools|tests|\.ci)/[\w/.]+\w", text):
        assert (REPOSITORY / name).exists(), name


def test_all_pythons_of_the_matrix_are_allowed_and_named() -> None:
    matrix = yaml.safe_load((REPOSITORY / ".github/workflows/tests.yml").read_text())
    pythons = matrix["jobs"]["systems"]["strategy"]["matrix"]["python"]
    assert f">={pythons[0]}" == PROJECT["requires-python"]
    named = [line.rpartition(":: ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    assert named == pythons


def test_the_image_copies_what_the_package_is_built_from() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    copied = {name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]}
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[:1] == "!"}
    assert copied == kept
    assert all((REPOSITORY / name).exists() for name in copied)
    assert {"paramerge", "cli", "training", "pyproject.toml", "README.md", "LICENSE"} <= copied


def test_the_extras_of_the_image_and_the_workflows_exist() -> None:
    files = [REPOSITORY / "Dockerfile", *WORKFLOWS]
    for extras in re.findall(r"\.(?:whl\))?\[([\w,]+)\]", "".join(path.read_text() for path in files)):
        assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), extras


def test_each_verb_says_whether_it_uses_the_network() -> None:
    text = (REPOSITORY / "SECURITY.md").read_text()
    paragraph = text.partition("**No network unless asked.**")[2].partition("\n- ")[0]
    assert {verb for verb in COMMANDS if f"`{verb}`" not in paragraph} == set()
