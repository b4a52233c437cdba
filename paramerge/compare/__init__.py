"""``compare``: the effects of adapters on each other."""
