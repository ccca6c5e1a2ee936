"""The authors' data files: a json of clips, frames in folders frame_0, frame_1 ... (ten; CAV-MAE Sync: sixteen), and a
csv of labels.

    {"data": [{"video_id": "x", "wav": "x.wav", "video_path": "frames", "labels": "/m/1,/m/2"}]}   frames/frame_3/x.jpg
    index,mid,display_name

A csv of that header beside the json turns its mids into display names.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avssl.data.clip import Row, Source
from avssl.errors import DataError, check

FRAMES = 10  # where no folder tells
KEYS = ("video_id", "wav", "video_path", "labels")
HEADER = ["index", "mid", "display_name"]


def detect(path: Path) -> bool:
    """A .json whose beginning names the authors' keys; the file may hold two million clips, so no more is read."""
    path = Path(path)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return False
    return b'"data"' in head and all(f'"{key}"'.encode() in head for key in KEYS[:3])


def read(path: Path) -> list[Row]:
    """A row per clip; relative paths start at the json's folder. Raises DataError naming the entry that is wrong.

    All frames that there are folders for are listed without looking whether each clip has them: the frontend falls back
    to an earlier one, clip by clip, as the authors do.
    """
    path = Path(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["data"]
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: no CAV-MAE json: {error}", fix='it is {"data": [{"video_id": ...}]}') from None
    check(
        isinstance(entries, list) and bool(entries),
        f"{path}: it lists no clips",
        fix="give a json with clips",
        error=DataError,
    )
    names = labels_beside(path)
    counts: dict[Path, int] = {}
    return [_row(entry, number, path, names, counts) for number, entry in enumerate(entries)]


def frame_folders(folder: Path) -> int:
    """How many folders frame_0, frame_1 ... there are; 10 where there is none to look at."""
    count = 0
    while (folder / f"frame_{count}").is_dir():
        count += 1
    return count or FRAMES


def _row(entry: Any, number: int, path: Path, names: Mapping[str, str], counts: dict[Path, int]) -> Row:
    if not isinstance(entry, dict) or not isinstance(entry.get("video_id"), str):
        raise DataError(f"{path}: entry {number} has no video_id", fix=f"each entry has {', '.join(KEYS)}")
    parts: dict[str, Source] = {}
    name = entry["video_id"]
    if entry.get("wav"):
        parts["audio"] = str(path.parent / entry["wav"])
    if entry.get("video_path"):
        folder = path.parent / entry["video_path"]
        if folder not in counts:
            counts[folder] = frame_folders(folder)
        parts["vision"] = tuple(str(folder / f"frame_{i}" / f"{name}.jpg") for i in range(counts[folder]))
    mids = [m for m in str(entry.get("labels") or "").split(",") if m]
    unknown = [m for m in mids if names and m not in names]
    if unknown:
        raise DataError(f"{path}: label {unknown[0]!r} of {name} is not in the csv beside it", fix="give the right csv")
    return Row(id=name, parts=parts, labels=tuple(names.get(m, m) for m in mids))


def labels_beside(path: Path) -> dict[str, str]:
    """mid -> display name from the one label csv in the json's folder; empty when there is none. Raises DataError when
    several could be meant."""
    found = [p for p in sorted(path.parent.glob("*.csv")) if _is_labels(p)]
    check(
        len(found) <= 1,
        f"{path.parent} has several label files: {', '.join(p.name for p in found)}",
        fix="leave one of them beside the json",
        error=DataError,
    )
    return read_labels(found[0]) if found else {}


def _is_labels(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file), []) == HEADER
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def read_labels(path: Path) -> dict[str, str]:
    """mid -> display name of a label csv, in the order of its index column (which is the order of a head's outputs)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = sorted(csv.DictReader(file), key=lambda line: int(line["index"]))
        out = {line["mid"]: line["display_name"] for line in lines}
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: no label csv: {error}", fix=f"its header is {','.join(HEADER)}") from None
    check(
        len(set(out.values())) == len(lines),
        f"{path}: a label is there twice",
        fix="make its names unique",
        error=DataError,
    )
    return out
