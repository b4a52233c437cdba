"""What models are: names of layers, structures, key maps, published architectures."""
