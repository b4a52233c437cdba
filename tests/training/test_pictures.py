"""The packages and the pictures in them, on archives in npm's layout made here."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paramerge.errors import FileFormatError, OutputError, UsageError
from paramerge.training.tiny import packages as packages_module
from paramerge.training.tiny.packages import PACKAGES, Package, fetch, read_members
from paramerge.training.tiny.pictures import SIZE, align, drawn_gallery, emoji_gallery
from paramerge.training.tiny.subjects import STYLES, SUBJECTS, Subject, first_subjects

DOG, STAR = Subject("dog", "dog"), Subject("star", "star")
FOLDERS = {"noto": "img/google/64/", "twemoji": "img/twitter/64/", "fluent": "assets/"}


def picture(colour: tuple[int, int, int], size: int = 64) -> bytes:
    """A filled rectangle, a quarter of the frame, as PNG."""
    image = Image.new("RGBA", (size, size))
    image.paste((*colour, 255), (size // 4, size // 4, size // 2, size // 2))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def emoji(name: str, code: str, category: str = "Objects") -> dict[str, str]:
    return {"short_name": name, "unified": code, "category": category}


def archive(folder: Path, name: str, files: Mapping[str, bytes]) -> Package:
    """Write an npm archive of ``files`` and give the package that describes it."""
    package = Package(name, "1.0.0", "")
    path = folder / package.file_name
    with tarfile.open(path, "w:gz") as tar:
        for member, data in files.items():
            info = tarfile.TarInfo(f"package/{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    return Package(name, "1.0.0", f"sha512-{digest}")


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Package]:
    index = [
        emoji("dog", "1F436"),
        emoji("star", "2B50-FE0F"),
        emoji("pin", "1F4CD"),
        emoji("x", "1", "Flags"),
    ]
    made = {}
    for style, colour in zip(STYLES, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True):
        # one style writes the variation selector, the others do not
        star = "2b50-fe0f.png" if style == "fluent" else "2b50.png"
        names = ["1f436.png", star, "1.png", *(["1f4cd.png"] if style != "noto" else [])]
        files = {FOLDERS[style] + name: picture(colour) for name in names}
        if style == "noto":
            files["emoji.json"] = json.dumps(index).encode()
        made[style] = archive(tmp_path, f"@scope/{style}", files)
    return made


def test_the_gallery_has_each_subject_in_each_style(tmp_path: Path, packages: dict[str, Package]) -> None:
    gallery = emoji_gallery([DOG, STAR], tmp_path, packages)
    assert set(gallery.pictures) == {(name, style) for name in ("dog", "star") for style in STYLES}
    for style, colour in zip(STYLES, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True):
        for subject in (DOG, STAR):
            found = gallery.picture(subject, style)
            assert found.size == (SIZE, SIZE)
            assert found.getpixel((0, 0)) == (*colour, 255)  # the rectangle fills the frame
    assert len(gallery.others) == 2  # the pin in two styles; flags are left out


def test_a_missing_picture_is_named(tmp_path: Path, packages: dict[str, Package]) -> None:
    with pytest.raises(FileFormatError, match="no picture of a pin") as caught:
        emoji_gallery([Subject("pin", "pin")], tmp_path, packages)
    assert "noto" in str(caught.value)


def test_a_changed_archive_is_refused(tmp_path: Path, packages: dict[str, Package]) -> None:
    path = tmp_path / packages["fluent"].file_name
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(FileFormatError, match="not the package") as caught:
        emoji_gallery([DOG], tmp_path, packages)
    assert caught.value.where == str(path)


def test_downloads_are_checked_and_kept(
    tmp_path: Path, packages: dict[str, Package], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = packages["noto"]
    data = (tmp_path / package.file_name).read_bytes()
    asked = []

    def answer(command: list[str], **options: Any) -> None:
        asked.append(command[:3])
        folder = Path(command[command.index("--pack-destination") + 1])
        (folder / "scope-noto-1.0.0.tgz").write_bytes(data if len(asked) > 1 else data[:-1])

    monkeypatch.setattr(packages_module.subprocess, "run", answer)
    cache = tmp_path / "cache"
    with pytest.raises(FileFormatError, match="not the package"):
        fetch(package, cache)
    assert list(cache.iterdir()) == []  # what is wrong is not kept
    path = fetch(package, cache)
    assert path.read_bytes() == data
    assert fetch(package, cache) == path
    assert asked == [["npm", "pack", "@scope/noto@1.0.0"]] * 2


def test_without_a_network_the_error_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: list[str], **options: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="npm error: no network\n")

    monkeypatch.setattr(packages_module.subprocess, "run", refuse)
    with pytest.raises(OutputError, match="no network") as caught:
        fetch(PACKAGES["noto"], tmp_path)
    assert str(tmp_path / "emoji-datasource-google-16.0.0.tgz") in str(caught.value)


def test_damaged_archives_are_our_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tgz"
    path.write_bytes(b"no archive")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_members(path, lambda name: True)


def test_aligning_keeps_proportions_and_centres() -> None:
    image = Image.new("RGBA", (100, 100))
    image.paste((10, 20, 30, 255), (60, 10, 80, 50))  # 20 x 40
    found = np.asarray(align(image))
    filled = np.argwhere(found[..., 3] > 127)
    assert filled.min(axis=0).tolist() == [0, 16]
    assert filled.max(axis=0).tolist() == [63, 47]
    inner = found[4:60, 20:44]
    assert np.abs(inner.astype(int) - [10, 20, 30, 255]).max() <= 1


def test_colours_of_transparent_pixels_do_not_bleed_into_the_edge() -> None:
    y, x = np.mgrid[:200, :200] - 99.5
    values = np.zeros((200, 200, 4), np.uint8)
    values[...] = (0, 255, 0, 0)
    values[x**2 + y**2 < 90**2] = (255, 0, 0, 255)
    found = np.asarray(align(Image.fromarray(values)))
    solid = found[found[..., 3] > 64]
    assert solid[:, 0].min() >= 250
    assert solid[:, 1].max() <= 5


def test_an_empty_picture_stays_empty() -> None:
    assert np.asarray(align(Image.new("RGBA", (8, 8)))).max() == 0


def test_drawn_pictures_differ_by_subject_and_style() -> None:
    gallery = drawn_gallery(first_subjects(20))
    seen = {image.tobytes() for image in gallery.pictures.values()}
    assert len(seen) == 20 * len(STYLES)


def test_subjects_are_named_once_and_read_well() -> None:
    assert len({subject.name for subject in SUBJECTS}) == len(SUBJECTS) >= 200
    assert len({subject.code for subject in SUBJECTS}) == len(SUBJECTS)
    phrases = {subject.name: subject.phrase for subject in SUBJECTS}
    assert phrases["apple"] == "an apple"
    assert phrases["ice cream"] == "an ice cream"
    assert phrases["grapes"] == "grapes"
    assert phrases["dog"] == "a dog"


@pytest.mark.parametrize("count", [7, len(SUBJECTS) + 1])
def test_too_few_and_too_many_subjects_are_refused(count: int) -> None:
    with pytest.raises(UsageError, match="this many subjects"):
        first_subjects(count)
