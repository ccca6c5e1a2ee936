"""Frames of a video by time stamp: sought, only what is wanted decoded, scaled once, upright, square pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from avssl.data import container as containers
from avssl.data.clip import Absent, Frames, FramesRequest, Limits
from avssl.data.container import Media
from avssl.data.source import bad, shown

NEAR = 2.0  # seconds: without a packet index, decoding on is taken to be cheaper than seeking


def decode_video(path: str, request: FramesRequest, *, start: float | None, end: float | None,
                 limits: Limits) -> Frames:
    """The frames on display at the wanted times: the last one whose time stamp is not later; the first one before that.

    Damaged packets are passed over. Raises Absent when the file has no video (a cover picture is none), DataError when
    nothing can be decoded.
    """
    with containers.media(path) as media:
        stream = containers.need(media, media.video, "video")
        context = stream.codec_context
        if context.width or context.height:
            containers.check_size(path, context.width, context.height, limits)
        containers.only(media, stream)
        begin = start or 0.0
        times = [begin + t for t in wanted_times(media, request, begin, end)]
        found = _decode(media, stream, sorted(set(times)))
        pictures: dict[int, np.ndarray] = {}
        pixels = []
        for t in times:
            frame = found[t]
            if id(frame) not in pictures:
                pictures[id(frame)] = to_rgb(path, frame, request.size, stream, limits, len(set(times)))
            pixels.append(pictures[id(frame)])
        if len({p.shape for p in pixels}) > 1:
            raise bad(path, "its pictures change size", "convert the file")
        return Frames(np.stack(pixels), tuple(_seconds(media, found[t], t) - begin for t in times))


def wanted_times(media: Media, request: FramesRequest, begin: float, end: float | None) -> list[float]:
    """Seconds from the start of the window for each wanted frame."""
    if request.times:
        return list(request.times)
    if request.indices:
        stamps = [t for t in stamps_of(media) if t >= begin and (end is None or t < end)]
        if not stamps:
            raise bad(media.path, "holds no video frames")
        for index in request.indices:
            if not -len(stamps) <= index < len(stamps):
                raise Absent(f"{shown(media.path)}: has no frame {index}, only {len(stamps)}",
                             fix="ask for fewer frames")
        return [stamps[i] - begin for i in request.indices]
    seconds = video_end(media)
    last = seconds if end is None else min(end, seconds)
    length = max(0.0, last - begin)
    if request.within is not None:
        length = min(length, request.within)
    if request.fractions:
        return [f * length for f in request.fractions]
    return [(i + 0.5) * length / request.count for i in range(request.count)]


def video_end(media: Media) -> float:
    """When the video ends on our clock; measured from its packets when no header says so."""
    stream = media.video
    if stream.duration and stream.duration > 0:
        return containers.stream_end(stream) - media.origin
    if media.container.duration and media.container.duration > 0:
        return media.container.duration / 1e6
    stamps = stamps_of(media)
    return (stamps[-1] + (stamps[-1] - stamps[0]) / max(1, len(stamps) - 1)) if stamps else 0.0


def stamps_of(media: Media) -> list[float]:
    """Presentation times of all frames on our clock, ascending, without decoding; the reader is rewound after."""
    import av

    stamps = set()
    try:
        for packet in media.container.demux(media.video):
            stamp = packet.pts if packet.pts is not None else packet.dts
            if stamp is not None:
                stamps.add(stamp)
    except av.error.FFmpegError:
        pass  # the file ends early: what came before counts
    _seek(media, media.video, None)
    return sorted(float(s * media.video.time_base) - media.origin for s in stamps)


def _decode(media: Media, stream: Any, times: Sequence[float]) -> dict[float, Any]:
    """Time -> the decoded frame on display then. `times` ascending, on our clock."""
    half_tick = float(stream.time_base) / 2
    found: dict[float, Any] = {}
    waiting = list(times)
    failed: list[str] = []
    previous: Any = None
    decoded_to = -math.inf
    if waiting[0] > NEAR:
        _seek(media, stream, waiting[0])
    rewound = waiting[0] <= NEAR
    while waiting:
        for frame in containers.frames_of(media.container, stream, failed):
            now = _seconds(media, frame, decoded_to if decoded_to > -math.inf else 0.0)
            if previous is None and not rewound and now > waiting[0] + half_tick:
                break  # the seek landed too late: from the beginning, then
            while waiting and now > waiting[0] + half_tick:
                found[waiting.pop(0)] = previous if previous is not None else frame
            previous, decoded_to = frame, now
            if not waiting:
                break
            if waiting[0] - now > NEAR and _worth_a_seek(media, stream, now, waiting[0]):
                _seek(media, stream, waiting[0])
                break
        else:  # the end: the last frame stays on display
            if previous is None and not rewound:
                pass
            elif previous is None:
                raise bad(media.path, f"none of its video can be decoded: {failed[0]}" if failed
                          else "holds no video frames")
            else:
                found.update(dict.fromkeys(waiting, previous))
                return found
        if waiting and previous is None and not rewound:
            _seek(media, stream, None)
            rewound = True
    return found


def _worth_a_seek(media: Media, stream: Any, now: float, then: float) -> bool:
    """Whether the index knows a key frame between here and there."""
    index = getattr(stream, "index_entries", None)
    if index is None or len(index) == 0:
        return False
    at = index.search_timestamp(int((then + media.origin) / stream.time_base), backward=True, any_frame=False)
    return at >= 0 and float(index[at].timestamp * stream.time_base) - media.origin > now


def _seek(media: Media, stream: Any, seconds: float | None) -> None:
    """To the key frame at or before a time on our clock; None = to the beginning."""
    import av

    try:
        if seconds is None:
            first = stream.start_time if stream.start_time is not None else 0
            media.container.seek(min(first, 0), stream=stream, backward=True)
        else:
            media.container.seek(int((seconds + media.origin) / stream.time_base), stream=stream, backward=True)
    except av.error.FFmpegError:
        pass  # not seekable: reading goes on where it is


def _seconds(media: Media, frame: Any, otherwise: float) -> float:
    return otherwise if frame.pts is None else float(frame.pts * frame.time_base) - media.origin


def to_rgb(path: str, frame: Any, size: int | None, stream: Any, limits: Limits, count: int) -> np.ndarray:
    """(H, W, 3) uint8 of a decoded frame: squared, scaled down to the short side `size` and turned."""
    from av.video.reformatter import Interpolation

    aspect = getattr(stream, "sample_aspect_ratio", None) or 1
    width, height = max(1, round(frame.width * aspect)), frame.height
    containers.check_size(path, width, height, limits)
    if size is not None and min(width, height) > size:
        factor = size / min(width, height)
        width, height = max(size, round(width * factor)), max(size, round(height * factor))
    if width * height * 3 * count > limits.max_bytes:
        raise bad(path, f"{count} pictures of {width}x{height} take more than {limits.max_bytes} bytes",
                  "ask for fewer or smaller frames")
    try:
        rgb = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        return upright(rgb.to_ndarray(), frame)
    except (ValueError, OSError) as error:
        raise bad(path, f"a picture cannot be converted: {containers.reason(error)}") from None


def upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Apply the display matrix (quarter turns and mirrors) that phones write."""
    matrix = next((s for s in frame.side_data if s.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) >= abs(b) + abs(c):
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    else:
        pixels = pixels.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    return np.ascontiguousarray(pixels)
