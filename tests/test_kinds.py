"""The list of any kind of thing: its order, its names, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from toy_packages import Toy

from paramerge.errors import PluginError, UsageError
from paramerge.kinds import Registry, followed


@dataclass(frozen=True)
class Scheme:
    """A way to store numbers."""

    key: str
    bits: int = 8
    aliases: tuple[str, ...] = ()


def check(added: Scheme, where: str, known: Sequence[Scheme]) -> None:
    if added.bits < 1:
        raise PluginError("a scheme has no bits", where=where)


def schemes(*, added_first: bool = False) -> Registry[Scheme]:
    built_in = (Scheme("plain", 16), Scheme("scaled", aliases=("fp8-scaled",)))
    return Registry(
        Scheme, "scheme", "paramerge.schemes", built_in,
        names=lambda scheme: (scheme.key, *scheme.aliases), check=check, added_first=added_first,
    )  # fmt: skip


def keys(registry: Registry[Scheme]) -> list[str]:
    return [scheme.key for scheme in registry.all()]


def test_the_order_and_the_names() -> None:
    registry = schemes()
    registry.register(Scheme("nf4", 4))
    assert keys(registry) == ["plain", "scaled", "nf4"]
    assert registry.named("fp8-scaled") is registry.named("scaled") is registry.get("scaled")
    assert registry.get("nf5") is None
    with pytest.raises(UsageError, match="no such scheme") as caught:
        registry.named("nf5")
    assert "plain, scaled, nf4" in str(caught.value) and "nf5" in str(caught.value)
    registry.unregister("nf4")
    registry.unregister("not there")
    assert keys(registry) == ["plain", "scaled"]
    first = schemes(added_first=True)
    first.register(Scheme("nf4"))
    assert keys(first) == ["nf4", "plain", "scaled"]


def test_added_for_a_while() -> None:
    registry = schemes()
    with registry.added(Scheme("a"), Scheme("b")):
        assert keys(registry) == ["plain", "scaled", "a", "b"]
    assert keys(registry) == ["plain", "scaled"]
    with pytest.raises(PluginError), registry.added(Scheme("a"), Scheme("a")):
        pass
    assert keys(registry) == ["plain", "scaled"], "nothing is left of those before the fault"


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("nf4", "this is no scheme"),
        (Scheme("NF 4"), "the name of a scheme is small letters"),
        (Scheme("plain"), "there is a scheme plain already"),
        (Scheme("fp8-scaled"), "there is a scheme fp8-scaled already"),
        (Scheme("mine", aliases=("scaled",)), "there is a scheme scaled already"),
        (Scheme("none", bits=0), "a scheme has no bits"),
    ],
)
def test_what_cannot_be_added(added: Scheme, said: str) -> None:
    registry = schemes()
    with pytest.raises(PluginError, match=said) as caught:
        registry.register(added)
    assert "register()" in str(caught.value) and keys(registry) == ["plain", "scaled"]


def test_what_is_remembered_is_forgotten_when_a_list_changes() -> None:
    registry = schemes()
    calls = []

    @followed
    @cache
    def widest() -> int:
        calls.append(1)
        return max(scheme.bits for scheme in registry.all())

    assert (widest(), widest(), len(calls)) == (16, 16, 1)
    with registry.added(Scheme("double", 64)):
        assert widest() == 64
    assert widest() == 16


def test_a_package_may_add_several(tmp_path: Path) -> None:
    registry = schemes()
    code = f"from {__name__} import Scheme\nSCHEMES = (Scheme('nf4', 4), Scheme('nf2', 2))\n"
    with Toy("halves", "SCHEMES", registry, "").installed(tmp_path, code):
        assert keys(registry) == ["plain", "scaled", "nf4", "nf2"]
        assert keys(schemes(added_first=True)) == ["nf4", "nf2", "plain", "scaled"]
    assert keys(registry) == ["plain", "scaled"]
