"""Models: names of layers, structures, key maps, published architectures."""
