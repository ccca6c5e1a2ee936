"""Sound of any file as float32, channels kept: soundfile for what libsndfile reads, PyAV for the rest."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from avssl.data import container as containers
from avssl.data.clip import Absent, AudioRequest, Limits, Source, Waveform
from avssl.data.source import bad, head, is_image, one_path, opened, shown
from avssl.words import counted

BLOCK = 1 << 18  # frames read at a time: memory follows what a file holds, not what its header says
PREROLL = 0.5  # seconds decoded before a window, for codecs that remember (Opus 80 ms, AAC one frame)
MATROSKA = b"\x1a\x45\xdf\xa3"
CONTAINERS = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")  # at byte 4 of QuickTime


def decode_audio(
    source: Source,
    request: AudioRequest | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    limits: Limits = Limits(),
) -> Waveform:
    """The window `request` of the row's window [start, end), seconds from the beginning of the media.

    Returns (C, L) float32 at the file's own rate, finite. `Waveform.start` > 0 when the sound begins later than the
    window: nothing is invented before it. A valid file without samples gives L = 0 when all of it is asked for.
    Raises Absent when the file has no sound, or none in the window; DataError when it is damaged, holds values that are
    not finite, or exceeds the limits.
    """
    path = one_path(source)
    wish = request or AudioRequest()
    first = (start or 0.0) + wish.start
    last = end
    if wish.seconds is not None:
        last = first + wish.seconds if end is None else min(end, first + wish.seconds)
    if first < 0 or (last is not None and last <= first):
        raise bad(
            path,
            f"the window from {first:g} s to {'the end' if last is None else f'{last:g} s'} is empty",
            "check start and end",
        )
    wave = _soundfile(path, first, last, limits)
    if wave is None:
        wave = _pyav(path, first, last, limits)
    if not np.isfinite(wave.samples).all():
        count = int((~np.isfinite(wave.samples)).sum())
        raise bad(path, f"{count} of its samples are not finite (NaN or infinity)")
    shift = wave.start - first
    return Waveform(wave.samples, wave.rate, wish.start + shift)


def _window(
    path: str, first: float, last: float | None, rate: int, channels: int, limits: Limits
) -> tuple[int, int | None]:
    """First sample and sample count (None = to the end) of a window, checked against the limits."""
    containers.check_rate(path, rate, channels, limits)
    begin = round(first * rate)
    count = None if last is None else max(1, round(last * rate) - begin)
    if count is not None:
        check_length(path, count, rate, channels, limits)
    return begin, count


def check_length(path: str, count: int, rate: int, channels: int, limits: Limits) -> None:
    """Raises DataError for more sound than may be decoded at once."""
    if count > limits.max_seconds * rate:
        raise bad(
            path,
            f"more than {limits.max_seconds:g} s of sound at once (data.max_seconds)",
            "give windows (start, end), or raise data.max_seconds",
        )
    if count * channels * 4 > limits.max_bytes:
        raise bad(path, f"its sound takes more than {limits.max_bytes} bytes at once", "give shorter windows")


def _soundfile(path: str, first: float, last: float | None, limits: Limits) -> Waveform | None:
    """Through libsndfile; None when it does not know the format."""
    import soundfile

    with opened(path) as descriptor:
        start = head(descriptor)
        if is_image(start):
            raise Absent(f"{shown(path)}: is an image, it has no sound", fix="leave it out")
        if not for_libsndfile(start):
            return None
        try:
            file = soundfile.SoundFile(descriptor, closefd=False)
        except (soundfile.LibsndfileError, RuntimeError, TypeError):
            return None
        with file:
            begin, count = _window(path, first, last, file.samplerate, file.channels, limits)
            if file.frames == 0:
                if promised(descriptor):
                    raise bad(path, "its header promises samples, but there are none")
                if begin:
                    raise Absent(f"{shown(path)}: has no sound at all", fix="leave it out")
            try:
                if begin:
                    if begin >= file.frames:
                        _beyond(path, first, file.frames / file.samplerate)
                    _skip(file, begin)
                samples = _read(path, file, count, limits)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise bad(path, f"cannot be decoded: {error}") from None
            if samples.shape[1] == 0 and file.frames:
                raise bad(path, f"its header promises {file.frames} samples, but none can be decoded")
            return Waveform(samples, file.samplerate, begin / file.samplerate)


def for_libsndfile(first: bytes) -> bool:
    """Whether to try libsndfile on a file with these first bytes. Not on MP3: after a seek its decoder gives a quarter
    of a second of nothing, and it writes to stderr."""
    mpeg = first[:3] == b"ID3" or (first[:1] == b"\xff" and first[1:2] >= b"\xe0")
    return not mpeg and first[4:8] not in CONTAINERS and not first.startswith(MATROSKA)


def _skip(file: Any, frames: int) -> None:
    """Go on to a frame; what cannot be sought (GSM and other codecs of telephones) is read and dropped."""
    if file.seekable():
        file.seek(frames)
        return
    while frames > 0 and (got := len(file.read(min(BLOCK, frames), dtype="float32"))):
        frames -= got


def _read(path: str, file: Any, count: int | None, limits: Limits) -> np.ndarray:
    """(C, L) float32, at most `count` frames (None = all there are, within the limits)."""
    blocks, total = [], 0
    while count is None or total < count:
        block = file.read(BLOCK if count is None else min(BLOCK, count - total), dtype="float32", always_2d=True)
        if not len(block):
            break
        total += len(block)
        check_length(path, total, file.samplerate, file.channels, limits)
        blocks.append(block)
    if not blocks:
        return np.zeros((file.channels, 0), np.float32)
    return np.ascontiguousarray((blocks[0] if len(blocks) == 1 else np.concatenate(blocks)).T)


def promised(descriptor: int) -> bool:
    """Whether a RIFF header without readable samples announces some: a file cut right after its header."""
    import os

    data = os.pread(descriptor, 1 << 16, 0)
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return False
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        if name == b"data":
            return size > 0
        at += 8 + size + size % 2
    return True  # no data chunk at all


def _beyond(path: str, first: float, seconds: float) -> None:
    raise Absent(f"{shown(path)}: has no sound at {first:g} s, it ends at {seconds:.3f} s", fix="check start and end")


SCALE = {"u8": 128.0, "s16": 32768.0, "s32": 2147483648.0, "s64": 9223372036854775808.0, "flt": 1.0, "dbl": 1.0}


def _pyav(path: str, first: float, last: float | None, limits: Limits) -> Waveform:
    """Through FFmpeg. Where a seek lands after the window's beginning (MPEG streams), everything is decoded instead."""
    if first > PREROLL:
        with containers.media(path) as media:
            wave = _track(media, first, last, limits, seek=True)
        if wave is not None:
            return wave
    with containers.media(path) as media:
        wave = _track(media, first, last, limits, seek=False)
    assert wave is not None
    return wave


