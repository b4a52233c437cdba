"""Checkpoints: safetensors files, their layouts and their names for layers."""
