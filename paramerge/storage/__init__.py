"""Weights that are stored quantised: recognised, read as their true values, and written."""
