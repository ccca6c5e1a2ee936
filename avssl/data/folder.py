"""A folder of media as it lies on disk.

- Every file with the suffix of a registered modality is an item; its id is its path below the folder, without the
  suffix where that stays unique. Order: by path, numbers in names counting as numbers.
- Files of one name and different kinds in one folder are one item: `a.wav` with `a.jpg` and the caption `a.txt`.
- `frame_0/ID.jpg ... frame_9/ID.jpg` and `ID/frames/*.jpg` are one item of several frames, with `ID.wav` or `ID/*.wav`.
- Splits: when every item lies under top folders called train, val, test and the like, those are its splits.
- Labels: when every item lies in a subfolder (below the split) and there are at least two, the folder holding the
  item is its label. One file outside of them, and nothing is labelled.
- Text files alone count only in a folder without other media; each paragraph is then an item.
Hidden files and folders are left out; links are followed, loops are not.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from avssl.data import kinds
from avssl.data.clip import Row, Source
from avssl.data.source import REASONS, bad, shown
from avssl.data.table import read_text
from avssl.errors import DataError

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "eval",
    "evaluation": "eval",
}
FRAME = re.compile(r"frame[_-]?[0-9]+")


def read_folder(root: str) -> list[Row]:
    """Rows of a folder of media, or of a single media file."""
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        if not (names := kinds.of_file(root)):
            raise DataError(
                f"{shown(root)}: is neither a folder, a manifest nor a media file of a known suffix",
                fix="rename it, or list it in a manifest under audio or vision",
            )
        return [Row(id=shown(os.path.basename(root)), parts=dict.fromkeys(names, root))]
    found = sorted(_walk(root), key=kinds.natural)
    media = [p for p in found if kinds.of_file(p) != ["text"]]
    texts = [p for p in found if kinds.of_file(p) == ["text"]]
    if not media:
        return [
            replace(row, id=f"{shown(os.path.splitext(p)[0])}/{row.id.split('/')[-1]}")
            for p in texts
            for row in read_text(os.path.join(root, p))
        ]
    items = _items(root, media, texts)
    return _labelled(items)


def _walk(root: str) -> Iterator[str]:
    """Paths below root of files with a known suffix; a folder reached twice through links is read once."""
    seen: set[tuple[int, int]] = set()

    def failed(error: OSError) -> None:
        raise bad(error.filename or root, REASONS.get(error.errno or 0, str(error)), "check the folder's permissions")

    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=failed):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(s for s in subfolders if not s.startswith("."))
        for name in files + [s for s in subfolders if _is_media_name(s)]:
            if not name.startswith(".") and kinds.of_file(name):
                yield os.path.relpath(os.path.join(folder, name), root)


def _is_media_name(folder: str) -> bool:
    """A directory called `clip.mp4` is listed, so that it is reported instead of passed over."""
    return bool(kinds.of_file(folder))


def _items(root: str, media: list[str], texts: list[str]) -> dict[str, dict[str, Source]]:
    """Item name (path below the root) -> parts."""
    frames: dict[str, list[str]] = {}
    files: dict[str, list[str]] = {}
    for path in media:
        folder, name = os.path.split(path)
        above, last = os.path.split(folder)
        if kinds.of_file(path) == ["vision"] and FRAME.fullmatch(last):
            frames.setdefault(os.path.join(above, os.path.splitext(name)[0]), []).append(path)
        elif kinds.of_file(path) == ["vision"] and last == "frames" and above:
            frames.setdefault(above, []).append(path)
        else:
            files.setdefault(os.path.splitext(path)[0], []).append(path)
    items: dict[str, dict[str, Source]] = {
        stem: {"vision": tuple(os.path.join(root, p) for p in sorted(paths, key=kinds.natural))}
        for stem, paths in frames.items()
    }
    for stem, paths in files.items():
        given = [(p, kinds.of_file(p)) for p in paths]
        names = [n for _, m in given for n in m]
        owner = stem if stem in frames else os.path.dirname(stem)
        if owner in frames and len(paths) == 1 and not set(names) & set(items[owner]):
            items[owner].update(dict.fromkeys(names, os.path.join(root, paths[0])))
        elif len(names) == len(set(names)):
            items[stem] = {n: os.path.join(root, p) for p, m in given for n in m}
        else:  # one name, the same kind twice: each file is an item of its own, named in full
            items.update({p: dict.fromkeys(m, os.path.join(root, p)) for p, m in given})
    for path in texts:
        stem = os.path.splitext(path)[0]
        if stem in items and "text" not in items[stem]:
            items[stem]["text"] = (os.path.join(root, path),)
    return items


def _labelled(items: Mapping[str, dict[str, Source]]) -> list[Row]:
    places = {item: item.split(os.sep)[:-1] for item in items}
    has_splits = all(p and p[0].lower() in SPLITS for p in places.values())
    below = {item: p[1:] if has_splits else p for item, p in places.items()}
    classes = {p[-1] for p in below.values() if p}
    has_labels = all(below.values()) and len(classes) >= 2
    return [
        Row(
            id=shown(item).replace(os.sep, "/"),
            parts=parts,
            labels=(shown(below[item][-1]),) if has_labels else (),
            split=SPLITS[places[item][0].lower()] if has_splits else "",
        )
        for item, parts in items.items()
    ]
