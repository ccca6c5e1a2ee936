"""Every clip of the page as something to look at and listen to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from avssl.data.clip import AudioRequest, FramesRequest, Row
from avssl.data.workers import default_workers
from avssl.errors import AvsslError
from avssl.report import media

SOUND_BUDGET = 1500.0  # seconds of sound on a page, shared by its clips (about 6 MB) ...
SOUND_MIN, SOUND_MAX = 2.0, 10.0  # ... within these bounds for each
TEXT = 400  # characters of a caption


def previews(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record per row: id, labels, split and, for what it has, "vision" and "audio" (pictures as data URIs; of the
    sound, its spectrogram), "sound" (playable), "text". What cannot be decoded is left out and noted in "missing"."""
    seconds = min(SOUND_MAX, max(SOUND_MIN, SOUND_BUDGET / max(1, len(rows))))
    with ThreadPoolExecutor(default_workers() + 1) as pool:  # decoders and encoders release the interpreter's lock
        return list(pool.map(lambda row: preview(row, seconds), rows))


def preview(row: Row, seconds: float, pixels: int = media.PICTURE) -> dict[str, Any]:
    """The record of one row; its sound is cut to `seconds`, the long side of its picture is `pixels`."""
    out: dict[str, Any] = {"id": row.id, "labels": list(row.labels), "split": row.split}
    makers = {"vision": _vision, "audio": _audio, "text": _text}
    for modality in row.parts:
        if modality not in makers:
            continue
        try:
            out.update(makers[modality](row, seconds, pixels))
        except AvsslError as error:
            out.setdefault("missing", []).append(f"{modality}: {error.message}")
    return out


def _decode(row: Row, modality: str, request: Any) -> Any:
    from avssl.registry import load

    return load("modality", modality, "decode")(row.parts[modality], request, start=row.start, end=row.end)


def _vision(row: Row, seconds: float, pixels: int) -> dict[str, Any]:
    frames = _decode(row, "vision", FramesRequest(count=1, size=pixels))
    return {"vision": media.jpeg(frames.pixels[0], pixels)}


def _audio(row: Row, seconds: float, pixels: int) -> dict[str, Any]:
    wave = _decode(row, "audio", AudioRequest(0.0, seconds))
    mono = wave.samples.mean(0) if wave.samples.size else np.zeros(wave.rate // 10, np.float32)
    return {
        "audio": media.strip(mono, wave.rate, max(1, pixels // media.PICTURE)),
        "sound": media.sound(mono, wave.rate),
        "seconds": round(len(mono) / wave.rate, 2),
    }


def _text(row: Row, seconds: float, pixels: int) -> dict[str, Any]:
    text = _decode(row, "text", None)
    return {"text": text if len(text) <= TEXT else text[: TEXT - 1] + "…"}
