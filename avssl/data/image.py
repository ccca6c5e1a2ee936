"""Still images: any mode to upright 8-bit RGB."""

from __future__ import annotations

import math
import os
import struct
import warnings

import numpy as np

from avssl.data import container as containers
from avssl.data.clip import Limits
from avssl.data.source import bad, opened


def decode_image(path: str, size: int | None, limits: Limits) -> np.ndarray:
    """(H, W, 3) uint8: EXIF orientation applied, grey, palette, CMYK and 16 bit converted, alpha over white.

    size: short side that is enough; larger images are scaled down to it, bicubic with antialiasing.
    Raises DataError for what is no image, is cut off, or exceeds the limits.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    with opened(path) as descriptor, os.fdopen(os.dup(descriptor), "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of bombs at sizes of its own; ours are checked next
        try:
            with Image.open(file) as image:
                containers.check_size(path, *image.size, limits)
                if size is not None and image.format == "JPEG":
                    image.draft("RGB", (size, size))  # scales by powers of two while decoding, never below
                image.load()
                upright = ImageOps.exif_transpose(image)
                picture = _rgb(upright)
                if size is not None and min(picture.size) > size:
                    factor = size / min(picture.size)
                    wanted = tuple(max(size, round(s * factor)) for s in picture.size)
                    picture = picture.resize(wanted, Image.Resampling.BICUBIC)
                return np.asarray(picture, dtype=np.uint8)
        except (UnidentifiedImageError, Image.DecompressionBombError) as error:
            kind = "is no image" if isinstance(error, UnidentifiedImageError) else "is too large an image"
            raise bad(path, kind) from None
        except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError,
                struct.error, MemoryError, ZeroDivisionError, NotImplementedError, AttributeError,
                RuntimeError) as error:
            raise bad(path, f"the image cannot be decoded: {error or type(error).__name__}") from None



def _rgb(image):  # type: ignore[no-untyped-def]
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
