"""Where an adapter's names meet a base's layers, and whether they belong together."""
