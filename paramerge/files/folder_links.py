"""Links in a model's folder: where they may lead.

Downloads of the Hugging Face cache consist of links into its ``blobs`` folder, and links within a folder are
harmless. A link to anywhere else could bring a private file into the output (a folder from a stranger may
hold links to any path), so files that come along, and the shards that an index names, may not be such links.
"""

from __future__ import annotations

from pathlib import Path

from paramerge.errors import CheckpointError


def check_regular(path: Path) -> None:
    """Raise ``CheckpointError`` unless ``path`` is a file, or a link to one."""
    if path.is_file():
        return
    if path.exists():
        raise CheckpointError("this is not a regular file", where=path, expected="a .safetensors file")
    raise CheckpointError(
        "the folder is incomplete: a link leads nowhere",
        where=path,
        found=f"a link to {path.readlink()}" if path.is_symlink() else "nothing",
        hint="download the model again",
    )


def refuse_link_outside(path: Path, root: Path) -> None:
    """Raise ``CheckpointError`` if ``path``, in the folder ``root``, links to a place outside."""
    real = path.resolve()
    if real.is_relative_to(root.resolve()) or _is_cache_blob(real):
        return
    raise CheckpointError(
        "a link in the folder leads out of it",
        where=path,
        expected="files of the folder, or links into the Hugging Face cache",
        found=f"a link to {real}",
        hint="put a copy of the file in the place of the link if it belongs to the model",
    )


def _is_cache_blob(real: Path) -> bool:
    """Whether the file is in ``models--NAME/blobs`` of a Hugging Face cache."""
    return real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
