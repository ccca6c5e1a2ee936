"""Media containers through PyAV: opening, choosing streams, and one clock for all of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from avssl.data.clip import Absent, Limits
from avssl.data.source import bad, opened, shown

# Playlists and scripts (hls, concat, dash, sdp ...) are left out: they would make FFmpeg open other files.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flv,live_flv,mpeg,mpegts,mpegvideo,ogg,wav,w64,rf64,aiff,au,caf,flac,mp3,"
    "aac,loas,ac3,eac3,dts,dtshd,truehd,mlp,amr,amrnb,amrwb,asf,ape,wv,tta,tak,opus,spdif,xwma,voc,sox,nut,mxf,gxf,rm,"
    "dv,ivf,h264,hevc,av1,obu,m4v,vc1,y4m,yuv4mpegpipe,gif,apng,dirac,h263,h261,swf,mpc,mpc8,wtv,webm_dash_manifest,"
    "alaw,mulaw,gsm,adx,smjpeg,mjpeg,cavsvideo,bink,smk,roq,nsv,iff,svx,pva,dsf,iamf"
)


LATE_STREAMS = 10_000  # packets of unannounced streams that are passed over
TIME = re.compile(r"([0-9]+):([0-9]{2}):([0-9]{2}(?:\.[0-9]+)?)")


@dataclass
class Media:
    """An open container with the one video and the one audio stream that we use."""

    path: str
    container: Any
    video: Any | None  # the best one that is no cover picture
    audio: Any | None  # the first one: the sound of the scene
    picture: bool  # it has a cover picture
    origin: float  # seconds on the container's clock that are 0 for us: the earlier start of the two streams

    @property
    def seconds(self) -> float | None:
        """How long the media last, as the headers say; None when they do not."""
        known = [end for s in (self.video, self.audio) if s is not None and (end := stream_end(s)) is not None]
        if known:
            return max(known) - self.origin
        return self.container.duration / 1e6 if (self.container.duration or 0) > 0 else None

    @property
    def video_seconds(self) -> float | None:
        """When the video ends on our clock, as the headers say."""
        if (end := stream_end(self.video)) is not None:
            return end - self.origin
        return self.container.duration / 1e6 if (self.container.duration or 0) > 0 else None


def stream_start(stream: Any) -> float:
    """Seconds on the container's clock at which a stream starts."""
    return float(stream.start_time * stream.time_base) if stream.start_time is not None and stream.time_base else 0.0


def stream_end(stream: Any) -> float | None:
    """Seconds on the container's clock at which a stream ends; None when no header says."""
    if stream.duration and stream.duration > 0:
        return stream_start(stream) + float(stream.duration * stream.time_base)
    hours = TIME.fullmatch(stream.metadata.get("DURATION", "").strip())  # Matroska's statistics tag: the end time
    if hours:
        return int(hours[1]) * 3600 + int(hours[2]) * 60 + float(hours[3]) or None
    return None


@contextmanager
def media(path: str) -> Iterator[Media]:
    """Open a media file. Raises DataError when it is no regular file or no media."""
    import av

    with opened(path):
        pass
    # tags that are no UTF-8 must not make a file unreadable; PyAV 19 sees to that by itself
    tags: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        # "file:" keeps a colon in a name from being read as a protocol
        container = av.open(
            "file:" + os.path.abspath(path),
            container_options={"protocol_whitelist": "file", "format_whitelist": FORMATS},
            **tags,
        )
    except (av.error.FFmpegError, ValueError, OverflowError, OSError) as error:
        raise bad(path, f"cannot be read as media: {reason(error)}") from None
    with container:
        yield _choose(path, container)


def reason(error: BaseException) -> str:
    """FFmpeg's own words, without the path that it repeats."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__).strip().rstrip(".")


def _choose(path: str, container: Any) -> Media:
    from av.stream import Disposition

    still = Disposition.attached_pic | Disposition.timed_thumbnails
    videos = [s for s in container.streams.video if not s.disposition & still]
    best = container.streams.best("video")
    video = best if best in videos else (videos[0] if videos else None)
    audio = container.streams.audio[0] if container.streams.audio else None
    starts = [stream_start(s) for s in (video, audio) if s is not None]
    return Media(path, container, video, audio, len(videos) < len(container.streams.video), min(starts, default=0.0))


def only(media: Media, stream: Any) -> None:
    """Let the demuxer drop the packets of the other streams."""
    try:
        from av.stream import Discard
    except ImportError:  # older PyAV: packets of the others are read and dropped
        return
    for other in media.container.streams:
        other.discard = Discard.default if other is stream else Discard.all


def need(media: Media, stream: Any | None, what: str) -> Any:
    """The stream, ready to decode on one thread. Raises Absent when the file has none, DataError without a decoder."""
    if stream is None:
        extra = ", only a cover picture" if what == "video" and media.picture else ""
        raise Absent(f"{shown(media.path)}: has no {what}{extra}", fix=f"leave it out, or use what does without {what}")
    try:
        context = stream.codec_context
        context.thread_count = 1  # workers are processes: threads of theirs would only compete
    except (AttributeError, RuntimeError):
        raise bad(media.path, f"its {what} codec is not known to this build of FFmpeg", "convert the file") from None
    return stream


def packets_of(container: Any, stream: Any, failed: list[str] | None = None) -> Iterator[Any]:
    """The packets of a stream up to the end, or to where the file cannot be read on, which is noted in `failed`."""
    import av

    packets = container.demux(stream)
    for _ in range(LATE_STREAMS):
        try:
            yield from packets
            return
        except IndexError:  # PyAV does not know a stream that appears in the middle of a file: ours goes on after it
            packets = container.demux(stream)
        except (av.error.FFmpegError, ValueError) as error:
            if failed is not None:
                failed.append(reason(error))
            return


def frames_of(container: Any, stream: Any, failed: list[str]) -> Iterator[Any]:
    """Decoded frames of a stream. A packet that fails is noted in `failed` and the next one tried; a file that ends
    early gives what it has."""
    import av

    for packet in packets_of(container, stream, failed):
        if packet.size == 0 and packet.pts is not None:
            continue  # Theora's "repeat the last frame"; an empty packet would end the decoder
        try:
            frames = packet.decode()
        except av.error.EOFError:
            return
        except (av.error.FFmpegError, ValueError) as error:
            failed.append(reason(error))
            continue
        yield from frames


def check_size(path: str, width: int, height: int, limits: Limits) -> None:
    """Raises DataError for a picture without area or beyond the limit."""
    if width <= 0 or height <= 0:
        raise bad(path, f"its pictures are {width}x{height}")
    if width * height > limits.max_pixels:
        raise bad(
            path,
            f"its pictures are {width}x{height}, more than data.max_pixels = {limits.max_pixels}",
            "raise data.max_pixels or scale the file down",
        )


def check_rate(path: str, rate: int, channels: int, limits: Limits) -> None:
    """Raises DataError for a rate or channel count that is absurd or beyond the limits."""
    if rate <= 0 or rate > limits.max_rate:
        raise bad(path, f"its header says {rate} Hz, the limit is 1 to {limits.max_rate}")
    if channels <= 0 or channels > limits.max_channels:
        raise bad(path, f"its header says {channels} channels, the limit is 1 to {limits.max_channels}")
