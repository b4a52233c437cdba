"""File dialects of adapters, and paramerge's own PaRa format."""

from paramerge.formats.native import write_para
from paramerge.formats.opening import open_adapter

__all__ = ["open_adapter", "write_para"]
