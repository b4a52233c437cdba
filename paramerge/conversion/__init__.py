"""An adapter from one file format into another, and a PaRa into a LoRA for a named base."""
