"""Settings of the pictures and their texts."""

# ruff: noqa: RUF009  (option makes a field)

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paramerge.training.settings.option import at_least, finite, option, wrong

__all__ = ["DataSettings"]


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Sizes, prior preservation and captions."""

    resolution: int | None = option(None, "Side of the square pictures; by default the model's own.")
    buckets: bool = option(False, "Cut each picture to the nearest of several sizes of this area.")
    bucket_step: int = option(64, "With buckets: sides are multiples of this.")
    crop: str = option("centre", "Where a picture is cut: its middle, or by chance.", ("centre", "random"))
    crops: int = option(1, "With crop random: how many cuts of each picture are used.")
    cache: Path | None = option(None, "Folder that keeps latents and embeddings for the next training.")
    random_flip: bool = option(False, "Mirror half of the pictures.")
    class_folder: Path | None = option(None, "Prior preservation: pictures of the class; drawn if too few.")
    class_prompt: str = option("", "Prior preservation: a text for these, such as 'a photo of a dog'.")
    class_images: int = option(50, "Prior preservation: how many.")
    prior_weight: float = option(1.0, "Prior preservation: the weight of its loss.")

    prompt_chunks: int = option(1, "How many times 75 tokens a text may have; each is encoded alone.")
    caption_dropout: float = option(0.0, "Share of pictures that are trained without a text.")
    shuffle_tags: bool = option(False, "Put what the commas of a text divide into another order each time.")
    keep_tags: int = option(0, "With shuffle_tags: how many at the start stay where they are.")

    def check_data(self) -> None:
        """Refuse settings out of range with a UsageError."""
        at_least(self, 1, ("class_images", "prompt_chunks", "crops"))
        at_least(self, 0, ("keep_tags",))
        finite(self, ("prior_weight",))
        if not 0 <= self.caption_dropout < 1:
            raise wrong("caption_dropout", "0 to below 1", self.caption_dropout)
        if self.resolution is not None and (self.resolution < 8 or self.resolution % 8):
            raise wrong("resolution", "a multiple of 8", self.resolution)
        if self.bucket_step < 8 or self.bucket_step % 8:
            raise wrong("bucket_step", "a multiple of 8", self.bucket_step)
        if self.crops > 1 and self.crop == "centre":
            raise wrong("crops", "1, or crop random", self.crops)
        if self.class_folder is not None and not self.class_prompt:
            raise wrong("class_prompt", "a text for the pictures in class_folder", "nothing")
