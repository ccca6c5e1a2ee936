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

TINY = 1e-6  # seconds: two time stamps closer than this are one
NEAR = 2.0  # seconds: without a packet index, reading on is taken to be cheaper than seeking
# Seconds before the wanted time to seek to, tried in turn: a seek goes by decoding time, so that it may land on the key
# frame after a B-frame, and in MPEG streams anywhere
BACK = (0.0, 1.0, 4.0, 16.0)


class _Lost(Exception):
    """The quick way did not find a wanted frame: seeking is not reliable here, or packets are damaged."""


def decode_video(
    path: str, request: FramesRequest, *, start: float | None, end: float | None, limits: Limits
) -> Frames:
    """The frames on display at the wanted times: the last one whose time stamp is not later; the first one before that.

    Damaged packets are passed over. Raises Absent when the file has no video (a cover picture is none), DataError when
    nothing can be decoded.
    """
    begin = start or 0.0
    times: list[float] = []
    for back in BACK:
        with containers.media(path) as media:  # a fresh reader: the only rewind that every format keeps
            stream = _stream(media, limits)
            if not times:
                times, moved = wanted_times(media, request, begin, end)
                if moved:
                    continue
            wanted = sorted({begin + t for t in times})
            try:
                return _pictures(media, times, begin, quick(media, stream, wanted, back), request.size, limits)
            except _Lost:
                if wanted[0] <= back:
                    break
    with containers.media(path) as media:
        wanted = sorted({begin + t for t in times})
        return _pictures(media, times, begin, thorough(media, _stream(media, limits), wanted), request.size, limits)


def _stream(media: Media, limits: Limits) -> Any:
    stream = containers.need(media, media.video, "video")
    if stream.codec_context.width or stream.codec_context.height:
        containers.check_size(media.path, stream.codec_context.width, stream.codec_context.height, limits)
    containers.only(media, stream)
    return stream


def wanted_times(media: Media, request: FramesRequest, begin: float, end: float | None) -> tuple[list[float], bool]:
    """Seconds from the start of the window for each wanted frame, and whether the reader was moved to find out."""
    if request.times:
        return list(request.times), False
    if request.indices:
        stamps = [t for t in stamps_of(media) if t >= begin and (end is None or t < end)]
        for index in request.indices:
            if not -len(stamps) <= index < len(stamps):
                raise Absent(
                    f"{shown(media.path)}: has no frame {index}, only {len(stamps)}", fix="ask for fewer frames"
                )
        return [stamps[i] - begin for i in request.indices], True
    seconds, moved = video_end(media)
    length = max(0.0, (seconds if end is None else min(end, seconds)) - begin)
    if request.within is not None:
        length = min(length, request.within)
    places = request.fractions or tuple((i + 0.5) / request.count for i in range(request.count))
    return [f * length for f in places], moved


def video_end(media: Media) -> tuple[float, bool]:
    """When the video ends on our clock; measured from its packets when no header says so (True)."""
    if (seconds := media.video_seconds) is not None:
        return seconds, False
    stamps = stamps_of(media)
    if not stamps:
        raise bad(media.path, "holds no video frames")
    return stamps[-1] + (stamps[-1] - stamps[0]) / max(1, len(stamps) - 1), True


def stamps_of(media: Media) -> list[float]:
    """Presentation times of all frames on our clock, ascending, without decoding. Leaves the reader at its end."""
    stream: Any = media.video
    found = (p.pts if p.pts is not None else p.dts for p in containers.packets_of(media.container, stream))
    stamps = {stamp for stamp in found if stamp is not None}
    return sorted(float(s * stream.time_base) - media.origin for s in stamps)


def quick(media: Media, stream: Any, times: Sequence[float], back: float = 0.0) -> dict[float, Any]:
    """Time -> frame by looking at the packets first: seek, read on to the wanted time, then decode from the last key
    frame before it, passing over frames that no other refers to. Raises _Lost where that finds nothing certain.

    times: ascending, on our clock.
    """
    found: dict[float, Any] = {}
    waiting = list(times)
    run: list[Any] = []  # packets since the last key frame at or before the first waiting time
    group: list[float] = []  # wanted times that this run shows
    sought = _seek(media, stream, waiting[0] - back, 0.0)
    packets = _packets(media, stream)
    while waiting:
        packet = next(packets, None)
        if packet is None:
            group, waiting = group + waiting, []
            break
        if packet.is_keyframe and _time(media, packet) <= waiting[0] + TINY:
            if group:
                found.update(_decode(media, stream, run, group, sought))
                group, sought = [], True
            run = [packet]
        elif run or not sought:
            run.append(packet)
        reached = -math.inf if packet.dts is None else float(packet.dts * stream.time_base) - media.origin
        while waiting and reached > waiting[0] + TINY:  # packets come by dts, and no pts is earlier than its dts
            group.append(waiting.pop(0))
            if waiting and _seek(media, stream, waiting[0] - back, _time(media, packet)):
                found.update(_decode(media, stream, run, group, sought))
                run, group, sought, packets = [], [], True, _packets(media, stream)
                break
    found.update(_decode(media, stream, run, group, sought))
    return found


