"""The classes of diffusers and transformers that the recipe uses.

Both import lazily and without full annotations, so a type checker sees them here as names whose members are
not checked; when running they are the classes themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "AutoencoderKL",
    "CLIPModel",
    "CLIPTextModel",
    "CLIPTokenizer",
    "DDIMScheduler",
    "StableDiffusionPipeline",
    "UNet2DConditionModel",
]

if TYPE_CHECKING:

    class AutoencoderKL(Any):  # type: ignore[misc]  # noqa: D101
        pass

    class CLIPModel(Any):  # type: ignore[misc]  # noqa: D101
        pass

    class CLIPTextModel(Any):  # type: ignore[misc]  # noqa: D101
        pass

    class CLIPTokenizer(Any):  # type: ignore[misc]  # noqa: D101
        pass

    class DDIMScheduler(Any):  # type: ignore[misc]  # noqa: D101
        pass

    class StableDiffusionPipeline(Any):  # type: ignore[misc]  # noqa: D101
        pass

    class UNet2DConditionModel(Any):  # type: ignore[misc]  # noqa: D101
        pass

else:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
