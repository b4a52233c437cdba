"""``convert``: an adapter in another format."""