def _packets(media: Media, stream: Any) -> Any:
    for packet in containers.packets_of(media.container, stream):
        if packet.size == 0:
            continue  # Theora's "repeat the last frame", or the end
        if packet.pts is None:
            raise _Lost
        yield packet


def _time(media: Media, packet: Any) -> float:
    return float(packet.pts * packet.time_base) - media.origin


def _decode(media: Media, stream: Any, run: Sequence[Any], group: Sequence[float], sought: bool) -> dict[float, Any]:
    """Decode a run of packets as far as the wanted times need it."""
    import av

    if not group:
        return {}
    stamps = sorted({p.pts for p in run})
    clock = [float(s * stream.time_base) - media.origin for s in stamps]
    if not stamps or (clock[0] > group[0] + TINY and sought):
        raise _Lost  # the seek landed after the wanted frame
    targets = {t: stamps[max(0, int(np.searchsorted(clock, t + TINY, side="right")) - 1)] for t in group}
    missing = set(targets.values())
    frames: dict[int, Any] = {}
    context = stream.codec_context
    context.flush_buffers()
    try:
        for packet in [*run, None]:
            if packet is not None:
                context.skip_frame = "DEFAULT" if packet.pts in missing else "NONREF"
            for frame in context.decode(packet):
                if frame.pts in missing:
                    frames[frame.pts] = frame
                    missing.discard(frame.pts)
            if not missing:
                break
    except (av.error.FFmpegError, ValueError):
        raise _Lost from None
    finally:
        context.skip_frame = "DEFAULT"
    if missing:
        raise _Lost
    context.flush_buffers()
    return {t: frames[s] for t, s in targets.items()}


def _seek(media: Media, stream: Any, then: float, now: float) -> bool:
    """Go to the key frame at or before `then` (on our clock) if that is likely to be ahead of `now`."""
    import av

    stamp = int((then + media.origin) / stream.time_base)
    index = getattr(stream, "index_entries", None)
    if index is not None and len(index) > 0:
        at = index.search_timestamp(stamp, backward=True, any_frame=False)
        ahead = at >= 0 and float(index[at].timestamp * stream.time_base) - media.origin > now + TINY
    else:
        ahead = then - now > NEAR
    if not ahead:
        return False
    try:
        media.container.seek(stamp, stream=stream, backward=True)
    except av.error.FFmpegError:
        return False  # not seekable: reading goes on where it is
    return True


def thorough(media: Media, stream: Any, times: Sequence[float]) -> dict[float, Any]:
    """Time -> frame by decoding everything from the beginning; packets that fail are passed over."""
    found: dict[float, Any] = {}
    waiting = list(times)
    failed: list[str] = []
    previous, now = None, -math.inf
    for frame in containers.frames_of(media.container, stream, failed):
        now = now if frame.pts is None else float(frame.pts * (frame.time_base or stream.time_base)) - media.origin
        while waiting and now > waiting[0] + TINY:
            found[waiting.pop(0)] = previous if previous is not None else frame
        if not waiting:
            return found
        previous = frame
    if previous is None:
        raise bad(media.path, f"none of its video can be decoded: {failed[0]}" if failed else "holds no video frames")
    return found | dict.fromkeys(waiting, previous)  # the last frame stays on display


def _pictures(
    media: Media, times: Sequence[float], begin: float, found: dict[float, Any], size: int | None, limits: Limits
) -> Frames:
    """Convert each frame once; a frame that is wanted several times is repeated."""
    converted: dict[int, np.ndarray] = {}
    pixels, stamps = [], []
    base = media.video.time_base if media.video is not None else None  # frames of a drained decoder do not carry it
    for t in times:
        frame = found[begin + t]
        if id(frame) not in converted:
            converted[id(frame)] = to_rgb(media.path, frame, size, media.video, limits, len(times))
        pixels.append(converted[id(frame)])
        stamps.append(t if frame.pts is None else float(frame.pts * (frame.time_base or base)) - media.origin - begin)
    if len({p.shape for p in pixels}) > 1:
        raise bad(media.path, "its pictures change size", "convert the file")
    return Frames(np.stack(pixels), tuple(stamps))


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
        raise bad(
            path,
            f"{count} pictures of {width}x{height} take more than {limits.max_bytes} bytes",
            "ask for fewer or smaller frames",
        )
    try:
        rgb = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.BICUBIC, threads=1)
        return upright(rgb.to_ndarray(), frame)
    except (ValueError, OSError) as error:
        raise bad(path, f"a picture cannot be converted: {containers.reason(error)}") from None


def upright(pixels: np.ndarray, frame: Any) -> np.ndarray:
    """Apply the display matrix (quarter turns and mirrors) that phones write."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) >= abs(b) + abs(c):
        pixels = pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    else:
        pixels = pixels.transpose(1, 0, 2)[:: -1 if b < 0 else 1, :: -1 if c < 0 else 1]
    return np.ascontiguousarray(pixels)
