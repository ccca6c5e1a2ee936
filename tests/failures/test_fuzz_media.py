"""Real media, damaged more than two thousand times: never a crash, a hang, memory without bound, or another error."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from media_files import picture, tone, write_image, write_sound, write_video

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
REAL = [
    "mdn_bear.mp3",
    "mdn_bear.ogg",
    "bear.opus",
    "bear.m4a",
    "crystal_vp9_opus.webm",
    "chaplin_flv1_mp3.flv",
    "grid_bbaf2n.mpg",
    "elf_h264_aac.mov",
    "tc_av1_video.mkv",
    "tc_h265_video.mp4",
    "crystal_theora_vorbis.ogv",
    "crystal_mpeg4_mp3.avi",
    "nasa_mpeg2_mp2.ts",
    "mp_no_duration.webm",
]
MADE = ["a.wav", "a.flac", "a.aiff", "a.au", "a.mp4", "a.mkv", "a.jpg", "a.png", "a.bmp", "a.gif", "a.tiff", "a.webp"]
ROUNDS = int(os.environ.get("AVSSL_FUZZ_ROUNDS", "80"))  # for each file: 26 x 80 = 2080
SECONDS = 30.0  # that one damaged file may take
MEMORY = 1 << 30  # bytes that the process may hold; it starts with about 0.1 GiB


def _source(name: str, folder: Path) -> Path:
    path = folder / name
    if path.suffix in (".wav", ".flac", ".aiff", ".au"):
        return write_sound(path, tone(1.5, channels=2))
    if path.suffix in (".mp4", ".mkv"):
        return write_video(path, 20, sound=tone(2.0))
    return write_image(path, picture(30))


@pytest.mark.parametrize("name", [*REAL, *MADE])
def test_damaged_media_are_refused_or_read_but_never_crash_hang_or_swell(name, tmp_path, request):
    if name in MADE:
        source = _source(name, tmp_path)
    else:
        source = request.getfixturevalue("shared_data") / "media" / name
    base = 1000 * [*REAL, *MADE].index(name)
    command = [
        sys.executable,
        str(Path(__file__).with_name("media_fuzz.py")),
        str(source),
        str(tmp_path / f"damaged{source.suffix}"),
        str(base),
        str(base + ROUNDS),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "stderr", "w+b") as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        try:
            last = _supervise(child)
            code = child.wait(SECONDS)
        finally:
            child.kill()
            child.wait()
        errors.seek(0)
        tail = errors.read()[-2000:].decode(errors="replace")
    assert code == 0 and last == "done", f"{source} damaged with seed {last}: exit code {code}\n{tail}"
    assert not tail.strip(), f"decoders talk on stderr: {tail}"


def _supervise(child: subprocess.Popen) -> str:
    """The last line of the child. Fails the test when it stops making progress or takes too much memory."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            lines.put(line.decode().strip())

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    process, last, since = psutil.Process(child.pid), "start", time.monotonic()
    while child.poll() is None:
        try:
            last, since = lines.get(timeout=0.1), time.monotonic()
        except queue.Empty:
            assert time.monotonic() - since < SECONDS, f"seed {last} hangs"
        try:
            assert process.memory_info().rss < MEMORY, f"seed {last} takes {process.memory_info().rss >> 20} MiB"
        except psutil.NoSuchProcess:
            break
    child.wait()
    reader.join(SECONDS)
    while not lines.empty():
        last = lines.get()
    return last
