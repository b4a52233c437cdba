"""Adapters as data: what each family stores for a layer, still in its file."""

from paramerge.adapters.adapter import Adapter, Leftover
from paramerge.adapters.lora import LoraModule
from paramerge.adapters.para import ParaModule

__all__ = ["Adapter", "Leftover", "LoraModule", "ParaModule"]
