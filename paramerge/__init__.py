"""paramerge: bake PaRa and LoRA adapters into the checkpoints of diffusion models.

>>> import paramerge as pm
>>> adapters = [pm.Para("a.safetensors"), pm.Lora("b.safetensors", 0.8)]
>>> report = pm.bake("sdxl.safetensors", adapters, "merged.safetensors")

The public names are those of the stub beside this file, which type checkers read, too. Each is imported when
it is first used, so that ``import paramerge`` costs nothing and only what computes needs torch. The linear
algebra is :mod:`paramerge.algebra`.
"""

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used; a name of the last version with a warning."""
    if name in __all__ or name.startswith("_"):
        return _public(name)
    from paramerge.old_names import old_name

    return old_name(name)
