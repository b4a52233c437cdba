"""All chance of a training: every draw depends on the seed and on its purpose, and on nothing before it.

So a resumed run has the draws of an unbroken one, and two processes have those of one.
"""

from __future__ import annotations

import hashlib

import torch

__all__ = ["generator", "permutation"]


def generator(*names: object) -> torch.Generator:
    """A generator on the CPU that depends on ``names`` and on nothing else."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def permutation(count: int, position: int, *names: object) -> int:
    """Entry ``position`` of an endless sequence: ``count`` things over and over, each time in a new order."""
    epoch, place = divmod(position, count)
    return int(torch.randperm(count, generator=generator(*names, epoch))[place])
