"""``bake``: adapters into a checkpoint."""
