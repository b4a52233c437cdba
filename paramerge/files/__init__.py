"""Safetensors on disk: checked headers, dtypes, tensors, the writer, hashes."""
