"""Trainers' notes in an adapter's metadata that a user wants to know: prompts, tags, steps, the base."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from paramerge.errors import FileFormatError
from paramerge.strict_json import object_from

_PLAIN = (
    ("title", ("modelspec.title", "ss_output_name", "name")),
    ("author", ("modelspec.author",)),
    ("license", ("modelspec.license",)),
    ("description", ("modelspec.description",)),
    ("trigger", ("modelspec.trigger_phrase", "instance_prompt", "trigger_word")),
    ("usage", ("modelspec.usage_hint",)),
    ("comment", ("ss_training_comment",)),
    ("trained on", ("ss_sd_model_name", "ss_base_model_version", "base_model")),
    ("trained with", ("ss_network_module",)),
    ("arguments", ("ss_network_args",)),
    ("dim", ("ss_network_dim",)),
    ("alpha", ("ss_network_alpha",)),
    ("images", ("ss_num_train_images",)),
    ("steps", ("ss_steps", "ss_max_train_steps")),
    ("epochs", ("ss_epoch", "ss_num_epochs")),
    ("rate", ("ss_learning_rate",)),
    ("rate, UNet", ("ss_unet_lr",)),
    ("rate, text", ("ss_text_encoder_lr",)),
    ("optimizer", ("ss_optimizer",)),
    ("resolution", ("ss_resolution", "modelspec.resolution")),
    ("clip skip", ("ss_clip_skip",)),
    ("min-SNR", ("ss_min_snr_gamma",)),
    ("seed", ("ss_seed",)),
    ("made from", ("extraction.method",)),
    ("rule", ("extraction.rule",)),
    ("gamma", ("paramerge.gamma",)),
    ("targets", ("paramerge.targets",)),
)
"""Names for people, each with the metadata that may say it, the better one first."""

_NOTHING = {"", "None", "null", "{}", "[]"}
_SHOWN_TAGS = 12


def training_notes(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """The useful part of ``metadata`` as pairs of a short name and a text, in reading order."""
    notes = [
        (label, text)
        for label, keys in _PLAIN
        if (text := next((metadata[key] for key in keys if metadata.get(key, "") not in _NOTHING), None))
    ]
    return [*notes, *_date(metadata), *_folders(metadata), *_tags(metadata)]


def _date(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if date := metadata.get("modelspec.date"):
        yield "date", date
        return
    try:
        seconds = float(metadata["ss_training_finished_at"])
        yield "date", f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (KeyError, ValueError, OverflowError, OSError):
        return


def _folders(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """kohya's folders of images: their names hold repeats and the prompt, ``16_smf girl``."""
    folders = _object(metadata.get("ss_dataset_dirs"))
    if folders:
        yield "folders", ", ".join(f"{name} ({_images(entry)})" for name, entry in folders.items())


def _images(entry: object) -> str:
    count = entry.get("img_count") if isinstance(entry, dict) else None
    return f"{count} images" if count is not None else "images not counted"


def _tags(metadata: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    counts: Counter[str] = Counter()
    for folder in _object(metadata.get("ss_tag_frequency")).values():
        if isinstance(folder, dict):
            counts.update({str(tag): n for tag, n in folder.items() if isinstance(n, int)})
    if counts:
        shown = ", ".join(f"{tag.strip()} {count}" for tag, count in counts.most_common(_SHOWN_TAGS))
        more = len(counts) - _SHOWN_TAGS
        yield "tags", f"{shown} and {more} more" if more > 0 else shown


def _object(text: str | None) -> dict[str, object]:
    """A JSON object in the metadata; an empty one where there is none that can be read."""
    try:
        return object_from(text or "{}", "metadata")
    except FileFormatError:
        return {}
