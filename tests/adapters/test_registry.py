"""Nothing that belongs to a family can be forgotten: the list against files, cases, documents and verbs."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from family_cases import CASES, KRONA_CASES

from paramerge import adapters
from paramerge.adapters import registry
from paramerge.adapters.endings import without_name
from paramerge.adapters.family import COMMON, Family
from paramerge.adapters.foreign import FOREIGN
from paramerge.formats.registry import writable
from paramerge.formats.roles import read_role

FAMILIES = registry.BUILT_IN
ELSEWHERE = {"para": "tests/adapters/test_para_basis.py", "norm": "tests/formats/test_lycoris.py"}
"""Families whose cases are not in ``family_cases``, and where they are."""
STEM = "lora_unet_mid_block_attentions_0_proj_in"

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)


def test_every_file_of_a_family_is_in_the_list() -> None:
    modules = (
        importlib.import_module(f"{adapters.__name__}.{m.name}")
        for m in pkgutil.iter_modules(adapters.__path__)
    )
    found = {module.FAMILY for module in modules if hasattr(module, "FAMILY")}
    assert found == set(FAMILIES) and len(FAMILIES) == len(found)


@each_family
def test_every_family_has_cases(family: Family) -> None:
    assert family.key in ELSEWHERE or any(case.family == family.key for case in (*CASES, *KRONA_CASES))


@each_family
def test_every_family_has_a_size_but_norms(family: Family) -> None:
    """LyCORIS trains norms beside another family's layers, never alone."""
    assert (family.stored is None) == (family.key == "norm")


@each_family
def test_formats_that_hold_it_are_formats(family: Family) -> None:
    assert set(family.parts) <= {dialect.parts for dialect in writable().values()}
    folder = family.tuner is not None and family.tuner.options is not None
    assert ("peft" in family.parts) == folder


@each_family
def test_every_ending_is_read_as_its_role(family: Family) -> None:
    for form in family.forms:
        for ending, role in form.roles.items():
            found = read_role(f"{STEM}.{without_name(ending)}")
            assert (found is None) if form.build is None else (found is not None and found.role == role)
        assert set(form.axes) <= form.own
        assert form.beside <= form.own and form.vague <= form.own
        assert not form.own & set(COMMON.values())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_no_family_can_be_told_twice(family: Family) -> None:
    others = [other for other in FAMILIES if other is not family]
    registry.FAMILIES.check(family, "here", others)  # raises where a key, a label or an ending is another's


def test_foreign_families_are_variants_of_known_ones_and_have_other_names() -> None:
    keys, labels = {family.key for family in FAMILIES}, {family.label for family in FAMILIES}
    assert {foreign.of for foreign in FOREIGN} <= keys | {""}
    assert not labels & {foreign.label for foreign in FOREIGN}
