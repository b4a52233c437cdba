"""The peer: diffusers loads a pipeline folder in fp16, fuses a LoRA into it, and saves it."""

from __future__ import annotations

import sys

import torch
from diffusers import StableDiffusionXLPipeline


def main(source: str, lora: str, target: str) -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained(
        source, torch_dtype=torch.float16, tokenizer=None, tokenizer_2=None, local_files_only=True
    )
    pipe.load_lora_weights(lora)
    pipe.fuse_lora(components=["unet", "text_encoder", "text_encoder_2"])
    pipe.unload_lora_weights()
    pipe.save_pretrained(target, safe_serialization=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
