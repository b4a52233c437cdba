"""The package as a user gets it: the public names, what importing costs, and the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY

import paramerge


def test_every_public_name_is_there() -> None:
    for name in paramerge.__all__:
        assert getattr(paramerge, name) is not None
    assert dir(paramerge) == sorted(paramerge.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        paramerge.nothing_of_the_kind  # noqa: B018


def test_every_public_function_says_what_it_is() -> None:
    for name in paramerge.__all__:
        if name != "__version__":
            assert (getattr(paramerge, name).__doc__ or "").strip(), name


def test_importing_and_planning_need_neither_torch_nor_training() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import paramerge\n"
        "paramerge.plan_bake, paramerge.open_base, paramerge.open_adapter, paramerge.summarise\n"
        "heavy = ('paramerge.training', 'peft', 'diffusers')\n"
        "assert not any(name.startswith(heavy) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel, built from a copy of the checkout."""
    copy, output = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in ("paramerge", "cli", "training"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(output), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    return output


def test_the_wheel_and_the_source_archive_hold_the_package_and_nothing_else(distributions: Path) -> None:
    """``cli/`` and ``training/`` become ``paramerge.cli`` and ``paramerge.training``."""
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"paramerge"}
    sources = {
        f"{package}/{path.name}"
        for package, folder in [("paramerge/cli", "cli"), ("paramerge/training", "training")]
        for path in (REPOSITORY / folder).glob("*.py")
    }
    everything = {
        str(path.relative_to(REPOSITORY))
        for path in (REPOSITORY / "paramerge").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert sources | everything <= set(names)
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        assert any(member.endswith("cli/bake.py") for member in archive.getnames())


def test_the_wheel_works_on_its_own(distributions: Path, tmp_path: Path) -> None:
    """Installed from the wheel, away from the checkout: the command, the module, and a library import."""
    (wheel,) = distributions.glob("*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, capture_output=True, check=True, timeout=120)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        "import paramerge, paramerge.cli.main, paramerge.training\n"
        f"assert paramerge.__file__.startswith({str(site)!r}), paramerge.__file__\n"
        f"assert paramerge.cli.main.__file__.startswith({str(site)!r})\n"
        "paramerge.cli.main.main(['--version'])\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "paramerge" in result.stdout
    assert [path.name for path in (site / "bin").iterdir()] == ["paramerge"]


_OWN_TEXTS = {  # read back what the same function made, or what its own child process printed
    "paramerge/convert/writing.py": 1,
    "paramerge/verify/making.py": 1,
    "training/evaluation/records.py": 1,
    "training/experiments/run.py": 1,
    "training/experiments/trained.py": 1,
}


def test_json_from_outside_is_read_by_the_strict_reader() -> None:
    found = Counter(
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("paramerge", "cli", "training")
        for path in (REPOSITORY / folder).rglob("*.py")
        for _ in re.findall(r"\bjson\.loads?\(", path.read_text())
    )
    assert found == _OWN_TEXTS
