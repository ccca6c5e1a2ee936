"""Images of any mode become upright 8-bit RGB; what is no image, cut off or too large is refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from media_files import picture, write_image
from PIL import Image

from avssl.data.clip import FramesRequest, Limits
from avssl.data.decode import decode_frames
from avssl.errors import DataError


def _decode(path, **options):  # type: ignore[no-untyped-def]
    return decode_frames(str(path), FramesRequest(**options)).pixels[0]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK", "YCbCr", "P", "1", "RGBA", "LA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    source = Image.fromarray(picture(30)).convert(mode)
    suffix = "tiff" if mode in ("CMYK", "YCbCr") else "png"
    source.save(tmp_path / f"a.{suffix}")
    found = _decode(tmp_path / f"a.{suffix}")
    assert found.shape == (48, 64, 3) and found.dtype == np.uint8
    if mode not in ("1", "P"):  # these two dither
        np.testing.assert_allclose(found.astype(int), picture(30).astype(int), atol=3)


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    np.testing.assert_allclose(_decode(tmp_path / "a.png")[..., 0].astype(float), values / 257, atol=1)


def test_transparency_shows_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = _decode(tmp_path / "a.png")
    assert (found[:2] == 0).all() and (found[2:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(picture(20))
    undo = {
        2: "FLIP_LEFT_RIGHT",
        3: "ROTATE_180",
        4: "FLIP_TOP_BOTTOM",
        5: "TRANSPOSE",
        6: "ROTATE_90",
        7: "TRANSVERSE",
        8: "ROTATE_270",
    }
    stored = upright.transpose(getattr(Image.Transpose, undo[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(_decode(tmp_path / "a.png"), picture(20))


def test_size_is_the_short_side_and_never_scales_up(tmp_path):
    path = write_image(tmp_path / "a.jpg", picture(20, 640, 480), quality=95)
    assert _decode(path, size=100).shape == (100, 133, 3)
    assert _decode(path, size=5000).shape == (480, 640, 3)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    side = 60_000

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    with pytest.raises(DataError, match=r"its pictures are 60000x60000, more than data.max_pixels|too large"):
        _decode(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"its pictures are 64x48, more than data.max_pixels = 100"):
        decode_frames(str(write_image(tmp_path / "a.png")), limits=Limits(max_pixels=100))


def test_half_an_image_is_refused(tmp_path):
    whole = write_image(tmp_path / "a.jpg", picture(20, 640, 480)).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"half.jpg: the image cannot be decoded: image file is truncated"):
        _decode(tmp_path / "half.jpg")
