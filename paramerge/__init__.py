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
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from paramerge.version import __version__

if TYPE_CHECKING:
    from paramerge import algebra as algebra
    from paramerge import errors as errors
    from paramerge import peft as peft
    from paramerge.adapters import Adapter as Adapter
    from paramerge.adapters import LoraModule as LoraModule
    from paramerge.adapters import ParaModule as ParaModule
    from paramerge.algebra import *  # noqa: F403
    from paramerge.apply.steps import BakeOptions as BakeOptions
    from paramerge.apply.steps import Step as Step
    from paramerge.bake.bake import BakeReport as BakeReport
    from paramerge.bake.bake import bake as bake
    from paramerge.bake.diagnose import diagnose as diagnose
    from paramerge.bake.find_base import find_base as find_base
    from paramerge.bake.plan import Plan as Plan
    from paramerge.bake.plan import make_plan as make_plan
    from paramerge.bake.summary import summarise as summarise
    from paramerge.checkpoints.layout import Base as Base
    from paramerge.checkpoints.layout import open_base as open_base
    from paramerge.compare.compare import compare as compare
    from paramerge.compare.report import write_report as write_report
    from paramerge.convert.convert import ConvertOptions as ConvertOptions
    from paramerge.convert.convert import convert as convert
    from paramerge.errors import ParamergeError as ParamergeError
    from paramerge.extract.extract import extract as extract
    from paramerge.extract.families import ExtractOptions as ExtractOptions
    from paramerge.extract.from_lora import extract_para as extract_para
    from paramerge.files.header import read_header as read_header
    from paramerge.formats import open_adapter as open_adapter
    from paramerge.formats import write_para as write_para
    from paramerge.formats.lora_writer import LoraFactors as LoraFactors
    from paramerge.formats.lora_writer import write_lora as write_lora
    from paramerge.merge.combine import combine as combine
    from paramerge.merge.request import CombineOptions as CombineOptions
    from paramerge.merge.request import Input as Input
    from paramerge.models.names import ModuleName as ModuleName
    from paramerge.resize.resize import resize as resize
    from paramerge.sizes.sizes import adapter_sizes as adapter_sizes

_PLACES = {
    "algebra": "",
    "errors": "",
    "peft": "",
    "Adapter": "adapters",
    "LoraModule": "adapters",
    "ParaModule": "adapters",
    "extract_para": "extract.from_lora",
    "compare": "compare.compare",
    "write_report": "compare.report",
    "adapter_sizes": "sizes.sizes",
    "read_header": "files.header",
    "Base": "checkpoints.layout",
    "open_base": "checkpoints.layout",
    "ModuleName": "models.names",
    "combine": "merge.combine",
    "CombineOptions": "merge.request",
    "Input": "merge.request",
    "resize": "resize.resize",
    "ConvertOptions": "convert.convert",
    "convert": "convert.convert",
    "ParamergeError": "errors",
    "extract": "extract.extract",
    "ExtractOptions": "extract.families",
    "open_adapter": "formats",
    "write_para": "formats",
    "LoraFactors": "formats.lora_writer",
    "write_lora": "formats.lora_writer",
    "BakeReport": "bake.bake",
    "bake": "bake.bake",
    "diagnose": "bake.diagnose",
    "find_base": "bake.find_base",
    "Plan": "bake.plan",
    "make_plan": "bake.plan",
    "BakeOptions": "apply.steps",
    "Step": "apply.steps",
    "summarise": "bake.summary",
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


class _Api(ModuleType):
    """A verb and its room have one name; the attribute is the verb, whichever is imported first."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and _PLACES.get(name)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Api


def __dir__() -> list[str]:
    return sorted(__all__)
