"""paramerge's nodes for ComfyUI: put this folder into ``custom_nodes``."""

from .paramerge_nodes.extension import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
