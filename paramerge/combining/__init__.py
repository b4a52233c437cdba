"""Merging adapters into one adapter: PaRa + PaRa, LoRA + LoRA, and both as the one LoRA for a base."""
