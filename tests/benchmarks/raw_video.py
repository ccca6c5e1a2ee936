"""Training straight from videos, against extracting sound and frames first: one epoch of loading, side by side.

    python tests/benchmarks/raw_video.py FOLDER [--clips 200] [--seconds 10] [--json]

The audio-visual files of FOLDER, repeated to `clips` items; each item is one random frame and a window of sound, as a
frontend asks for them (224 pixels, 16 kHz mono). Three ways, on one core each:

- raw: decoded from the video, every time;
- extract, then load: the whole sound to a 16 kHz wav and ten JPEG frames with a short side of 224 per item, written
  once, then loaded (soundfile and Pillow, nothing else);
- prepared: loaded from what `avssl data prepare` writes.

Times are CPU seconds, so that a busy machine does not blur them. Ratios: raw against extract + load must not exceed 1,
nor prepared against load alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from avssl.data import container as containers
from avssl.data.clip import AudioRequest, FramesRequest, Row
from avssl.data.decode import decode_audio, decode_frames
from avssl.data.manifest import read_rows
from avssl.data.prepare import prepare
from avssl.data.resample import mono, resample
from avssl.data.scan import scan

RATE, SIZE, FRAMES = 16_000, 224, 10


def load(rows: list[Row], seconds: float, rng: np.random.Generator) -> None:
    """One epoch as the data workers do it: the request first, then only what it asks for."""
    for row in rows:
        length = row.duration or 0.0
        start = float(rng.uniform(0, max(0.0, length - seconds)))
        wave = decode_audio(row.parts["audio"], AudioRequest(start, seconds))
        resample(mono(wave.samples), wave.rate, RATE)
        decode_frames(row.parts["vision"], FramesRequest(fractions=(float(rng.random()),), size=SIZE))


def extract(rows: list[Row], out: Path) -> list[tuple[Path, list[Path]]]:
    """Everything decoded from the beginning to the end, as extraction scripts do."""
    made = []
    for n, row in enumerate(rows):
        path = str(row.parts["vision"])
        wave = decode_audio(path)
        wav = out / f"{n}.wav"
        soundfile.write(wav, resample(mono(wave.samples), wave.rate, RATE), RATE, subtype="PCM_16")
        with containers.media(path) as media:
            stream = containers.need(media, media.video, "video")
            count = sum(1 for _ in containers.frames_of(media.container, stream, []))
        wanted = {int(i * count / FRAMES) for i in range(FRAMES)}
        files = []
        with containers.media(path) as media:
            stream = containers.need(media, media.video, "video")
            for i, frame in enumerate(containers.frames_of(media.container, stream, [])):
                if i in wanted:
                    files.append(out / f"{n}-{i}.jpg")
                    _scaled(frame.to_image()).save(files[-1], quality=90)
        made.append((wav, files))
    return made


def _scaled(image: Image.Image) -> Image.Image:
    factor = min(1.0, SIZE / min(image.size))
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def load_extracted(items: list[tuple[Path, list[Path]]], seconds: float, rng: np.random.Generator) -> None:
    for wav, frames in items:
        samples = soundfile.read(wav, dtype="float32")[0]
        start = int(rng.integers(0, max(1, len(samples) - round(seconds * RATE))))
        samples[start : start + round(seconds * RATE)].copy()
        np.asarray(Image.open(frames[int(rng.integers(len(frames)))]).convert("RGB"))


def measure(folder: str, clips: int, seconds: float) -> dict[str, float]:
    files = [r for r in scan(read_rows(folder), depth="headers").rows if {"audio", "vision"} <= set(r.parts)]
    rows = [files[i % len(files)] for i in range(clips)]
    load(files[:2], seconds, np.random.default_rng(0))  # imports and kernels
    out: dict[str, float] = {"files": len(files), "clips": clips}

    def timed(name: str, work):  # type: ignore[no-untyped-def]
        begin = time.process_time()
        result = work()
        out[name] = time.process_time() - begin
        return result

    with tempfile.TemporaryDirectory() as scratch:
        timed("raw_s", lambda: load(rows, seconds, np.random.default_rng(1)))
        (Path(scratch) / "extracted").mkdir()
        items = timed("extract_s", lambda: extract(rows, Path(scratch) / "extracted"))
        timed("load_s", lambda: load_extracted(items, seconds, np.random.default_rng(1)))
        made, _ = prepare(files, Path(scratch) / "prepared")
        ready = [made[i % len(made)] for i in range(clips)]
        timed("prepared_s", lambda: load(ready, seconds, np.random.default_rng(1)))
    out["raw / (extract + load)"] = out["raw_s"] / (out["extract_s"] + out["load_s"])
    out["prepared / load"] = out["prepared_s"] / out["load_s"]
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = measure(given.folder, given.clips, given.seconds)
    print(json.dumps(found, indent=1) if given.json else "\n".join(f"{k:26} {v:.3f}" for k, v in found.items()))
