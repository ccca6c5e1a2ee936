"""The decoders behind the built-in modalities, and the cheap look at a file before one is called."""

from __future__ import annotations

import numpy as np

from avssl.data import container as containers
from avssl.data.audio import decode_audio, for_libsndfile
from avssl.data.clip import Absent, Frames, FramesRequest, Limits, Probe, Source
from avssl.data.image import decode_image, pick, probe_image
from avssl.data.source import bad, head, is_image, opened, shown
from avssl.data.video import decode_video
from avssl.errors import DataError

MAX_TEXT = 1 << 20  # bytes of a text file


def decode_frames(
    source: Source,
    request: FramesRequest | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
    limits: Limits = Limits(),
) -> Frames:
    """Pictures of a video, an image, or a folder's frames: (K, H, W, 3) uint8.

    An image gives itself for every wanted frame; of several files, `indices` chooses, else `count` of them, spread
    evenly (a row's window does not apply to files without time stamps).
    """
    wish = request or FramesRequest()
    if isinstance(source, str):
        with opened(source) as descriptor:
            still = is_image(head(descriptor))
        if not still:
            return decode_video(source, wish, start=start, end=end, limits=limits)
    paths = (source,) if isinstance(source, str) else source
    if not paths:
        raise DataError("no frames are given", fix="check the manifest")
    for index in wish.indices if len(paths) > 1 else ():
        if not -len(paths) <= index < len(paths):
            raise Absent(f"{shown(paths[0])}: frame {index} of {len(paths)} files", fix="ask for fewer frames")
    chosen = list(wish.indices) or [min(len(paths) - 1, max(0, int(f * len(paths)))) for f in wish.fractions]
    chosen = chosen or pick(len(wish.times) or wish.count, len(paths))
    if len(paths) == 1:
        chosen = [0] * len(chosen)
    pictures = {i: decode_image(paths[i], wish.size, limits) for i in sorted(set(chosen))}
    first = pictures[chosen[0]]
    for i in chosen:
        if pictures[i].shape != first.shape:
            raise bad(
                paths[i],
                f"is {pictures[i].shape[1]}x{pictures[i].shape[0]}, other frames of the clip are "
                f"{first.shape[1]}x{first.shape[0]}",
                "make the frames of a clip one size",
            )
    if first.nbytes * len(chosen) > limits.max_bytes:
        raise bad(paths[0], f"{len(chosen)} pictures take more than {limits.max_bytes} bytes", "ask for fewer frames")
    return Frames(first[None] if len(chosen) == 1 else np.stack([pictures[i] for i in chosen]))


def decode_text(
    source: Source,
    request: object = None,
    *,
    start: float | None = None,
    end: float | None = None,
    limits: Limits = Limits(),
) -> str:
    """The text itself, or the content of the one .txt file that is named."""
    if isinstance(source, tuple):
        if len(source) != 1:
            raise DataError(f"{len(source)} files given where one text is needed", fix="give one path")
        path = source[0]
        with opened(path) as descriptor:
            data = head(descriptor, MAX_TEXT + 1)
        if len(data) > MAX_TEXT:
            raise bad(path, f"is longer than {MAX_TEXT} bytes", "split it into one file for each item")
        try:
            return data.decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise bad(path, f"is no UTF-8 text: {error}", "convert it to UTF-8") from None
    if not source.strip():
        raise DataError("the text is empty", fix="leave the row out")
    return source


def probe(path: str) -> Probe:
    """What a file carries, from its headers; nothing is decoded. Raises DataError for what is no media file."""
    import soundfile

    with opened(path) as descriptor:
        first = head(descriptor)
        if is_image(first):
            return probe_image(path)
        if for_libsndfile(first):
            try:
                with soundfile.SoundFile(descriptor, closefd=False) as file:
                    containers.check_rate(path, file.samplerate, file.channels, Limits())
                    return Probe(
                        frozenset({"audio"}),
                        file.frames / file.samplerate,
                        file.samplerate,
                        file.channels,
                        codec={"audio": file.subtype.lower()},
                    )
            except (soundfile.LibsndfileError, RuntimeError, TypeError):
                pass  # another format: FFmpeg may know it
    with containers.media(path) as media:
        return _probe_media(path, media)


def _probe_media(path: str, media: containers.Media) -> Probe:
    video, audio = media.video, media.audio
    if video is None and audio is None:
        raise bad(path, "has neither sound nor video" + (", only a cover picture" if media.picture else ""))
    streams = {name: stream for name, stream in (("audio", audio), ("vision", video)) if stream is not None}
    codec = {name: s.codec_context.name for name, s in streams.items() if s.codec_context is not None}
    ends = {name: end - media.origin for name, s in streams.items() if (end := containers.stream_end(s)) is not None}
    rate = video.average_rate or video.guessed_rate if video is not None else None
    context = video.codec_context if video is not None else None
    sound = audio.codec_context if audio is not None else None
    return Probe(
        frozenset(streams),
        media.seconds,
        sound.sample_rate if sound else None,
        sound.channels if sound else None,
        context.width if context else None,
        context.height if context else None,
        (video.frames or None) if video is not None else None,
        float(rate) if rate else None,
        codec,
        ends,
    )


__all__ = ["decode_audio", "decode_frames", "decode_text", "probe"]
