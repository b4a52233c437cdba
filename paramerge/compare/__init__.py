"""``compare``: what adapters do to each other."""
