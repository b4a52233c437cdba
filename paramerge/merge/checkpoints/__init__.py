"""Checkpoints with checkpoints: inputs meet by layer, a plan for each tensor, values by blocks of rows."""
