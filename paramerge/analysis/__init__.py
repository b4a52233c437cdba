"""What adapters do to each other: comparisons layer by layer, and the report on them."""
