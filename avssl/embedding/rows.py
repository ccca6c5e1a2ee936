"""What each row really holds, looked up in its files' headers, and recordings cut into windows."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from avssl.data.clip import Row
from avssl.errors import DataError

if TYPE_CHECKING:
    from avssl.data.workers import Blame


def probed(rows: Sequence[Row], modalities: Collection[str], workers: int = 0) -> list[Row]:
    """Rows with their length in seconds, and without the parts that their containers turn out not to carry (a silent
    video has no sound). Nothing is decoded; a file that cannot be read stays as it is: decoding it will say why."""
    from avssl.data.workers import each

    look = partial(looked_up, modalities=frozenset(modalities))
    return list(each(rows, look, _as_it_was, workers, chunk=64))


def _as_it_was(row: Row, blame: Blame) -> Row:
    """Of a file that kills its decoder; decoding it for the embedding will name it."""
    return row


def looked_up(row: Row, modalities: Collection[str]) -> Row:
    """One row, probed. A file is opened when the row's length is unknown, or when it stands for several modalities."""
    from avssl.registry import load, registry

    if row.duration is None and row.end is not None:
        row = replace(row, duration=row.end - (row.start or 0.0))
    sources = [s for s in row.parts.values() if isinstance(s, str)]
    seconds: list[float] = []
    parts = dict(row.parts)
    for modality in sorted(set(row.parts) & set(modalities)):
        source = row.parts[modality]
        shared = sources.count(source) > 1 if isinstance(source, str) else False
        if not isinstance(source, str) or not registry().get("modality", modality).probe:
            continue
        if row.duration is not None and not shared:
            continue
        try:
            found = load("modality", modality, "probe")(source)
        except DataError:
            return row
        if shared and modality not in found.modalities:
            del parts[modality]
        elif (lasts := found.lasts(modality)) is not None:
            seconds.append(lasts)
    if row.duration is None and seconds:
        row = replace(row, duration=max(0.0, max(seconds) - (row.start or 0.0)))
    return row if len(parts) == len(row.parts) else replace(row, parts=parts)


def cut(rows: Sequence[Row], window: float | None, hop: float | None) -> tuple[list[int], list[Row]]:
    """(row number of each window, windows as rows). Without a window, or of unknown length, a row stays whole."""
    if window is None:
        return list(range(len(rows))), list(rows)
    owners, out = [], []
    for number, row in enumerate(rows):
        begin = row.start or 0.0
        for start, end in spans(row.duration, window, hop or window):
            if end is None:
                out.append(row)
            else:
                out.append(replace(row, start=begin + start, end=begin + end, duration=end - start))
            owners.append(number)
    return owners, out


def spans(duration: float | None, window: float, hop: float) -> Iterator[tuple[float, float | None]]:
    """(start, end) in seconds of the windows of a recording: every `hop`, the last one ending with the recording."""
    if duration is None or duration <= window:
        yield 0.0, None
        return
    for i in range(1 + math.ceil((duration - window) / hop - 1e-9)):
        start = min(i * hop, duration - window)
        yield start, start + window