def _track(media: containers.Media, first: float, last: float | None, limits: Limits, *, seek: bool) -> Waveform | None:
    """The window of the sound track, placed by its time stamps (some containers round them to 1 ms). None: the seek
    went past its beginning, or nothing came after it."""
    path, stream = media.path, containers.need(media, media.audio, "sound")
    containers.only(media, stream)
    rate, channels = stream.codec_context.sample_rate, stream.codec_context.channels
    begin, count = _window(path, first, last, rate, channels, limits)
    if seek and not _sought(media, stream, first):
        return None
    blocks: list[np.ndarray] = []
    failed: list[str] = []
    position, total, latest = 0, 0, 0.0  # first sample kept, samples kept, seconds reached
    for frame in containers.frames_of(media.container, stream, failed):
        if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
            if blocks:
                raise bad(
                    path,
                    f"its sound changes from {counted(channels, 'channel')} at {rate} Hz to "
                    f"{counted(frame.layout.nb_channels, 'channel')} at {frame.sample_rate} Hz",
                    "convert the file",
                )
            rate, channels = frame.sample_rate, frame.layout.nb_channels  # the header was wrong
            begin, count = _window(path, first, last, rate, channels, limits)
        samples = _float(frame, channels)
        if not blocks:
            at = latest if frame.time is None else frame.time - media.origin
            if seek and latest == 0.0 and at > first:
                return None
            latest = at + samples.shape[1] / rate
            position = max(begin, place := round(at * rate))
            samples = samples[:, position - place :]
            if samples.shape[1] == 0:
                continue
        if count is not None:
            samples = samples[:, : max(0, begin + count - position - total)]
            if samples.shape[1] == 0:
                break
        total += samples.shape[1]
        check_length(path, total, rate, channels, limits)
        blocks.append(samples)
    if not blocks and seek:
        return None
    if not blocks and failed:
        raise bad(path, f"none of its sound can be decoded: {failed[0]}")
    if not blocks and latest > 0:
        _beyond(path, first, latest)
    if not blocks:
        raise bad(path, "its sound track holds no samples")
    joined = blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1)
    return Waveform(np.ascontiguousarray(joined), rate, position / rate)


def _sought(media: containers.Media, stream: Any, first: float) -> bool:
    import av

    try:
        stamp = int((first + media.origin - PREROLL) / stream.time_base)
        media.container.seek(stamp, stream=stream, backward=True)
    except av.error.FFmpegError:
        return False
    return True


def _float(frame: Any, channels: int) -> np.ndarray:
    """(C, L) float32 of a decoded frame in any sample format."""
    name = frame.format.name.rstrip("p") if frame.format.is_planar else frame.format.name
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, channels).T
    if name == "u8":
        samples = samples.astype(np.float32) - 128.0
    scale = SCALE[name]
    return samples.astype(np.float32) if scale == 1.0 else samples.astype(np.float32) * np.float32(1.0 / scale)
