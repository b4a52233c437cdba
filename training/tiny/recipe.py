"""The whole recipe, in order: pictures, autoencoder, contrastive model, text-to-image, export, card."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from paramerge.checkpoints.single_file import write_single_file
from paramerge.files.writer import write_bytes
from paramerge.training.tiny import models
from paramerge.training.tiny.autoencoder import AutoencoderPart, fold_latent_scale
from paramerge.training.tiny.card import write_card
from paramerge.training.tiny.checkpoint import TrainingState
from paramerge.training.tiny.contrastive import ContrastivePart, picture_processor
from paramerge.training.tiny.diffusion import DiffusionPart, TextToImage, scene_bank
from paramerge.training.tiny.export import make_pipeline, write_pipeline
from paramerge.training.tiny.libraries import AutoencoderKL, CLIPTokenizer, StableDiffusionPipeline
from paramerge.training.tiny.loop import Budget, Part, Report, train
from paramerge.training.tiny.measure import Measured, measure
from paramerge.training.tiny.packages import CREDITS
from paramerge.training.tiny.pictures import drawn_gallery, emoji_gallery
from paramerge.training.tiny.scenes import Composer, SceneMix, draw_scene, random_generator
from paramerge.training.tiny.settings import PARTS, RATES, Settings
from paramerge.training.tiny.split import Split, make_split, write_split
from paramerge.training.tiny.subjects import first_subjects
from paramerge.training.tiny.tokenizer import make_tokenizer

__all__ = ["MODEL_NAME", "Made", "run"]

MODEL_NAME = "emoji-diffusion"
"""The name of the pipeline's folder, and of the single file beside it."""

_SCALE_SCENES = 512


@dataclass(frozen=True)
class Made:
    """The outcome of a run."""

    pipeline: StableDiffusionPipeline
    folder: Path
    single_file: Path
    contrastive: Path
    measured: Measured


def run(
    settings: Settings,
    out: Path,
    report: Report,
    *,
    device: str = "cpu",
    resume: bool = False,
    minutes: float | None = None,
    parts: Collection[str] = tuple(PARTS),
    packages: Path | None = None,
) -> Made:
    """Carry out the recipe in the folder ``out``.

    Parameters
    ----------
    report:
        Called after each step of training.
    resume:
        Go on from the checkpoints in ``out/training``, which must be of the same settings.
    minutes:
        Stop each part when its share of these is over, however many steps it has made.
    parts:
        The parts to train; the others are taken from their checkpoints (or the start) as they are. When the
        autoencoder has changed, the text-to-image part's training on its latents is out of date.
    packages:
        The folder of the pictures' archives; by default ``out/packages``.

    Raises
    ------
    UsageError
        The number of subjects is out of range.
    OutputError, FileFormatError
        The pictures cannot be had.
    CheckpointError
        What is to be resumed is of another run.
    NonFiniteError
        A part diverged.
    """
    job = _prepare(settings, out, report, torch.device(device), resume, minutes, parts, packages)
    states = {"autoencoder": job.train(_autoencoder_part(job))}
    autoencoder = _scaled(job, states["autoencoder"])
    states["contrastive"] = job.train(_contrastive_part(job))
    states["text-to-image"] = job.train(_diffusion_part(job, autoencoder))
    contrastive = _trained(states["contrastive"])
    text_to_image = _trained(states["text-to-image"])
    pipeline = make_pipeline(
        autoencoder,
        text_to_image.text_encoder,
        job.tokenizer,
        text_to_image.unet,
        models.make_scheduler(),
    )
    made = Made(
        pipeline,
        out / MODEL_NAME,
        out / f"{MODEL_NAME}.safetensors",
        out / "contrastive",
        measure(pipeline, contrastive, job.tokenizer, job.composer, job.split, settings),
    )
    write_pipeline(pipeline, made.folder)
    write_single_file(made.folder, made.single_file)
    for part in (contrastive, job.tokenizer, picture_processor()):
        part.save_pretrained(made.contrastive)
    write_split(job.split, made.folder / "split.json")
    if not settings.drawn:
        write_bytes(made.folder / "CREDITS.md", CREDITS.encode())
    write_card(made.folder, made.measured, states, job.split, settings)
    return made


