"""Every family keeps the contract."""

from __future__ import annotations

from contracts import AdditiveContract, FamilyContract


class TestLora(AdditiveContract):
    family = "lora"


class TestLoha(AdditiveContract):
    family = "loha"


class TestLokr(AdditiveContract):
    family = "lokr"


class TestFull(AdditiveContract):
    family = "full"


class TestDora(FamilyContract):
    family = "dora"


class TestIa3(FamilyContract):
    family = "ia3"


class TestOft(FamilyContract):
    family = "oft"


class TestBoft(FamilyContract):
    family = "boft"


class TestGlora(FamilyContract):
    family = "glora"


class TestSvdiff(FamilyContract):
    family = "svdiff"
