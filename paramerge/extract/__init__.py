"""``extract``: the adapter between two checkpoints, or a PaRa out of a LoRA."""
