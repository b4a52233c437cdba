"""The public names: one stub, each name once; verbs are functions whatever is imported first."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

import paramerge
from paramerge import algebra
from paramerge.old_names import _PLACES

STUB = Path(paramerge.__file__).with_suffix(".pyi")
VERBS = (
    *("bake", "merge", "convert", "explain", "extract", "compare", "resize", "inspect", "sizes", "replay"),
    "verify",
)


def stub_names() -> list[tuple[str, str]]:
    """Each name of the stub with its module."""
    imports = [node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)]
    return [(node.module or "", alias.asname or "") for node in imports for alias in node.names]


def test_every_name_of_the_stub_is_public_once_and_is_re_exported() -> None:
    names = [name for _, name in stub_names()]
    assert all(names), "type checkers take `import X as X` alone for a re-export"
    assert sorted(names) == sorted(set(names)) == sorted(paramerge.__all__) == dir(paramerge)
    for name in names:
        assert getattr(paramerge, name) is not None


def test_a_room_is_no_name_and_a_verb_is() -> None:
    rooms = {path.name for path in STUB.parent.iterdir() if path.is_dir()}
    shared = rooms & set(paramerge.__all__) - {"algebra", "peft"}
    assert shared == set(VERBS)
    for verb in VERBS:
        assert callable(getattr(paramerge, verb))
        assert not isinstance(getattr(paramerge, verb), ModuleType)


_FIRST = [
    *(f"import paramerge.{verb}" for verb in VERBS),
    "import paramerge.bake.plan",
    "from paramerge.bake.plan import make_plan",
    "from paramerge.merge.request import Input",
    "from paramerge.compare import report",
    "from paramerge.inspect.inspection import inspect_path; from paramerge.sizes.sizes import Size",
    "import paramerge.cli.bake, paramerge.cli.merge, paramerge.cli.compare, paramerge.cli.extract",
]


def test_a_verb_is_the_function_whatever_is_imported_first() -> None:
    """Each import in a fresh set of modules (one interpreter: starting one takes longer than all of them)."""
    code = (
        "import sys\n"
        f"for first in {_FIRST!r}:\n"
        "    for name in [n for n in sys.modules if n.split('.')[0] == 'paramerge']: del sys.modules[name]\n"
        "    for read_first in (True, False):\n"
        "        import paramerge as pm\n"
        f"        before = [getattr(pm, verb) for verb in {VERBS!r}] if read_first else []\n"
        "        exec(first)\n"
        f"        for verb in {VERBS!r}:\n"
        "            assert type(getattr(pm, verb)).__name__ == 'function', (first, verb)\n"
        "            exec(f'from paramerge import {verb} as taken')\n"
        "            assert type(taken).__name__ == 'function', (first, verb)\n"
        f"        assert not before or before == [getattr(pm, verb) for verb in {VERBS!r}]\n"
        "        from paramerge.bake.plan import Plan\n"
        "        from paramerge.bake import recipe\n"
        "        assert Plan is pm.Plan and recipe.build_recipe\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    "first", ["import paramerge.bake.plan", "from paramerge.merge.combine import combine"]
)
def test_in_a_fresh_interpreter(first: str) -> None:
    code = f"{first}\nimport paramerge as pm\nassert all(callable(v) for v in (pm.bake, pm.merge, pm.sizes))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_old_names_work_and_warn() -> None:
    for name in itertools.chain(algebra.__all__, _PLACES):
        assert name not in paramerge.__all__
        with pytest.warns(DeprecationWarning, match=f"paramerge.{name} goes with the next version") as caught:
            found = getattr(paramerge, name)
        assert caught[0].filename == __file__, "the warning is about the caller's line"
        assert getattr(algebra, name, found) is found


def test_public_names_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        for name in paramerge.__all__:
            getattr(paramerge, name)


def test_what_is_no_name_is_an_attribute_error() -> None:
    for name in ("nothing_of_the_kind", "_private", "__wrapped__"):
        assert not hasattr(paramerge, name)


def test_importing_the_package_imports_nothing_that_computes() -> None:
    code = "import sys, paramerge; assert not {'numpy', 'torch', 'click'} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
