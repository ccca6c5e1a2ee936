"""Small real media for tests: written with the libraries that users' tools use."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def tone(seconds: float = 1.0, rate: int = 16_000, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """(C, L) float32: a sine, another pitch in each channel."""
    t = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * hertz * (c + 1) * t) for c in range(channels)]).astype(np.float32)


def write_sound(path: Path, samples: np.ndarray, rate: int = 16_000, **options: str) -> Path:
    """samples: (C, L)."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(path), samples.T, rate, **options)
    return path


def picture(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """(H, W, 3) uint8: a grey level that says which frame it is, with a white square in the upper left corner."""
    pixels = np.full((height, width, 3), 16 + number * 4, np.uint8)
    pixels[: height // 4, : width // 4] = 255
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """Which `picture` this is, read from its middle."""
    h, w = pixels.shape[:2]
    return round((float(pixels[h // 2 : h - 4, w // 2 : w - 4].mean()) - 16) / 4)


def write_video(
    path: Path,
    frames: int = 20,
    fps: int = 10,
    *,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    codec: str = "mpeg4",
    gop: int = 8,
    width: int = 64,
    height: int = 48,
    options: dict | None = None,
) -> Path:
    """Frame n shows `picture(n)`. sound: (1, L) float32, or None for a silent film."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        video = out.add_stream(codec, rate=fps, options=options or {})
        video.width, video.height, video.pix_fmt, video.gop_size = width, height, "yuv420p", gop
        video.bit_rate = 4_000_000
        audio = out.add_stream("aac", rate=rate, layout="mono") if sound is not None else None
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(n, width, height), format="rgb24")
            for packet in video.encode(frame):
                out.mux(packet)
        for packet in video.encode(None):
            out.mux(packet)
        if audio is not None and sound is not None:
            step = 1024
            for at in range(0, sound.shape[1] - step + 1, step):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound[:1, at : at + step]), format="fltp", layout="mono"
                )
                frame.sample_rate, frame.pts = rate, at
                for packet in audio.encode(frame):
                    out.mux(packet)
            for packet in audio.encode(None):
                out.mux(packet)
    return path


def write_image(path: Path, pixels: np.ndarray | None = None, **options: object) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(10) if pixels is None else pixels).save(path, **options)
    return path
