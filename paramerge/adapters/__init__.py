"""Adapters as data: what each family stores for a layer, still in its file, and what it does to a weight."""

from paramerge.adapters.adapter import Adapter, Leftover
from paramerge.adapters.boft import BoftModule, PeftBoftModule
from paramerge.adapters.contract import AdditiveModule, DependentModule, LayerModule, RowsModule
from paramerge.adapters.dora import DoraModule
from paramerge.adapters.full import DifferenceModule
from paramerge.adapters.glora import GloraModule
from paramerge.adapters.ia3 import Ia3Module
from paramerge.adapters.krona import KronaModule
from paramerge.adapters.loha import LohaModule
from paramerge.adapters.lokr import LokrFactor, LokrModule
from paramerge.adapters.lora import LoraModule
from paramerge.adapters.oft import OftModule, PeftOftModule
from paramerge.adapters.para import ParaModule
from paramerge.adapters.svdiff import SvdiffModule

__all__ = [
    "Adapter",
    "AdditiveModule",
    "BoftModule",
    "DependentModule",
    "DifferenceModule",
    "DoraModule",
    "GloraModule",
    "Ia3Module",
    "KronaModule",
    "LayerModule",
    "Leftover",
    "LohaModule",
    "LokrFactor",
    "LokrModule",
    "LoraModule",
    "OftModule",
    "ParaModule",
    "PeftBoftModule",
    "PeftOftModule",
    "RowsModule",
    "SvdiffModule",
]
