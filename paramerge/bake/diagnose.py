"""The cost of the order and of the way of merging, computed from the adapters before anything is baked."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch

from paramerge import algebra
from paramerge.apply.chain import (
    DeltaLink,
    LoraLink,
    ParaLink,
    joint_cut,
    load_bases,
    load_delta,
    load_lora,
    load_para,
)
from paramerge.apply.operations import Edit, FamilyOp, LoraOp, ParaOp
from paramerge.bake.plan import Plan


@dataclass(frozen=True)
class OrderLoss:
    """The loss of the LoRA of step ``lora`` to PaRas that come after it: ``||Q^T B A|| / ||B A||`` (T6).

    The same for another additive family; for one that depends on the weight there is none without it.

    ``layers`` holds the share of each layer, 0 to 1; ``overall`` that of all layers together, weighted as
    Frobenius norms add up. With a rank boundary it is the most that can be lost.
    """

    lora: int
    overall: float
    layers: dict[str, float] = field(repr=False)


@dataclass(frozen=True)
class SequenceDistance:
    """The distance of a sequential merge from the joint one: ``||(I-Pn)...(I-P1) - (I-Pm)||_2`` (T3e).

    With strengths other than 1, the distance of the two merges at these strengths.

    A number from 0 (the projectors commute: both merges are the same) to 1, for each layer that two or
    more PaRas share; ``largest`` and ``mean`` over these layers. ``sequential_rank`` and ``joint_rank`` are
    the directions that each way removes from all of them (theorem T3r), no more than a rank boundary leaves;
    which these are depends on the weights, so the distances are those of the whole spans.
    """

    largest: float
    mean: float
    sequential_rank: int
    joint_rank: int
    layers: dict[str, float] = field(repr=False)


@dataclass(frozen=True)
class Diagnosis:
    """The findings; empty and None where the plan has no such steps."""

    order: tuple[OrderLoss, ...] = ()
    sequence: SequenceDistance | None = None

    def as_dict(self) -> dict[str, object]:
        """JSON-ready data."""
        return asdict(self)


def needs_diagnosis(plan: Plan) -> bool:
    """Whether the plan bakes another family before a PaRa, or PaRas one after the other."""
    kinds = [step.step.kind for step in plan.steps]
    others = [place for place, kind in enumerate(kinds) if kind != "para"]
    reversed_order = bool(others) and "para" in kinds[others[0] :]
    return reversed_order or (plan.options.merge == "sequential" and kinds.count("para") > 1)


def diagnose(plan: Plan, progress: Callable[[int, int], None] | None = None) -> Diagnosis:
    """Read the adapters that the findings concern, and work these out. No weight of the base is read."""
    if not needs_diagnosis(plan):
        return Diagnosis()
    losses: dict[int, dict[str, tuple[float, float]]] = {}
    distances: dict[str, float] = {}
    ranks = [0, 0]
    edits = plan.edits
    for done, edit in enumerate(edits):
        for step, lost, total in _order_losses(edit):
            losses.setdefault(step, {})[str(edit.target.module)] = (lost, total)
        paras = [op for op in edit.ops if isinstance(op, ParaOp)]
        if plan.options.merge == "sequential" and len(paras) > 1:
            bases = [basis for op in paras for basis in load_bases(op)]
            parts = [part for op in paras for part in op.parts]
            strengths, cut = [part.strength for part in parts], joint_cut(parts)
            distances[str(edit.target.module)] = algebra.sequential_error(bases, strengths, rtol=cut)
            # only strength 1 takes rank (T2s)
            whole = [basis for basis, strength in zip(bases, strengths, strict=True) if strength == 1]
            limit = sys.maxsize if paras[0].limit is None else paras[0].limit
            ranks[0] += min(limit, algebra.removed_rank_sequential(whole, rtol=cut) if whole else 0)
            ranks[1] += min(limit, algebra.removed_rank_joint(whole, rtol=cut) if whole else 0)
        if progress is not None:
            progress(done + 1, len(edits))
    order = tuple(_summed(step, shares) for step, shares in sorted(losses.items()))
    sequence = None
    if distances:
        values = list(distances.values())
        sequence = SequenceDistance(
            max(values), math.fsum(values) / len(values), ranks[0], ranks[1], distances
        )
    return Diagnosis(order, sequence)


def _order_losses(edit: Edit) -> list[tuple[int, float, float]]:
    """For each LoRA with a PaRa after it: its step, the norm it loses on this layer, and its norm."""
    found = []
    for index, op in enumerate(edit.ops):
        later = [other for other in edit.ops[index + 1 :] if isinstance(other, ParaOp)]
        if isinstance(op, LoraOp) and later:
            links = [load_para(other) for other in later]
            found.append((op.step, *_lost_and_total(load_lora(op), links)))
        elif isinstance(op, FamilyOp) and later and not op.module.depends_on_weight:
            found.append((op.step, *_lost_of_change(load_delta(op), [load_para(other) for other in later])))
    return found


def _lost_of_change(delta: DeltaLink, paras: Sequence[ParaLink]) -> tuple[float, float]:
    """The loss and the norm (:func:`_lost_and_total`) of a change that is not of low rank."""
    change = delta.rows(0, delta.addition.shape[0])
    return _lost_of(change, paras), float(torch.linalg.norm(change))


def _lost_of(change: torch.Tensor, paras: Sequence[ParaLink]) -> float:
    left = change
    for para in paras:
        left = left - (para.Q * para.weights) @ (para.Q.T @ left)
    return float(torch.linalg.norm(change - left))


def _lost_and_total(lora: LoraLink, paras: Sequence[ParaLink]) -> tuple[float, float]:
    """``||BA - (I-Pn)...(I-P1) BA||_F`` and ``||BA||_F``, through a triangular factor of A instead of A."""
    R = torch.linalg.qr(lora.A.T, mode="r").R
    change = lora.B @ R.T
    return _lost_of(change, paras), float(torch.linalg.norm(change))


def _summed(step: int, shares: dict[str, tuple[float, float]]) -> OrderLoss:
    lost = math.hypot(*(lost for lost, _ in shares.values()))
    total = math.hypot(*(total for _, total in shares.values()))
    layers = {name: lost / total if total else 0.0 for name, (lost, total) in shares.items()}
    return OrderLoss(step, lost / total if total else 0.0, layers)
