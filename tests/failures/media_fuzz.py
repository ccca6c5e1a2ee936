"""The target of the media fuzzer: run in a process of its own, told which file and which seeds."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from avssl.data.clip import AudioRequest, FramesRequest, Limits
from avssl.data.decode import decode_audio, decode_frames, probe
from avssl.errors import DataError

LIMITS = Limits(max_seconds=60, max_pixels=4_000_000, max_bytes=1 << 27)


def mutate(data: bytes, seed: int) -> bytes:
    """One to eight damages: bytes overwritten, pieces cut out, doubled, moved or inserted, the end lost. Half of them
    strike the first kilobyte, where the headers are."""
    rng = np.random.default_rng(seed)
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        size = max(1, len(out))
        at = int(rng.integers(0, min(size, 1024) if rng.random() < 0.5 else size))
        length = int(min(rng.integers(1, 9) if rng.random() < 0.7 else rng.integers(1, 4096), size - at))
        kind = rng.integers(0, 7)
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            out[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif kind == 2:
            out[at : at + length] = bytes([int(rng.choice([0x00, 0x7F, 0x80, 0xFF]))]) * length
        elif kind == 3:
            del out[at : at + length]
        elif kind == 4:
            out[at:at] = out[at : at + length]
        elif kind == 5:
            out[at:at] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
        elif rng.random() < 0.3:
            del out[max(1, at) :]
    return bytes(out)


def attempt(path: str) -> None:
    """Everything that a scan, a training run and an embedding do with a file. DataError is the only way to fail."""
    calls = (
        lambda: probe(path),
        lambda: decode_audio(path, limits=LIMITS),
        lambda: decode_audio(path, AudioRequest(0.7, 0.5), limits=LIMITS),
        lambda: decode_frames(path, FramesRequest(count=2, size=32), limits=LIMITS),
        lambda: decode_frames(path, FramesRequest(times=(0.9,), size=32), limits=LIMITS),
    )
    for call in calls:
        try:
            part = call()
        except DataError as error:
            assert "\n" not in str(error)
            continue
        samples = getattr(part, "samples", None)
        assert samples is None or np.isfinite(samples).all()


def main(source: str, scratch: str, first: int, last: int) -> None:
    data = Path(source).read_bytes()
    for seed in range(first, last):
        print(seed, flush=True)
        Path(scratch).write_bytes(mutate(data, seed))
        attempt(scratch)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
