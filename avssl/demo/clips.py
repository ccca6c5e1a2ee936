"""A folder of small videos with sound, as one would have it on disk: SPLIT/CLASS/NUMBER.mp4."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np

from avssl.demo.pictures import SIDE, make_frames
from avssl.demo.sounds import RATE, SOUNDS, make_sound

CLASSES = tuple(sorted(SOUNDS))
SECONDS = 1.0
FPS = 8


def make_clips(folder: Path, train: int, test: int, seed: int = 0) -> int:
    """Write `train` + `test` clips of each class below `folder`; how many there are. Every clip has its own seed, so
    that a part of the set is the same whatever the rest is."""
    jobs = [
        (folder / split / kind / f"{i:04}.mp4", kind, (seed, s, c, i))
        for s, (split, count) in enumerate((("train", train), ("test", test)))
        for c, kind in enumerate(CLASSES)
        for i in range(count)
    ]
    for path in {job[0].parent for job in jobs}:
        path.mkdir(parents=True, exist_ok=True)
    workers = min(4, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers) as pool:
        for _ in pool.map(_make, jobs, chunksize=16):
            pass
    return len(jobs)


def _make(job: tuple[Path, str, tuple[int, ...]]) -> None:
    path, kind, seed = job
    make_clip(path, kind, np.random.default_rng(seed))


def make_clip(path: Path, kind: str, rng: np.random.Generator) -> None:
    """One clip: a thing of the class moves and sounds. A larger one sounds lower, and it swells as it sounds."""
    size = rng.uniform(0.24, 0.36)
    pitch = float(np.exp(-2.2 * (size - 0.3) + rng.normal(0, 0.08)))
    wave = make_sound(kind, rng, round(SECONDS * RATE), pitch)
    count = round(SECONDS * FPS)
    power = np.sqrt(np.square(wave[: len(wave) // count * count]).reshape(count, -1).mean(1))
    write_video(path, make_frames(kind, rng, count, size, power / max(1e-9, power.max())), wave)


def write_video(path: Path, frames: np.ndarray, wave: np.ndarray) -> None:
    """An MP4 of (K, H, W, 3) uint8 frames and (L,) float32 sound: H.264 (MPEG-4 where FFmpeg has no x264) and AAC."""
    import av
    from av.audio.stream import AudioStream
    from av.video.stream import VideoStream

    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        video = container.add_stream(
            codec, rate=FPS, options={"preset": "ultrafast", "crf": "18"} if codec == "libx264" else {}
        )
        assert isinstance(video, VideoStream)
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        video.thread_count = 1
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        assert isinstance(audio, AudioStream)
        audio.bit_rate = 64000
        for pixels in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode(None))
        for start in range(0, len(wave), 1024):
            sound = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = RATE, start, Fraction(1, RATE)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
