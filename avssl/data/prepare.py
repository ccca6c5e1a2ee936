"""Decode once, train often: sound as 16 kHz mono files, videos as a few JPEG frames, and a manifest of both."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from avssl.data import kinds
from avssl.data.bad import BadFiles, BadItem
from avssl.data.clip import Absent, AudioRequest, FramesRequest, Limits, Row, Source, Waveform
from avssl.data.decode import decode_audio, decode_frames
from avssl.data.resample import mono, resample
from avssl.data.source import bad, one_path, opened, shown
from avssl.data.table import write_rows
from avssl.data.workers import Blame, each
from avssl.errors import DataError, check
from avssl.files import replacing, write_json
from avssl.words import none_of

OPTIONS, MANIFEST, BAD = "prepare.json", "manifest.parquet", "bad_files.csv"


@dataclass(frozen=True)
class Plan:
    """rate: Hz of the prepared sound; frames: pictures of each video; size: their short side, never scaled up;
    square: keep the centred square of them, as published extraction scripts do: smaller, and faster to read;
    quality: of the JPEG files; format: "wav" or the smaller, slower "flac", both 16 bit."""

    rate: int = 16_000
    frames: int = 10
    size: int = 224
    square: bool = False
    quality: int = 90
    format: str = "wav"

    def __post_init__(self) -> None:
        check(self.format in ("flac", "wav"), f"format {self.format!r} is not known", fix="flac or wav")
        check(
            self.rate > 0 and self.frames > 0 and self.size > 0 and 1 <= self.quality <= 100,
            "rate, frames and size must be positive, quality 1 to 100",
            fix="see `avssl data prepare --help`",
        )


def prepare(
    rows: Sequence[Row],
    out: Path,
    plan: Plan = Plan(),
    *,
    workers: int = 0,
    limits: Limits = Limits(),
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Row], list[BadItem]]:
    """Write the prepared files and `manifest.parquet` into a folder; rows and bad items are returned.

    Every file is complete or absent, and one that exists is not made again: the same call goes on where it stopped.
    Its name holds a digest of id, window, size and time of its source: a source that changed is prepared anew.
    A row's window is cut out. Still images and parts of other modalities stay where they are.
    Raises DataError when the folder was made with another plan, or when nothing can be prepared.
    """
    out = Path(os.path.abspath(out))
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, plan)
    bads = BadFiles(out / BAD)
    bads.items.clear()
    (out / BAD).unlink(missing_ok=True)
    made: list[Row] = []
    preparer = _Preparer(out, plan, limits)
    for done, (row, problems) in enumerate(each(rows, preparer.one, preparer.lost, workers, chunk=4, timeout=600.0), 1):
        bads.add(problems)
        if row is not None:
            made.append(row)
        if progress is not None:
            progress(done)
    if not made:
        raise DataError(f"{none_of(len(rows), 'item')} can be prepared", fix=f"see {shown(str(out / BAD))}")
    write_rows(made, out / MANIFEST)
    return made, list(bads.items.values())


def _claim(out: Path, plan: Plan) -> None:
    path = out / OPTIONS
    if not path.exists():
        write_json(path, asdict(plan))
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad(str(path), f"cannot be read: {error}", "remove it or choose another folder") from None
    if old != asdict(plan):
        raise DataError(f"{shown(str(out))} was prepared with other options ({old})", fix="choose another folder")


@dataclass
class _Preparer:
    out: Path
    plan: Plan
    limits: Limits

    def lost(self, row: Row, blame: Blame) -> tuple[None, list[BadItem]]:
        return None, [BadItem(row.id, _file(row), blame.what, blame.reason)]

    def one(self, row: Row) -> tuple[Row | None, list[BadItem]]:
        parts: dict[str, Source] = {}
        problems = []
        duration = None
        for modality, source in row.parts.items():
            try:
                if modality == "audio":
                    parts[modality], duration = self._audio(row)
                elif modality == "vision" and isinstance(source, str) and not _still(source):
                    parts[modality] = self._frames(row, source)
                else:
                    if modality == "vision":
                        decode_frames(source, FramesRequest(count=1), limits=self.limits)  # stays, if it can be read
                    parts[modality] = source
            except DataError as error:
                what = "missing" if isinstance(error, Absent) else "bad"
                problems.append(BadItem(row.id, _file(row), what, error.message))
        if not parts:
            return None, problems
        extra = {**row.extra, "source": _file(row)}
        for key in ("rate", "channels", "width", "height", "fps", "codec"):
            extra.pop(key, None)  # facts of the source that the prepared files no longer have
        return replace(row, parts=parts, start=None, end=None, duration=duration or row.duration, extra=extra), problems

    def _audio(self, row: Row) -> tuple[str, float]:
        import soundfile

        path = self.out / "audio" / f"{slug(row.id, *_version(row, one_path(row.parts['audio'])))}.{self.plan.format}"
        if not path.exists():
            wave: Waveform = decode_audio(
                row.parts["audio"], AudioRequest(), start=row.start, end=row.end, limits=self.limits
            )
            samples = resample(mono(wave.samples), wave.rate, self.plan.rate)
            if samples.shape[-1] == 0:
                raise bad(_file(row), "its sound is empty (0 samples)")
            lead = round(wave.start * self.plan.rate)
            if lead > 0 and "vision" in row.parts:  # keeps the pictures and the sound on one clock
                samples = np.concatenate([np.zeros(lead, np.float32), samples])
            sound = io.BytesIO()  # libsndfile cannot say what the system refuses
            clipped, kind = np.clip(samples, -1, 1), self.plan.format.upper()
            soundfile.write(sound, clipped, self.plan.rate, subtype="PCM_16", format=kind)
            with _making(path) as temporary:
                temporary.write_bytes(sound.getbuffer())
        info = soundfile.info(str(path))
        return str(path), info.frames / info.samplerate

    def _frames(self, row: Row, source: str) -> tuple[str, ...]:
        from PIL import Image

        stem = slug(row.id, *_version(row, source))
        paths = [self.out / "frames" / stem / f"{i:03d}.jpg" for i in range(self.plan.frames)]
        if not all(p.exists() for p in paths):
            wish = FramesRequest(count=self.plan.frames, size=self.plan.size)
            frames = decode_frames(source, wish, start=row.start, end=row.end, limits=self.limits)
            for path, pixels in zip(paths, frames.pixels, strict=True):
                if self.plan.square:
                    side = min(pixels.shape[:2])
                    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
                    pixels = np.ascontiguousarray(pixels[top : top + side, left : left + side])
                with _making(path) as temporary:
                    Image.fromarray(pixels).save(temporary, format="JPEG", quality=self.plan.quality)
        return tuple(map(str, paths))


@contextmanager
def _making(path: Path) -> Iterator[Path]:
    """A temporary path that takes the name `path`, in a folder that exists, when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        yield temporary


def slug(identity: str, *version: object) -> str:
    """A file name for an id: readable, portable, and unique for an id and its version through its digest."""
    text = "\0".join([identity, *map(repr, version)])
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', identity).strip('._-')[:80]}-{digest}"


def _version(row: Row, path: str) -> tuple[object, ...]:
    """What a prepared file was cut from: another file or window under the same id must not pass for it."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ()  # the decoder says what is wrong with it
    return status.st_size, status.st_mtime_ns, row.start, row.end


def _still(path: str) -> bool:
    from avssl.data.source import head, is_image

    with opened(path) as descriptor:
        return is_image(head(descriptor))


def _file(row: Row) -> str:
    source = next((s for m, s in row.parts.items() if m not in kinds.inline()), "")
    return source[0] if isinstance(source, tuple) else source
