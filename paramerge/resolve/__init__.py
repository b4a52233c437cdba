"""Adapters' names resolved to a base's layers, and checks that the two belong together."""