@dataclass(frozen=True)
class _Job:
    """A run's inputs, in the form that each part takes them."""

    settings: Settings
    sizes: models.Sizes
    folder: Path
    report: Report
    device: torch.device
    resume: bool
    minutes: float | None
    parts: Collection[str]
    split: Split
    composer: Composer
    tokenizer: CLIPTokenizer

    def train(self, part: Part) -> TrainingState:
        """Train ``part`` for its steps or its share of the time, if it is among those to train."""
        chosen = part.name in self.parts
        steps = self.settings.steps[part.name] if chosen else 0
        budget = Budget(steps, learning_rate=RATES[part.name], cooldown=self.settings.cooldown)
        if self.minutes is not None:
            share = PARTS[part.name] / sum(PARTS[name] for name in self.parts)
            budget = replace(budget, seconds=60 * self.minutes * share)
        return train(part, budget, self.folder, self.report, resume=self.resume)


def _prepare(
    settings: Settings,
    out: Path,
    report: Report,
    device: torch.device,
    resume: bool,
    minutes: float | None,
    parts: Collection[str],
    packages: Path | None,
) -> _Job:
    subjects = first_subjects(settings.subjects)
    gallery = (
        drawn_gallery(subjects) if settings.drawn else emoji_gallery(subjects, packages or out / "packages")
    )
    folder = out / "training"
    folder.mkdir(parents=True, exist_ok=True)
    return _Job(
        settings,
        models.SIZES[settings.size],
        folder,
        report,
        device,
        resume,
        minutes,
        parts,
        make_split(subjects),
        Composer(gallery),
        make_tokenizer(),
    )


def _autoencoder_part(job: _Job) -> AutoencoderPart:
    model = _seeded(job, "autoencoder", lambda: models.make_autoencoder(job.sizes))
    settings = job.settings
    batch = max(1, settings.batch // 4)
    return AutoencoderPart(
        model, job.composer, job.split, settings.seed, batch, job.device, bf16=settings.bf16
    )


def _trained(state: TrainingState) -> Any:
    """The model that a part's training gives: the average."""
    return state.average.eval()


def _scaled(job: _Job, state: TrainingState) -> AutoencoderKL:
    """The averaged autoencoder, with its latents' scale folded in; the state keeps its own."""
    autoencoder: AutoencoderKL = copy.deepcopy(_trained(state))
    rng = random_generator(job.settings.seed, "latent scale")
    scenes = [draw_scene(job.split, rng, SceneMix()) for _ in range(_SCALE_SCENES)]
    fold_latent_scale(autoencoder, job.composer.compose_all(scenes))
    return autoencoder


def _contrastive_part(job: _Job) -> ContrastivePart:
    model = _seeded(job, "contrastive", lambda: models.make_contrastive(job.sizes, job.tokenizer))
    settings = job.settings
    return ContrastivePart(
        model, job.tokenizer, job.composer, job.split, settings.seed, settings.batch, job.device
    )


def _diffusion_part(job: _Job, autoencoder: AutoencoderKL) -> DiffusionPart:
    settings = job.settings
    model = _seeded(
        job,
        "text-to-image",
        lambda: TextToImage(models.make_unet(job.sizes), models.make_text_encoder(job.sizes, job.tokenizer)),
    )
    return DiffusionPart(
        model,
        models.make_scheduler(),
        autoencoder,
        job.tokenizer,
        job.composer,
        scene_bank(job.split, settings.seed, settings.scenes, settings.mix),
        settings.seed,
        settings.batch,
        job.device,
    )


_Model = TypeVar("_Model")


def _seeded(job: _Job, name: str, make: Callable[[], _Model]) -> _Model:
    """Make a model whose random start depends on the seed and ``name`` alone."""
    start = int(random_generator(job.settings.seed, "start", name).integers(2**62))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        return make()
