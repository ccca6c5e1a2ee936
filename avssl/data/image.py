"""Still images: any mode to upright 8-bit RGB."""

from __future__ import annotations

import math
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from avssl.data import container as containers
from avssl.data.clip import Limits, Probe
from avssl.data.source import bad, opened
from avssl.errors import DataError

# What Pillow's readers raise on damaged files
DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    MemoryError,
    ZeroDivisionError,
    NotImplementedError,
    AttributeError,
    RuntimeError,
)
ORIENTATION = 0x0112  # EXIF tag
TURNED = (5, 6, 7, 8)  # its values that exchange width and height


@contextmanager
def _image(path: str) -> Iterator[Any]:
    """An open Pillow image. Raises DataError for whatever goes wrong with it."""
    from PIL import Image, UnidentifiedImageError

    with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damage that it mends, and of bombs at sizes of its own
        try:
            with Image.open(file) as image:
                yield image
        except DataError:
            raise
        except UnidentifiedImageError:
            raise bad(path, "the image cannot be decoded: its format is not recognised") from None
        except Image.DecompressionBombError:
            raise bad(path, "is too large an image") from None
        except DAMAGE as error:
            raise bad(path, f"the image cannot be decoded: {error or type(error).__name__}") from None


def decode_image(path: str, size: int | None, limits: Limits) -> np.ndarray:
    """(H, W, 3) uint8: EXIF orientation applied, grey, palette, CMYK and 16 bit converted, alpha over white.

    size: short side that is enough; larger images are scaled down to it, bicubic with antialiasing.
    Raises DataError for what is no image, is cut off, or exceeds the limits.
    """
    from PIL import Image, ImageOps

    with _image(path) as image:
        width, height = image.size
        containers.check_size(path, width, height, limits)
        if size is not None and image.format == "JPEG":
            image.draft("RGB", (size, size))  # scales by powers of two while decoding, never below
        image.load()
        turned = image.getexif().get(ORIENTATION, 1) != 1
        picture = _rgb(ImageOps.exif_transpose(image) if turned else image)
        if size is not None and min(picture.size) > size:
            factor = size / min(picture.size)
            picture = picture.resize(
                tuple(max(size, round(s * factor)) for s in picture.size), Image.Resampling.BICUBIC
            )
        return np.asarray(picture, dtype=np.uint8)


def probe_image(path: str) -> Probe:
    """Size and format of an image, upright, from its header."""
    with _image(path) as image:
        width, height = image.size
        if image.getexif().get(ORIENTATION, 1) in TURNED:
            width, height = height, width
        return Probe(
            frozenset({"vision"}), width=width, height=height, frames=1, codec={"vision": (image.format or "").lower()}
        )


def _rgb(image: Any) -> Any:
    """8-bit RGB of a Pillow image of any mode."""
    from PIL import Image

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float64)
        top = 65535.0 if image.mode != "F" else max(1.0, float(np.nanmax(values, initial=1.0)))
        grey = np.clip(np.nan_to_num(values) * (255.0 / top), 0, 255)
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def pick(count: int, total: int) -> list[int]:
    """The middles of `count` equal parts of `total` things."""
    return [min(total - 1, math.floor((i + 0.5) * total / count)) for i in range(count)]
