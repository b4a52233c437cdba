"""The command line: a thin skin on the Python API. One file a verb."""
