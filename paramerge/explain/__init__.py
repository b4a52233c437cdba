"""``explain``: the adapters in a checkpoint, with strengths, order, and what they leave unexplained."""
