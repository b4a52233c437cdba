"""Pictures from a checkpoint, with or without adapters, for ``paramerge generate``.

Needs diffusers, transformers and Pillow, which baking does not; they are imported when a pipeline is loaded.
"""
