"""Is it the same content? Digests that do not depend on the container, so that a copy under another name is found."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from avssl.data.clip import AudioRequest, FramesRequest, Limits, Row
from avssl.data.decode import decode_audio, decode_frames
from avssl.data.resample import mono
from avssl.data.workers import Blame, each
from avssl.errors import DataError
from avssl.files import sha256

GRID = 16  # differences of neighbouring cells of a 16 x 17 picture: 256 bits
SMALL = 64  # pixels of the short side up to which only equal pictures are copies: digits and icons look alike
SECONDS = 60.0  # of the sound that is looked at


def fingerprint(row: Row, limits: Limits = Limits()) -> dict[str, str]:
    """Modality -> digest of a row's content; parts that cannot be read have none, nor has sound that is silent.

    audio: the samples of its first minute at 16 bits, so that a lossless copy in another format is found; text: its
    words; vision: the pattern of light and dark in the middle picture, so that a re-encoded copy is found as a rule
    (the exact pixels of a small one); other modalities: the bytes of the file.
    """
    out = {}
    for modality, source in row.parts.items():
        try:
            if modality == "audio":
                digest = _sound(row, limits)
            elif modality == "vision":
                digest = _picture(row, limits)
            elif isinstance(source, str) and modality == "text":
                digest = _digest(" ".join(source.lower().split()).encode("utf-8", "surrogateescape"))
            else:
                digest = _bytes(source)
        except (DataError, OSError):
            continue
        if digest:
            out[modality] = digest
    return out


def _digest(*data: Any) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in data:
        state.update(part)
    return state.hexdigest()


def _sound(row: Row, limits: Limits) -> str:
    wish = AudioRequest(seconds=min(SECONDS, limits.max_seconds))
    wave = decode_audio(row.parts["audio"], wish, start=row.start, end=row.end, limits=limits)
    samples = np.clip(np.rint(mono(wave.samples) * 32768), -32768, 32767).astype("<i2")
    return _digest(str(wave.rate).encode(), samples) if samples.any() else ""


def _picture(row: Row, limits: Limits) -> str:
    from PIL import Image

    frames = decode_frames(row.parts["vision"], FramesRequest(count=1), start=row.start, end=row.end, limits=limits)
    if min(frames.pixels.shape[1:3]) <= SMALL:
        return _digest(str(frames.pixels.shape).encode(), np.ascontiguousarray(frames.pixels[0]))
    small = Image.fromarray(frames.pixels[0]).convert("L").resize((GRID + 1, GRID), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    if int(grey.max()) - int(grey.min()) < 8:
        return ""  # a blank picture says nothing about where it is from
    return _digest(np.packbits(grey[:, 1:] > grey[:, :-1]))


def _bytes(source: Any) -> str:
    return _digest(*[sha256(Path(p)).encode() for p in (source if isinstance(source, tuple) else (source,))])


def fingerprints(rows: Sequence[Row], workers: int = 0, limits: Limits = Limits()) -> list[dict[str, str]]:
    """The digests of every row, in order; nothing for a row whose decoder crashed or hung."""
    return list(each(rows, partial(fingerprint, limits=limits), _unread, workers))


def _unread(row: Row, blame: Blame) -> dict[str, str]:
    return {}
