"""``sizes``: parameters and bytes of every family."""
