"""The storage schemes that are read, a file each, and those known by name."""
