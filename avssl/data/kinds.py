"""Which modalities a file name or a manifest column stands for, as the registered modalities say."""

from __future__ import annotations

import os
import re

from avssl.entries import ModalityEntry

# Columns that hold a media file of any kind: it gives every modality that its suffix allows (a video: sound too)
GENERIC = frozenset({"path", "file", "filename", "media", "video", "video_path"})


def modalities() -> tuple[ModalityEntry, ...]:
    """All registered modalities, by name."""
    from avssl.registry import registry

    return tuple(registry().all("modality"))


def of_file(path: str) -> list[str]:
    """The modalities that a file of this suffix may carry."""
    suffix = os.path.splitext(path)[1].lower()
    return [m.name for m in modalities() if suffix in m.suffixes]


def inline() -> frozenset[str]:
    """Modalities whose manifest column holds the value itself."""
    return frozenset(m.name for m in modalities() if m.inline)


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that counts: `frame_10` after `frame_9`, "class 10" after "class 2"."""
    return [(0, int(t), t) if t.isdigit() and t.isascii() else (1, 0, t) for t in re.split(r"([0-9]+)", text)]


def frames_in(folder: str) -> tuple[str, ...]:
    """The images directly in a folder, in natural order."""
    from avssl.builtin import IMAGE

    names = sorted((n for n in os.listdir(folder) if n.lower().endswith(IMAGE)), key=natural)
    return tuple(os.path.join(folder, n) for n in names)
