"""What a data set really holds: every file looked at, what it carries, how long it is, and what cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from avssl.data import kinds
from avssl.data.bad import BadItem
from avssl.data.clip import Absent, AudioRequest, FramesRequest, Limits, Probe, Row, Source, Waveform
from avssl.data.decode import decode_audio, decode_frames, probe
from avssl.data.resample import cancels
from avssl.data.source import bad as unusable
from avssl.data.source import shown
from avssl.data.workers import Blame, WorkerPool
from avssl.errors import DataError

CHUNK = 8  # rows a worker looks at before it reports
WINDOW = 60.0  # seconds of sound decoded at a time: a long recording takes no more memory than a short one
LOOK = 64  # short side of the frames that are looked at
DEPTHS = ("headers", "sample", "full")


@dataclass(frozen=True)
class Look:
    """What became of one row. row: with only the parts that can be used, its duration and facts in `extra`; None when
    nothing can. bad: what cannot, with reasons."""

    row: Row | None
    bad: tuple[BadItem, ...] = ()


@dataclass
class Scan:
    """A scanned data set."""

    rows: list[Row] = field(default_factory=list)  # that can be used, if only in part
    bad: list[BadItem] = field(default_factory=list)
    looked_at: int | None = None  # rows; None: those in `rows`, nothing was looked at

    def summary(self) -> dict[str, Any]:
        """Counts and lengths as plain data. "items" can be used, "left_out" cannot; "bad" have a damaged part, and
        "partly_usable" are those of them that can be used without it."""

        def tally(values: Iterable[Any]) -> dict[str, int]:
            return {str(k): n for k, n in sorted(Counter(v for v in values if v not in (None, "")).items(), key=str)}

        seconds = [r.duration for r in self.rows if r.duration is not None]
        facts = [r.extra for r in self.rows]
        looked_at = len(self.rows) if self.looked_at is None else self.looked_at
        bad = {b.id for b in self.bad if b.what != "missing"}
        return {
            "items": len(self.rows),
            "looked_at": looked_at,
            "left_out": looked_at - len(self.rows),
            "bad": len(bad),
            "partly_usable": len(bad & {r.id for r in self.rows}),
            "modalities": tally("+".join(sorted(r.parts)) for r in self.rows),
            "hours": sum(seconds) / 3600,
            "seconds": (
                {"min": min(seconds), "median": float(np.median(seconds)), "max": max(seconds)} if seconds else {}
            ),
            "rates": tally(f.get("rate") for f in facts),
            "channels": tally(f.get("channels") for f in facts),
            "sizes": tally(f"{f['width']}x{f['height']}" for f in facts if f.get("width")),
            "codecs": tally(c for f in facts for c in str(f.get("codec", "")).split("+")),
            "notes": tally(n for f in facts for n in str(f.get("note", "")).split("; ")),
            "labels": tally(label for r in self.rows for label in r.labels),
            "unlabelled": sum(not r.labels for r in self.rows),
            "splits": tally(r.split for r in self.rows),
            "folds": tally(r.fold for r in self.rows),
            "groups": len({r.group for r in self.rows if r.group}),
        }


def scan(
    rows: Sequence[Row],
    *,
    depth: str = "sample",
    workers: int = 0,
    limits: Limits = Limits(),
    timeout: float = 300.0,
    progress: Callable[[int], None] | None = None,
) -> Scan:
    """Look at every row, in order.

    depth: "headers" = what the files say of themselves; "sample" = all the sound and three frames decoded; "full" =
    every frame as well. progress: called with the number of rows done. A file that crashes its decoder is reported.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth is one of {DEPTHS}, not {depth!r}")
    out = Scan(looked_at=len(rows))
    done = 0
    with WorkerPool(_Scanner(rows, depth, limits), workers, timeout=timeout) as pool:
        for looks in pool.map([list(range(i, min(i + CHUNK, len(rows)))) for i in range(0, len(rows), CHUNK)]):
            for look in looks:
                out.bad.extend(look.bad)
                if look.row is not None:
                    out.rows.append(look.row)
            done += len(looks)
            if progress is not None:
                progress(done)
    return out


@dataclass
class _Scanner:
    rows: Sequence[Row]
    depth: str
    limits: Limits

    def __call__(self, keys: Sequence[int], blamed: Sequence[Blame], hold: Callable[[int], None]) -> list[Look]:
        blames = {b.item: b for b in blamed}
        looks = []
        for index in keys:
            hold(index)
            row = self.rows[index]
            if index in blames:
                path = _path(next(iter(row.parts.values())))
                looks.append(Look(None, (BadItem(row.id, path, blames[index].what, blames[index].reason),)))
            else:
                looks.append(examine(row, self.depth, self.limits))
        return looks


def examine(row: Row, depth: str = "sample", limits: Limits = Limits()) -> Look:
    """Look at one row: drop what its files do not carry, report what cannot be decoded, measure the rest."""
    parts, facts = dict(row.parts), dict(row.extra)
    bad: list[BadItem] = []
    notes: list[str] = []
    probes: dict[str, Probe] = {}
    lengths: list[float] = []
    seconds: float | None
    for modality, source in _with_hidden(row, probes).items():
        try:
            if modality == "audio":
                seconds = _audio(row, source, depth, limits, facts, notes)
            elif modality == "vision":
                seconds = _vision(row, source, depth, limits, facts, probes)
            else:
                seconds = None
                if depth != "headers":
                    _other(modality, row, source, limits)
            parts[modality] = source
            if seconds is not None:
                lengths.append(seconds)
        except Absent as error:
            parts.pop(modality, None)
            if not set(row.parts) - {modality}:
                bad.append(BadItem(row.id, _path(source), "missing", error.message))
        except DataError as error:
            parts.pop(modality, None)
            bad.append(BadItem(row.id, _path(source), "bad", error.message))
    if not parts:
        if not bad:
            path = _path(next(iter(row.parts.values())))
            bad.append(BadItem(row.id, path, "missing", "has neither sound nor pictures"))
        return Look(None, tuple(dict.fromkeys(bad)))
    if notes:
        facts["note"] = "; ".join(notes)
    duration = max(lengths) if lengths else row.duration
    return Look(replace(row, parts=parts, duration=duration, extra=facts), tuple(dict.fromkeys(bad)))


