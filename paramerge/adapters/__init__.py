"""Adapters as data: what each family stores for a layer, still in its file, and what it does to a weight."""

from paramerge.adapters.adapter import Adapter, Leftover
from paramerge.adapters.contract import LayerModule
from paramerge.adapters.lora import LoraModule
from paramerge.adapters.para import ParaModule

__all__ = ["Adapter", "LayerModule", "Leftover", "LoraModule", "ParaModule"]
