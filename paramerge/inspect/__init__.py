"""``inspect``: what a file is."""
