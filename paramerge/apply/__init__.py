"""Steps on a weight: their order, the change they make together, the arithmetic."""
