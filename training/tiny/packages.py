"""The npm packages that the pictures come from: fetched once with npm, checked, read without unpacking.

Versions and hashes are fixed here, so the same recipe always sees the same pictures.
"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paramerge.errors import FileFormatError, OutputError
from paramerge.files.writer import write_bytes

__all__ = ["CREDITS", "FLUENT", "NOTO", "PACKAGES", "TWEMOJI", "Package", "fetch", "read_members"]

_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Package:
    """A package of one version; ``integrity`` is the registry's own, ``sha512-`` and base64."""

    name: str
    version: str
    integrity: str

    @property
    def file_name(self) -> str:
        """The archive's name, which has no scope."""
        return f"{self.name.rpartition('/')[2]}-{self.version}.tgz"

    @property
    def wanted(self) -> str:
        """Name and version, as npm takes them."""
        return f"{self.name}@{self.version}"


NOTO = Package(
    "emoji-datasource-google",
    "16.0.0",
    "sha512-ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
)
TWEMOJI = Package(
    "emoji-datasource-twitter",
    "16.0.0",
    "sha512-7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
)
FLUENT = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "sha512-Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
)
PACKAGES = {"noto": NOTO, "twemoji": TWEMOJI, "fluent": FLUENT}
"""The package of each style; Noto's also names the emoji."""

CREDITS = f"""# Credits

The pictures that this model was trained on, and whose drawings it imitates:

| style | artwork | licence | taken from |
|---|---|---|---|
| noto | Noto Emoji, copyright Google LLC | Apache License 2.0 | npm {NOTO.name} {NOTO.version} |
| twemoji | Twemoji, copyright Twitter, Inc and other contributors | CC-BY 4.0 | \
npm {TWEMOJI.name} {TWEMOJI.version} |
| fluent | Fluent Emoji, copyright Microsoft Corporation | MIT | npm {FLUENT.name} {FLUENT.version} |

Names of emoji: emoji-data, copyright Cal Henderson, MIT (in the first two packages).
Changes: the pictures were cropped to what they show, scaled, and combined on coloured backgrounds.

- Noto Emoji: https://github.com/googlefonts/noto-emoji, https://www.apache.org/licenses/LICENSE-2.0
- Twemoji: https://github.com/jdecked/twemoji, https://creativecommons.org/licenses/by/4.0/
- Fluent Emoji: https://github.com/microsoft/fluentui-emoji, https://opensource.org/license/mit
"""
"""The credits that the licences ask for beside the weights."""


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive in ``folder``, downloaded if it is not there yet.

    Raises
    ------
    OutputError
        It could not be downloaded.
    FileFormatError
        The archive, stored or downloaded, is not the package that the recipe was made with.
    """
    path = folder / package.file_name
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        data = _download(package, path)
        _check(package, hashlib.sha512(data).digest(), package.wanted)
        write_bytes(path, data)
        return path
    with open(path, "rb") as stream:
        _check(package, hashlib.file_digest(stream, "sha512").digest(), path)
    return path


def _download(package: Package, path: Path) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", package.wanted, "--pack-destination", scratch, "--silent"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
            (archive,) = Path(scratch).iterdir()
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise OutputError(
                f"a package of pictures could not be downloaded with npm ({lines[0] if lines else 'silent'})",
                where=package.wanted,
                hint=f"install npm, or put the package's archive at {path}; --smoke needs no pictures",
            ) from error
        return archive.read_bytes()


def _check(package: Package, digest: bytes, where: object) -> None:
    found = "sha512-" + base64.b64encode(digest).decode()
    if found != package.integrity:
        raise FileFormatError(
            "this is not the package that the recipe was made with",
            where=where,
            expected=f"{package.name} {package.version}, {package.integrity}",
            found=found,
            hint="delete the file to have it downloaded again",
        )


def read_members(archive: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The regular files whose path within the package is ``wanted``; nothing is written to the disk.

    Raises
    ------
    FileFormatError
        The archive is damaged.
    """
    members = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = member.name.partition("/")[2]
                stream = tar.extractfile(member) if member.isfile() and wanted(name) else None
                if stream is not None:
                    members[name] = stream.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FileFormatError(f"the archive cannot be read ({error})", where=archive) from error
    return members
