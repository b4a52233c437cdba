"""The slots of a step: pictures, noise, timesteps and texts.

A slot is one place in a step's whole batch, counted over all processes; what it holds depends on the seed,
the step and the slot alone. All slots of a step are of one size, so any share of them is a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramerge.training.chance import generator, permutation
from paramerge.training.config import TrainConfig
from paramerge.training.examples import Examples, Latents
from paramerge.training.sources import sources_of

__all__ = ["Batch", "caption_of", "held_out_batches", "known_texts", "make_batches"]

Draw = Callable[[torch.Generator], Tensor]
"""A timestep by chance."""


@dataclass(frozen=True)
class Batch:
    """The slots of one forward pass; the class's come after the subject's."""

    latents: Tensor
    """(n, c, h, w), scaled as the model has them."""
    noise: Tensor
    timesteps: Tensor
    texts: tuple[str, ...]
    """The texts of the slots' pictures."""
    time_ids: Tensor
    subjects: int
    """The number of slots that are the subject's."""
    mask: Tensor | None = None
    """(n, 1, h, w), the weight of each place, or None."""


def make_batches(
    examples: Examples, config: TrainConfig, step: int, slots: Sequence[int], total: int, draw: Draw
) -> tuple[Batch, ...]:
    """The ``slots`` in ``step``, of ``total``: one batch, or two where the class's are of another size."""
    kinds = [
        _slots_of(encoded, kind, config, step, slots, total, draw)
        for kind, encoded in ((0, examples.instance), (1, examples.prior))
        if encoded
    ]
    if len(kinds) == 2 and kinds[0].latents.shape[1:] == kinds[1].latents.shape[1:]:
        return (_together(*kinds),)
    return tuple(kinds)


def _slots_of(
    sizes: Sequence[Latents],
    kind: int,
    config: TrainConfig,
    step: int,
    slots: Sequence[int],
    total: int,
    draw_time: Draw,
) -> Batch:
    encoded, turn, names = _size_of_step(sizes, step, config.seed, kind)
    latents, noise, times, texts, ids, masks = [], [], [], [], [], []
    for slot in slots:
        seed = (config.seed, kind, step, slot)
        order = encoded.round
        picture = order[permutation(len(order), turn * total + slot, *names, "order")]
        index = picture
        draw = generator(*seed, "draw")
        versions = len(encoded.mean) // encoded.count
        if versions > 1:
            index += (versions - 1 - int(float(torch.rand((), generator=draw)) * versions)) * encoded.count
        mean = encoded.mean[index]
        latents.append(mean + encoded.deviation[index] * torch.randn(mean.shape, generator=draw))
        grain = torch.randn(mean.shape, generator=draw)
        if config.noise_offset:
            grain = grain + config.noise_offset * torch.randn(len(mean), 1, 1, generator=draw)
        noise.append(grain)
        times.append(draw_time(draw))
        caption = encoded.captions[picture] if encoded.captions else None
        texts.append(caption_of(caption, kind, config, generator(*seed, "caption")))
        ids.append(encoded.time_ids[index])
        masks.append(torch.ones_like(mean[:1]) if encoded.mask is None else encoded.mask[index])
    stack = torch.stack
    return Batch(
        stack(latents),
        stack(noise),
        stack(times),
        tuple(texts),
        stack(ids),
        len(slots) if kind == 0 else 0,
        None if config.mask == "none" else config.mask_floor + (1 - config.mask_floor) * stack(masks),
    )


def _size_of_step(
    sizes: Sequence[Latents], step: int, seed: int, kind: int
) -> tuple[Latents, int, tuple[object, ...]]:
    """The pictures of the step's size, how many steps had this size before, and the names of their order.

    A round has as many steps as pictures, each led by one of them, so that all come equally often.
    """
    if len(sizes) == 1:
        return sizes[0], step, (seed, kind)
    leads = [i for i, encoded in enumerate(sizes) for _ in encoded.round]
    names = (seed, kind, "sizes")
    chosen = leads[permutation(len(leads), step, *names)]
    rounds, place = divmod(step, len(leads))
    start = rounds * len(leads)
    now = sum(leads[permutation(len(leads), start + i, *names)] == chosen for i in range(place))
    return sizes[chosen], rounds * len(sizes[chosen].round) + now, (seed, kind, chosen)


def _together(subject: Batch, prior: Batch) -> Batch:
    def both(name: str) -> Tensor:
        return torch.cat([getattr(subject, name), getattr(prior, name)])

    return Batch(
        both("latents"),
        both("noise"),
        both("timesteps"),
        subject.texts + prior.texts,
        both("time_ids"),
        subject.subjects,
        None if subject.mask is None else both("mask"),
    )


def held_out_batches(examples: Examples, config: TrainConfig, times: Sequence[Tensor]) -> list[Batch]:
    """A batch of each held-out picture: its mean latents at all of ``times``, with noise of its own."""
    found = []
    for number, encoded in enumerate(examples.held_out):
        for picture in range(encoded.count):
            mean = encoded.mean[picture]
            noise = [
                torch.randn(mean.shape, generator=generator(config.seed, "held out", number, picture, i))
                for i in range(len(times))
            ]
            text = encoded.captions[picture] if encoded.captions else sources_of(config)[0].prompt
            ids = encoded.time_ids[picture].expand(len(times), -1)
            latents = mean.expand(len(times), *mean.shape)
            found.append(
                Batch(
                    latents,
                    torch.stack(noise),
                    torch.stack(list(times)),
                    (text,) * len(times),
                    ids,
                    len(times),
                )
            )
    return found


def known_texts(examples: Examples, config: TrainConfig) -> list[str]:
    """The texts that :func:`make_batches` will give; of shuffled tags the order that they come in."""
    parts = (*examples.instance, *examples.held_out)
    prompts = [] if all(part.captions for part in parts) else [sources_of(config)[0].prompt]
    captions = [text for part in parts for text in part.captions]
    others = [config.class_prompt] * bool(examples.prior) + [""] * (config.caption_dropout > 0)
    return list(dict.fromkeys([*captions, *prompts, *others]))


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
