"""A random contrastive model of the shipped one's kind, as a folder that transformers loads."""

from __future__ import annotations

from pathlib import Path

import torch

from paramerge.training.tiny import models
from paramerge.training.tiny.contrastive import picture_processor
from paramerge.training.tiny.tokenizer import make_tokenizer


def contrastive_model(folder: Path) -> Path:
    torch.manual_seed(1)
    tokenizer = make_tokenizer()
    for part in (models.make_contrastive(models.SIZES["smoke"], tokenizer), tokenizer, picture_processor()):
        part.save_pretrained(folder)
    return folder
