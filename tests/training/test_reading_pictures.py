"""Pictures of other depths, colours and profiles: right, or said."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from paramerge.errors import FileFormatError
from paramerge.training.pictures import captions_of, read_picture


def grey(path: Path) -> float:
    pixels = read_picture(path, 16).pixels
    assert (pixels == pixels[0, 0, 0]).all()
    return float(pixels[0, 0, 0])


@pytest.mark.parametrize("value", [0, 1000, 32896, 65535])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits(name: str, value: int, tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), value, np.uint16)).save(tmp_path / name)
    assert grey(tmp_path / name) == round(value / 257)


def test_numbers_of_a_float_picture(tmp_path: Path) -> None:
    Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert grey(tmp_path / "a.tif") == 128
    Image.fromarray(np.full((16, 16), 200.0, np.float32)).save(tmp_path / "b.tif")
    with pytest.raises(FileFormatError, match="beyond black and white") as caught:
        read_picture(tmp_path / "b.tif", 16)
    assert (caught.value.expected, caught.value.found) == ("0 to 1", "200 to 200")
    Image.fromarray(np.full((16, 16), 70_000, np.int32)).save(tmp_path / "c.tif")
    with pytest.raises(FileFormatError, match="beyond black and white"):
        read_picture(tmp_path / "c.tif", 16)


def swapped_profile() -> bytes:
    """The profile of a screen whose red primary is sRGB's green and the other way round."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ", 128), profile.index(b"gXYZ", 128)
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_applied(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (255, 0, 0)).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=swapped_profile())
    red, green, blue = read_picture(tmp_path / "a.png", 16).pixels[3, 3].tolist()
    assert green > 240
    assert max(red, blue) < 40
    image.save(tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png", 16).pixels[3, 3].tolist() == [255, 0, 0]


def test_transparency_is_white_with_a_profile_too(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(tmp_path / "a.png", icc_profile=profile)
    assert (read_picture(tmp_path / "a.png", 16).pixels == 255).all()


def test_a_profile_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16), (10, 20, 30)).save(tmp_path / "a.png", icc_profile=b"no profile at all")
    with pytest.warns(UserWarning, match=r"a\.png: its colour profile is not applied"):
        pixels = read_picture(tmp_path / "a.png", 16).pixels
    assert pixels[0, 0].tolist() == [10, 20, 30]


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    (tmp_path / "a.txt").write_text("a dog", encoding="utf-8-sig")
    assert captions_of([tmp_path / "a.png"]) == ("a dog",)
