"""``merge``: adapters into one adapter."""
