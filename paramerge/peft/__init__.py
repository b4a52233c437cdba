"""PaRa as a PEFT tuner, and PaRa files on diffusers' models and pipelines.

>>> from paramerge.peft import load_para, paper_config, save_para
>>> unet.add_adapter(paper_config("ex-ca", r=4), "cat")     # then train it as any PEFT adapter
>>> save_para(pipeline, "cat.safetensors")                  # what `paramerge bake --para` reads
>>> load_para(pipeline, "cat.safetensors", strength=0.8)

Importing this imports torch and peft; importing paramerge does not.
"""

from paramerge.peft.config import PaRaConfig
from paramerge.peft.deft import deft_config, deft_state_dict, para_config, para_state_dict
from paramerge.peft.fusing import fuse, harden, hoist_bases, set_gate, unfuse
from paramerge.peft.initial import least_energy_directions
from paramerge.peft.layer import PaRaConv2d, PaRaLayer, PaRaLinear
from paramerge.peft.loading import load_para
from paramerge.peft.model import PaRaModel
from paramerge.peft.places import para_layers
from paramerge.peft.presets import paper_config
from paramerge.peft.saving import para_bases, save_para

__all__ = [
    "PaRaConfig",
    "PaRaConv2d",
    "PaRaLayer",
    "PaRaLinear",
    "PaRaModel",
    "deft_config",
    "deft_state_dict",
    "fuse",
    "harden",
    "hoist_bases",
    "least_energy_directions",
    "load_para",
    "paper_config",
    "para_bases",
    "para_config",
    "para_layers",
    "para_state_dict",
    "save_para",
    "set_gate",
    "unfuse",
]
