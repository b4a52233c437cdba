"""Recipes, plans and bakes: adapters into checkpoints, and adapters into one another."""
