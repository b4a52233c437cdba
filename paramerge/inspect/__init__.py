"""``inspect``: the kind and the content of a file."""
