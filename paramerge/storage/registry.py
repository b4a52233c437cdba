"""The list of storage schemes: those of paramerge, of installed packages, and those that were registered.

A package adds one with an entry point of the group ``paramerge.storage_schemes`` that names a
:class:`~paramerge.storage.scheme.Scheme`; see ``docs/extending.md``.
"""

from __future__ import annotations

from paramerge.kinds import Registry
from paramerge.storage.layer import StoredLayer
from paramerge.storage.scheme import Scheme
from paramerge.storage.schemes.bitsandbytes_4bit import Bitsandbytes4Bit
from paramerge.storage.schemes.bitsandbytes_int8 import BitsandbytesInt8
from paramerge.storage.schemes.convrot import ConvRotInt8
from paramerge.storage.schemes.fp8 import ScaledFp8
from paramerge.storage.schemes.gguf import Gguf
from paramerge.storage.schemes.int8 import ScaledInt8
from paramerge.storage.schemes.mxfp8 import Mxfp8
from paramerge.storage.schemes.nvfp4 import Nvfp4
from paramerge.storage.schemes.unread import UNREAD

BUILT_IN: tuple[Scheme, ...] = (
    *UNREAD,
    Gguf(),
    Bitsandbytes4Bit(),
    BitsandbytesInt8(),
    Mxfp8(),
    Nvfp4(),
    ConvRotInt8(),
    ScaledInt8(),
    ScaledFp8(),
)

SCHEMES = Registry(
    Scheme,
    "storage scheme",
    "paramerge.storage_schemes",
    BUILT_IN,
    names=lambda scheme: (scheme.name,),
    added_first=True,
)
schemes = SCHEMES.all


class Unknown(Scheme):
    """A scheme without a name: the parts of its layers are shown instead."""

    name = "unknown"

    def __init__(self, layer: StoredLayer) -> None:
        marked = f"ComfyUI's {layer.marked_as}" if layer.marked_as else ""
        stated = layer.config.get("quant_method") or layer.config.get("quant_algo")
        if layer.parts and not marked:
            self.title = f"{layer.dtype} with {', '.join(sorted(layer.parts))}"
        else:
            self.title = marked or f"{stated or 'quantisation'}, as its config.json says"

    def fits(self, layer: StoredLayer) -> bool:
        """Every layer."""
        return True


def scheme_of(layer: StoredLayer) -> Scheme:
    """The first scheme that fits a layer; one without a name where none does."""
    return next((scheme for scheme in schemes() if scheme.fits(layer)), None) or Unknown(layer)
