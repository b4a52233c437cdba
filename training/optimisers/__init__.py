"""The optimisers, by name; each is in a file of its own, and imports its package where it is used."""

from __future__ import annotations

from paramerge.training.optimisers.adafactor import ADAFACTOR
from paramerge.training.optimisers.adamw import ADAMW
from paramerge.training.optimisers.adamw_8bit import ADAMW_8BIT
from paramerge.training.optimisers.prodigy import PRODIGY
from paramerge.training.optimisers.record import OptimiserRecord
from paramerge.training.optimisers.schedule_free import SCHEDULE_FREE

__all__ = ["OPTIMISERS", "OptimiserRecord"]

OPTIMISERS = {each.name: each for each in (ADAMW, ADAMW_8BIT, ADAFACTOR, PRODIGY, SCHEDULE_FREE)}
