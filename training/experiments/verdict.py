"""The verdict on a claim: it holds here, does not, or cannot be told at this scale.

Rows are compared on the same subjects, so each subject, over all its prompts and runs, gives one difference:
prompts of one subject are no independent evidence for another. The verdict comes from a confidence interval
of the mean difference by Student's t, Page's test for trends, or an exact rank correlation over rows; what
could as well be noise is called so. Tests are two-sided: of claims without truth one in twenty is told
wrongly, which :func:`holm` makes one in twenty for a whole family of claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paramerge.training.experiments.claims import Claim
from paramerge.training.experiments.evidence import FAILS, HOLDS, OPEN, Evidence, evidence_for
from paramerge.training.experiments.line import Line

__all__ = ["FAILS", "HOLDS", "OPEN", "Verdict", "holm", "judge", "judge_all"]


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict and, in words with the numbers, the reason for it.

    Attributes
    ----------
    p:
        The two-sided p of its test; None for plain counts, and where nothing was measured.
    same_as:
        The text of an earlier claim that has the very same numbers; empty for most.
    """

    claim: Claim
    verdict: str
    reason: str
    p: float | None = None
    same_as: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "claim": self.claim.text,
            "where": self.claim.where,
            "verdict": self.verdict,
            "reason": self.reason,
            "p": self.p,
            "same_as": self.same_as,
        }


def judge(claim: Claim, lines: Sequence[Line]) -> Verdict:
    """Judge ``claim`` by ``lines``; columns for tuning do not count."""
    return _verdict(claim, evidence_for(claim.test, [line for line in lines if not line.tuning]))


def judge_all(claims: Sequence[Claim], lines: Sequence[Line]) -> list[Verdict]:
    """Judge every claim; one whose numbers are those of an earlier claim is marked, to be counted once."""
    held_out = [line for line in lines if not line.tuning]
    seen: dict[tuple[object, ...], str] = {}
    verdicts = []
    for claim in claims:
        evidence = evidence_for(claim.test, held_out)
        verdict = _verdict(claim, evidence)
        if evidence.values:
            key = (type(claim.test).__name__, evidence.metric, evidence.values)
            verdict = replace(verdict, same_as=seen.get(key, ""))
            seen.setdefault(key, claim.text)
        verdicts.append(verdict)
    return verdicts


def _verdict(claim: Claim, evidence: Evidence) -> Verdict:
    return Verdict(claim, evidence.verdict, evidence.reason, evidence.p)


def holm(values: Mapping[Any, float]) -> dict[Any, float]:
    """Adjusted p of each member of a family of tests, by Holm's step-down method.

    To call those below 0.05 findings is wrong for one family in twenty, however the tests depend on each
    other (Holm 1979).
    """
    ordered = sorted(values, key=lambda name: values[name])
    adjusted: dict[Any, float] = {}
    largest = 0.0
    for place, name in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - place) * values[name]))
        adjusted[name] = largest
    return adjusted
