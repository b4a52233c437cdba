"""A plan as plain values, for JSON and for comparing plans."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from paramerge.training.experiments.plan import Cell, Plan

__all__ = ["plan_as_dict"]


def plan_as_dict(plan: Plan) -> dict[str, Any]:
    """The whole plan as plain values: every training, every cell, and the cost."""
    return {
        "experiment": plan.experiment.name,
        "title": plan.experiment.title,
        "source": plan.experiment.source,
        "model": plan.model.name,
        "data": plan.data.folder.name,
        "prompts_from": plan.data.origin,
        "seed": plan.seed,
        "budget": asdict(plan.budget),
        "trainings": [
            {
                "name": training.name,
                "method": training.method,
                "rank": training.rank,
                "subject": training.subject.name,
                "stops": list(training.stops),
                "pictures": training.pictures,
                "settings": dict(training.settings),
            }
            for training in plan.trainings
        ],
        "cells": [_cell(cell) for cell in plan.cells],
        "claims": [
            {"claim": claim.text, "where": claim.where, "test": type(claim.test).__name__}
            | asdict(claim.test)
            for claim in plan.experiment.claims(plan.budget)
        ],
        "cost": asdict(plan.cost()),
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "row": cell.row,
        "column": cell.column,
        "prompt": cell.prompt,
        "text": cell.text,
        "references": cell.references.name,
        "pictures": cell.count,
        "tuning": cell.tuning,
        "merge": cell.variant.merge,
        "adapters": [
            {
                "training": use.training.name,
                "steps": use.steps,
                "strength": use.strength,
                "extracted": use.extracted,
            }
            for use in cell.variant.uses
        ],
    }
