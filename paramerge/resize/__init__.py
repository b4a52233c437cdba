"""``resize``: an adapter at another rank."""
