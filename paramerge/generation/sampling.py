"""Drawing the pictures: every one from its own seed, so that none depends on how many are drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from paramerge.errors import NonFiniteError, UsageError
from paramerge.generation.latents import decoded
from paramerge.wording import option

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "own": None,
}
"""The samplers by name and diffusers' class; ``own`` is the one in the checkpoint's configuration.

All keep a schedule of zero terminal SNR and v-prediction; diffusers' Heun and PNDM would not.
"""

_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Request:
    """A request for pictures; ``width`` and ``height`` are None for the model's own size."""

    prompts: tuple[str, ...]
    negative: str = ""
    seeds: tuple[int, ...] = (0,)
    steps: int = 25
    guidance: float = 7.5
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        for name, value in ((option("width"), self.width), (option("height"), self.height)):
            if value is not None and (value <= 0 or value % _MULTIPLE):
                raise UsageError(
                    "pictures cannot have this size",
                    where=name,
                    expected=f"a multiple of {_MULTIPLE}",
                    found=value,
                )
        if not self.prompts:
            raise UsageError("there is nothing to draw", expected=f"at least one {option('prompts')}")


def set_scheduler(pipeline: Any, name: str) -> None:
    """Give ``pipeline`` the sampler ``name`` of :data:`SCHEDULERS`, with the schedule it was trained with."""
    import diffusers

    class_name = SCHEDULERS[name]
    if class_name is None:
        return
    config = dict(pipeline.scheduler.config)
    # diffusers' default clips latents to [-1, 1], which only models of pixels want
    config.setdefault("clip_sample", False)
    pipeline.scheduler = getattr(diffusers, class_name).from_config(config)


def cut_prompts(pipeline: Any, prompts: tuple[str, ...]) -> list[tuple[str, int, int]]:
    """The prompts that the model reads only the beginning of, with their tokens and how many it takes."""
    tokenizer = pipeline.tokenizer
    limit = tokenizer.model_max_length
    counts = [(prompt, len(tokenizer(prompt).input_ids), limit) for prompt in prompts]
    return [entry for entry in counts if entry[1] > limit]


def draw(
    pipeline: Any, request: Request, progress: Callable[[], None] | None = None
) -> list[list[np.ndarray]]:
    """The pictures, uint8 (height, width, 3): a row for each prompt, in it one for each seed.

    The noise is drawn on the CPU, so a seed means the same on every device. DDIM runs with eta 0.

    Parameters
    ----------
    progress:
        Called after each step of each picture.

    Raises
    ------
    NonFiniteError
        A picture is NaN.
    """
    return [
        [draw_batch(pipeline, request, prompt, (seed,), progress)[0] for seed in request.seeds]
        for prompt in request.prompts
    ]


def draw_batch(
    pipeline: Any,
    request: Request,
    prompt: str,
    seeds: Sequence[int],
    progress: Callable[[], None] | None = None,
) -> list[np.ndarray]:
    """A picture of ``prompt`` for each of ``seeds`` as :func:`draw` gives them, all in one batch.

    A batch of another size may round the last bits of a picture otherwise.
    """

    def after_step(pipe: Any, step: int, time: Any, values: dict[str, Any]) -> dict[str, Any]:
        if progress is not None:
            progress()
        return values

    pipeline.set_progress_bar_config(disable=True)
    # a pipeline hands its latents on as they are: to an autoencoder of another dtype, or under autocast
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    apart = pipeline.vae.dtype != model.dtype or torch.is_autocast_enabled(pipeline.device.type)
    images = pipeline(
        [prompt] * len(seeds),
        negative_prompt=[request.negative] * len(seeds),
        num_inference_steps=request.steps,
        guidance_scale=request.guidance,
        width=request.width,
        height=request.height,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent" if apart else "np",
        callback_on_step_end=after_step,
    ).images
    images = decoded(pipeline, images) if apart else images
    for seed, image in zip(seeds, images, strict=True):
        if not np.isfinite(image).all():
            raise NonFiniteError(
                "the picture is not finite",
                where=f"{prompt!r}, seed {seed}",
                found="NaN",
                hint=f"some models overflow in half precision: try {option('dtype', 'fp32')} or bf16",
            )
    return [np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8) for image in images]
