"""The slots of a step: pictures, noise, timesteps and texts.

A slot is one place in a step's whole batch, counted over all processes; what it holds depends on the seed,
the step and the slot alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramerge.training.chance import generator, permutation
from paramerge.training.config import TrainConfig
from paramerge.training.examples import Examples

__all__ = ["Batch", "caption_of", "known_texts", "make_batch"]


@dataclass(frozen=True)
class Batch:
    """The slots of one forward pass; the class's come after the subject's."""

    latents: Tensor
    """(n, c, h, w), scaled as the UNet has them."""
    noise: Tensor
    timesteps: Tensor
    texts: tuple[str, ...]
    """The texts of the slots' pictures."""
    time_ids: Tensor
    subjects: int
    """The number of slots that are the subject's."""


def make_batch(
    examples: Examples, config: TrainConfig, step: int, slots: Sequence[int], total: int, timesteps: int
) -> Batch:
    """The batch of ``slots`` in ``step``, of ``total`` in all; ``timesteps`` is how many the model knows."""
    kinds = [(0, examples.instance)] + ([(1, examples.prior)] if examples.prior else [])
    latents, noise, times, texts, ids = [], [], [], [], []
    for kind, encoded in kinds:
        for slot in slots:
            seed = (config.seed, kind, step, slot)
            picture = permutation(encoded.count, step * total + slot, config.seed, kind, "order")
            index = picture
            draw = generator(*seed, "draw")
            if len(encoded.mean) > encoded.count and torch.rand((), generator=draw) < 0.5:
                index += encoded.count
            mean = encoded.mean[index]
            latents.append(mean + encoded.deviation[index] * torch.randn(mean.shape, generator=draw))
            grain = torch.randn(mean.shape, generator=draw)
            if config.noise_offset:
                grain = grain + config.noise_offset * torch.randn(len(mean), 1, 1, generator=draw)
            noise.append(grain)
            times.append(torch.randint(timesteps, (), generator=draw))
            caption = encoded.captions[picture] if encoded.captions else None
            texts.append(caption_of(caption, kind, config, generator(*seed, "caption")))
            ids.append(encoded.time_ids[index])
    stack = torch.stack
    return Batch(stack(latents), stack(noise), stack(times), tuple(texts), stack(ids), len(slots))


def known_texts(examples: Examples, config: TrainConfig) -> list[str]:
    """The texts that :func:`make_batch` will give; of shuffled tags the order that they come in."""
    captions = examples.instance.captions or (config.instance_prompt,)
    others = [config.class_prompt] * (examples.prior is not None) + [""] * (config.caption_dropout > 0)
    return list(dict.fromkeys([*captions, *others]))


def caption_of(caption: str | None, kind: int, config: TrainConfig, chance: torch.Generator) -> str:
    """The text of a slot: the caption or the prompt; its tags in another order, or nothing, by chance."""
    if kind == 1:
        return config.class_prompt
    text = config.instance_prompt if caption is None else caption
    if config.caption_dropout and float(torch.rand((), generator=chance)) < config.caption_dropout:
        return ""
    if config.shuffle_tags:
        tags = [tag.strip() for tag in text.split(",")]
        kept, rest = tags[: config.keep_tags], tags[config.keep_tags :]
        order = torch.randperm(len(rest), generator=chance).tolist()
        return ", ".join([*kept, *(rest[i] for i in order)])
    return text
