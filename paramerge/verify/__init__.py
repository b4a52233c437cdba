"""``verify``: an output held against its recipe, without writing."""
