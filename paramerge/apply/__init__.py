"""What steps do to a weight: the order, the change they make together, the arithmetic."""
