"""Training PaRa adapters. Baking never imports this package."""
