"""The methods by which checkpoints are merged, a file each, and their list (``registry.py``)."""
