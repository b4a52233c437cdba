"""Tiny random pipelines of SD1.5's and SDXL's kinds, as diffusers folders and single files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from blueprints import sdxl
from diffusers import DDIMScheduler, StableDiffusionPipeline
from random_checkpoint import write_random_checkpoint

from paramerge.checkpoints.single_file import write_single_file
from paramerge.training.tiny import models
from paramerge.training.tiny.export import make_pipeline
from paramerge.training.tiny.tokenizer import make_tokenizer


def sd_pipeline(folder: Path) -> tuple[Path, Path]:
    """A pipeline in float32 as ``model/`` and its single file in float16 as ``other/model.safetensors``."""
    torch.manual_seed(0)
    sizes, tokenizer = models.SIZES["smoke"], make_tokenizer()
    pipeline = make_pipeline(
        models.make_autoencoder(sizes),
        models.make_text_encoder(sizes, tokenizer),
        tokenizer,
        models.make_unet(sizes),
        models.make_scheduler(),
    )
    other = folder / "other"
    _cast(pipeline, torch.float16).save_pretrained(other / "half")
    _cast(pipeline, torch.float32).save_pretrained(folder / "model")  # the same numbers in both
    write_single_file(other / "half", other / "model.safetensors")
    shutil.rmtree(other / "half")
    return folder / "model", folder / "other" / "model.safetensors"


def _cast(pipeline: StableDiffusionPipeline, dtype: torch.dtype) -> StableDiffusionPipeline:
    for name in ("unet", "vae", "text_encoder"):
        getattr(pipeline, name).to(dtype)
    return pipeline


def sdxl_pipeline(folder: Path) -> tuple[Path, Path]:
    """SDXL's true keys at a 32nd of the widths, as a folder and as a single file (OpenCLIP's names)."""
    tokenizer = make_tokenizer()
    blueprint = sdxl(32, vocabulary=len(tokenizer))
    model, single = folder / "xl", folder / "single" / "xl.safetensors"
    write_random_checkpoint(blueprint, model, layout="diffusers-folder", dtype="F32")
    write_random_checkpoint(blueprint, single, dtype="F32")
    index = json.loads((model / "model_index.json").read_text())
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(model / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
                  ).save_pretrained(model / "scheduler")  # fmt: skip
    (model / "model_index.json").write_text(json.dumps(index))
    return model, single