def _with_hidden(row: Row, probes: dict[str, Probe]) -> dict[str, Source]:
    """The row's parts, and those that a file carries although its suffix denies it (a video called .wav)."""
    parts = dict(row.parts)
    for source in row.parts.values():
        if not isinstance(source, str) or not (expected := kinds.of_file(source)) or "text" in expected:
            continue
        try:
            probes[source] = probes.get(source) or probe(source)
        except DataError:
            continue  # decoding says why
        for modality in probes[source].modalities - set(expected):
            parts.setdefault(modality, source)
    return parts


def _audio(row: Row, source: Source, depth: str, limits: Limits, facts: dict[str, Any], notes: list[str]) -> float:
    """Seconds of sound in the row's window."""
    if depth == "headers":
        found = probe(_path(source))
        if "audio" not in found.modalities:
            raise Absent(f"{shown(_path(source))}: has no sound", fix="leave it out")
        facts.update(_known(rate=found.rate, channels=found.channels, codec=_codecs(facts, found)))
        return _clipped(found.lasts("audio") or 0.0, row)
    start, total, loud, cancelled, peak = 0.0, 0, False, True, 0.0
    while True:
        wish = AudioRequest(start=start, seconds=min(WINDOW, limits.max_seconds))
        try:
            wave: Waveform = decode_audio(source, wish, start=row.start, end=row.end, limits=limits)
        except Absent:
            if total == 0 and start == 0.0:
                raise
            break
        total += wave.samples.shape[1]
        loud = loud or bool(wave.samples.any())
        cancelled = cancelled and cancels(wave.samples)
        peak = max(peak, float(np.abs(wave.samples).max(initial=0.0)))
        last = wave.start + wave.samples.shape[1] / wave.rate
        start += min(WINDOW, limits.max_seconds)
        ended = row.end is not None and start >= row.end - (row.start or 0.0)
        if ended or last < start - 1.0 / wave.rate or wave.samples.shape[1] == 0:
            break
    facts.update(rate=wave.rate, channels=wave.samples.shape[0])
    if total == 0:
        notes.append("empty sound")
    elif not loud:
        notes.append("silent")
    elif cancelled:
        notes.append("channels cancel out")
    if peak > 1.0:
        notes.append("samples beyond full scale")
    return total / wave.rate


def _vision(
    row: Row, source: Source, depth: str, limits: Limits, facts: dict[str, Any], probes: dict[str, Probe]
) -> float | None:
    """Seconds of video in the row's window; None for still pictures."""
    path = _path(source)
    found = probes.get(path) or probe(path)
    if "vision" not in found.modalities and depth == "headers":
        raise Absent(f"{shown(path)}: has no video", fix="leave it out")
    still = found.frames == 1 and found.seconds is None
    if isinstance(source, tuple):
        facts["frames"] = len(source)
    if depth != "headers":
        wish = FramesRequest(count=1 if still and isinstance(source, str) else 3, size=LOOK)
        if depth == "full" and isinstance(source, tuple):
            wish = FramesRequest(indices=tuple(range(len(source))), size=LOOK)
        decode_frames(source, wish, start=row.start, end=row.end, limits=limits)
        if depth == "full" and not still and isinstance(source, str):
            _every_frame(path, limits)
    facts.update(
        _known(
            width=found.width, height=found.height, fps=found.fps and round(found.fps, 3), codec=_codecs(facts, found)
        )
    )
    seconds = found.lasts("vision")
    return None if still or isinstance(source, tuple) or seconds is None else _clipped(seconds, row)


def _every_frame(path: str, limits: Limits) -> None:
    """Decode a whole video. Raises DataError at the first packet that fails."""
    from avssl.data import container as containers

    with containers.media(path) as media:
        stream = containers.need(media, media.video, "video")
        containers.only(media, stream)
        failed: list[str] = []
        count = 0
        for frame in containers.frames_of(media.container, stream, failed):
            containers.check_size(path, frame.width, frame.height, limits)
            count += 1
        if failed:
            raise unusable(
                path, f"{len(failed)} of its video packets cannot be decoded, {count} frames can: {failed[0]}"
            )


def _other(modality: str, row: Row, source: Source, limits: Limits) -> None:
    """Decode a part of any other modality through its entry."""
    from avssl.registry import load

    load("modality", modality, "decode")(source, None, start=row.start, end=row.end, limits=limits)


def _clipped(seconds: float, row: Row) -> float:
    end = seconds if row.end is None else min(seconds, row.end)
    return max(0.0, end - (row.start or 0.0))


def _known(**values: Any) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v}


def _codecs(facts: dict[str, Any], found: Probe) -> str:
    known = set(filter(None, str(facts.get("codec", "")).split("+"))) | set(found.codec.values())
    return "+".join(sorted(known))


def _path(source: Source) -> str:
    return source[0] if isinstance(source, tuple) else source[:400]
