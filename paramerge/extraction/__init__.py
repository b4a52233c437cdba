"""An adapter out of two checkpoints: what was done to a base, in the form of a family."""
