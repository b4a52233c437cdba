"""paramerge: bake PaRa and LoRA adapters into Stable Diffusion checkpoints.

The whole public API is here; each name is imported when it is first used, so that ``import paramerge`` costs
nothing and only what computes needs torch.

>>> import paramerge as pm
>>> steps = [pm.Step("para", Path("a.safetensors")), pm.Step("lora", Path("b.safetensors"), 0.8)]
>>> opened = [(step, pm.open_adapter(step.path, family=step.kind)) for step in steps]
>>> plan = pm.make_plan(pm.open_base("sdxl.safetensors"), opened, pm.BakeOptions())
>>> report = pm.bake(plan, "merged.safetensors")

The linear algebra (:mod:`paramerge.algebra`) is here by the same names: ``pm.orthonormalise`` and so on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from paramerge.version import __version__

if TYPE_CHECKING:
    from paramerge import algebra as algebra
    from paramerge import errors as errors
    from paramerge import peft as peft
    from paramerge.adapters import Adapter as Adapter
    from paramerge.adapters import LoraModule as LoraModule
    from paramerge.adapters import ParaModule as ParaModule
    from paramerge.adapters.extraction import extract_para as extract_para
    from paramerge.algebra import *  # noqa: F403
    from paramerge.analysis.compare import compare as compare
    from paramerge.analysis.report import write_report as write_report
    from paramerge.analysis.sizes import adapter_sizes as adapter_sizes
    from paramerge.checkpoints.header import read_header as read_header
    from paramerge.checkpoints.layout import Base as Base
    from paramerge.checkpoints.layout import open_base as open_base
    from paramerge.checkpoints.modules import ModuleName as ModuleName
    from paramerge.combining.combine import combine as combine
    from paramerge.combining.request import CombineOptions as CombineOptions
    from paramerge.combining.request import Input as Input
    from paramerge.combining.resize import resize as resize
    from paramerge.conversion.convert import ConvertOptions as ConvertOptions
    from paramerge.conversion.convert import convert as convert
    from paramerge.errors import ParamergeError as ParamergeError
    from paramerge.extraction.extract import extract as extract
    from paramerge.extraction.families import ExtractOptions as ExtractOptions
    from paramerge.formats import open_adapter as open_adapter
    from paramerge.formats import write_para as write_para
    from paramerge.formats.lora_writer import LoraFactors as LoraFactors
    from paramerge.formats.lora_writer import write_lora as write_lora
    from paramerge.merge.bake import BakeReport as BakeReport
    from paramerge.merge.bake import bake as bake
    from paramerge.merge.diagnose import diagnose as diagnose
    from paramerge.merge.find_base import find_base as find_base
    from paramerge.merge.plan import Plan as Plan
    from paramerge.merge.plan import make_plan as make_plan
    from paramerge.merge.steps import BakeOptions as BakeOptions
    from paramerge.merge.steps import Step as Step
    from paramerge.merge.summary import summarise as summarise

_PLACES = {
    "algebra": "",
    "errors": "",
    "peft": "",
    "Adapter": "adapters",
    "LoraModule": "adapters",
    "ParaModule": "adapters",
    "extract_para": "adapters.extraction",
    "compare": "analysis.compare",
    "write_report": "analysis.report",
    "adapter_sizes": "analysis.sizes",
    "read_header": "checkpoints.header",
    "Base": "checkpoints.layout",
    "open_base": "checkpoints.layout",
    "ModuleName": "checkpoints.modules",
    "combine": "combining.combine",
    "CombineOptions": "combining.request",
    "Input": "combining.request",
    "resize": "combining.resize",
    "ConvertOptions": "conversion.convert",
    "convert": "conversion.convert",
    "ParamergeError": "errors",
    "extract": "extraction.extract",
    "ExtractOptions": "extraction.families",
    "open_adapter": "formats",
    "write_para": "formats",
    "LoraFactors": "formats.lora_writer",
    "write_lora": "formats.lora_writer",
    "BakeReport": "merge.bake",
    "bake": "merge.bake",
    "diagnose": "merge.diagnose",
    "find_base": "merge.find_base",
    "Plan": "merge.plan",
    "make_plan": "merge.plan",
    "BakeOptions": "merge.steps",
    "Step": "merge.steps",
    "summarise": "merge.summary",
}
"""Each public name and the module it lives in; an empty one means that the name is a module itself."""

_ALGEBRA = (
    "Bounded",
    "JointBasis",
    "Orthonormal",
    "SubspacePair",
    "TruncatedLora",
    "adjusted_rank",
    "compare_subspaces",
    "concat_loras",
    "flatten_conv",
    "friedrichs_cosine",
    "graded_joint_basis",
    "iterate_sequential",
    "joint_basis",
    "leading_output_directions",
    "lora_cosine",
    "lora_loss",
    "lora_survival",
    "naive_combination",
    "null_space_projection",
    "numerical_rank",
    "orthonormalise",
    "para_then_lora",
    "para_to_lora",
    "principal_angles",
    "project",
    "rank_boundary",
    "reduce",
    "removed_rank",
    "removed_rank_joint",
    "removed_rank_sequential",
    "require_full_rank",
    "require_orthonormal",
    "sequential_error",
    "shared_dimension",
    "storage_tolerance",
    "truncate_lora",
    "unflatten_conv",
)

__all__ = ["__version__", *_PLACES, *_ALGEBRA]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name in _ALGEBRA:
        value = getattr(importlib.import_module("paramerge.algebra"), name)
    elif (place := _PLACES.get(name)) is None:
        raise AttributeError(f"module 'paramerge' has no attribute {name!r}")
    elif place:
        value = getattr(importlib.import_module(f"paramerge.{place}"), name)
    else:
        value = importlib.import_module(f"paramerge.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
