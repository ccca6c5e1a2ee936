"""Known data sets as their authors publish them: ESC-50 and ESC-10, AudioSet segments, VGGSound.

`detect(path)` is cheap and never raises; `read(path)` gives rows. Clips that a list names but that are not on disk are
left out, and their number is logged: every copy of AudioSet and VGGSound lacks some.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import re

from avssl.data import kinds
from avssl.data.clip import Row, Source
from avssl.data.source import bad, shown
from avssl.errors import DataError

log = logging.getLogger(__name__)
ESC_HEADER = "filename,fold,target,category,esc10,src_file,take"
ESC_PLACES = ("meta/esc50.csv", "esc50.csv", "esc10.csv", "meta/esc10.csv")
SEGMENTS = re.compile(r"\s*([\w-]{11}), ?([0-9.]+), ?([0-9.]+), ?\"?([^\"]*)\"?\s*")
Listed = tuple[str, float, dict[str, str], tuple[str, ...], str]  # name, start, extra, labels, split
VGG = re.compile(r'([\w-]{11}),([0-9]+),"?([^"]+?)"?,(train|test)')


def detect_esc50(path: str) -> bool:
    """A folder with the ESC metadata, or that CSV file itself."""
    return _esc_table(path) is not None


def read_esc50(path: str) -> list[Row]:
    """One row for each clip: label = category, fold = 1..5, group = the source recording."""
    table = _esc_table(path)
    assert table is not None
    folder = _audio_folder(table)
    rows = []
    for line, record in enumerate(csv.DictReader(io.StringIO(_lines(table, None))), start=2):
        name = record["filename"]
        if not name or not record["fold"].isdigit():
            raise bad(table, f"line {line} is no ESC record", "restore the published file")
        extra = {"target": record["target"], "esc10": record["esc10"], "take": record["take"]}
        rows.append(
            Row(
                id=os.path.splitext(name)[0],
                parts={"audio": os.path.join(folder, name)},
                labels=(record["category"],),
                group=record["src_file"],
                fold=int(record["fold"]),
                extra=extra,
            )
        )
    return rows


def _esc_table(path: str) -> str | None:
    candidates = [os.path.join(path, p) for p in ESC_PLACES] if os.path.isdir(path) else [path]
    return next((os.path.abspath(c) for c in candidates if _first_line(c) == ESC_HEADER), None)


def _audio_folder(table: str) -> str:
    folder = os.path.dirname(table)
    places = [os.path.join(folder, "audio"), os.path.join(os.path.dirname(folder), "audio"), folder]
    return next((p for p in places if os.path.isdir(p)), folder)


def detect_audioset(path: str) -> bool:
    """A `*_segments.csv` of AudioSet (three comment lines, then YouTube id, start, end, labels)."""
    return path.lower().endswith(".csv") and _first_line(path).startswith("# Segments csv created")


def read_audioset(path: str) -> list[Row]:
    """Rows of the clips that lie in the folder of the list or below it, cut as published (no window is applied).

    A clip's file is called like its YouTube id, optionally after a `Y` or before `_` and a start. Labels are the
    published identifiers (/m/...); split: the name of the list.
    """
    split = {"eval_segments": "eval"}.get(os.path.splitext(os.path.basename(path))[0], "train")
    listed: list[Listed] = []
    for number, line in enumerate(_lines(path, None).splitlines(), start=1):
        if line.startswith("#") or not line.strip():
            continue
        match = SEGMENTS.fullmatch(line)
        if match is None:
            raise bad(path, f"line {number} is no segment of AudioSet", "restore the published file")
        listed.append((match[1], float(match[2]), {"end": match[3]}, tuple(match[4].split(",")), split))
    return _present(path, listed)


def detect_vggsound(path: str) -> bool:
    """The list of VGGSound: YouTube id, start, label, split, without a header."""
    return path.lower().endswith(".csv") and VGG.fullmatch(_first_line(path)) is not None


def read_vggsound(path: str) -> list[Row]:
    """Rows of the clips that lie in the folder of the list or below it; files are called ID_000123 or ID."""
    listed: list[Listed] = []
    for number, line in enumerate(_lines(path, None).splitlines(), start=1):
        if not line.strip():
            continue
        match = VGG.fullmatch(line.strip())
        if match is None:
            raise bad(path, f"line {number} is no clip of VGGSound", "restore the published file")
        listed.append((match[1], float(match[2]), {}, (match[3].strip(),), match[4]))
    return _present(path, listed)


def _present(path: str, listed: list[Listed]) -> list[Row]:
    """Rows of the listed clips that have a file."""
    files = _media_by_stem(os.path.dirname(os.path.abspath(path)))
    rows = []
    for name, start, extra, labels, split in listed:
        parts: dict[str, Source] = {}
        second = int(start)
        for stem in (f"{name}_{second:06d}", f"{name}_{round(start * 1000)}", f"{name}_{second}", f"Y{name}", name):
            for file in files.get(stem, ()):
                for modality in kinds.of_file(file):
                    parts.setdefault(modality, file)
        if parts:
            rows.append(
                Row(
                    id=f"{name}_{start:g}",
                    parts=parts,
                    labels=labels,
                    split=split,
                    group=name,
                    extra={"youtube_start": start, **extra},
                )
            )
    if not rows:
        raise DataError(
            f"{shown(path)}: none of its {len(listed)} clips lies beside it",
            fix="put the list into the folder that holds the clips",
        )
    if len(rows) < len(listed):
        log.warning(
            "%s: %d of %d clips are not on disk and are left out", shown(path), len(listed) - len(rows), len(listed)
        )
    return rows


def _media_by_stem(root: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders.sort()
        for name in sorted(names):
            if kinds.of_file(name):
                found.setdefault(os.path.splitext(name)[0], []).append(os.path.join(folder, name))
    return found


def _first_line(path: str) -> str:
    """The first line of a small file, or "" when there is none to be had."""
    if not os.path.isfile(path):
        return ""
    try:
        return _lines(path, 4096).split("\n", 1)[0].strip()
    except (OSError, DataError):
        return ""


def _lines(path: str, count: int | None) -> str:
    with open(path, "rb") as file:
        data = file.read(-1 if count is None else count)
    try:
        return data.decode("utf-8-sig") if count is None else data.decode("utf-8-sig", "replace")
    except UnicodeDecodeError as error:
        raise bad(path, f"is not UTF-8 (byte {error.start})", "restore the published file") from None
