"""One decoded item, the row it came from, and what a frontend asks a decoder for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avssl.errors import DataError

Source = str | tuple[str, ...]  # a path, an inline value (text), or the paths of several frames


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a manifest. Paths are absolute once read. The window of a row is [start, end) of its media."""

    id: str
    parts: Mapping[str, Source]  # modality -> where it is (several modalities may share one container)
    labels: tuple[str, ...] = ()  # class names (or one number / one text, as the target codec reads them)
    split: str = ""
    group: str = ""  # speaker, source recording: never divided between splits
    fold: int | None = None
    start: float | None = None  # seconds into the media; None = from the beginning
    end: float | None = None
    duration: float | None = None  # seconds that the row's window lasts (not: the file), when a scan measured it
    extra: Mapping[str, Any] = field(default_factory=dict)  # other columns, kept

    @property
    def seconds(self) -> float | None:
        """Length of the row's window, as far as it is known without opening the file."""
        return self.duration if self.end is None else self.end - (self.start or 0.0)


@dataclass(frozen=True, slots=True)
class AudioRequest:
    """The window of sound to decode: seconds from the start of the row's window; seconds None = to its end."""

    start: float = 0.0
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class FramesRequest:
    """Which pictures of a video to decode. Times are seconds from the start of the row's window.

    times: exact time stamps. Otherwise `count` frames spread over the window as the frontend's rule says:
    "uniform" = the middles of `count` equal parts; indices (for frame folders and images): which of the files;
    fractions: places in the window, 0 = its start, 1 = its end, for videos whose length nobody has measured.
    within: of `count` and `fractions`, only the first seconds of the window.
    size: short side in pixels that is enough; the decoder may then scale while decoding (never up). None = native.
    """

    times: tuple[float, ...] = ()
    count: int = 1
    indices: tuple[int, ...] = ()
    size: int | None = None
    fractions: tuple[float, ...] = ()
    within: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What to decode of a row: modality -> its request (ours, or whatever a third party's decoder takes; None = all)."""

    parts: Mapping[str, Any]
    partners: int = 0  # further random items to decode for mixing; `item` then gets 1 + partners clips
    view: str = ""  # names the view at evaluation, e.g. "frame 3" or "10.0-20.0 s"


@dataclass(frozen=True, slots=True)
class Waveform:
    """Decoded sound at its own rate, channels kept."""

    samples: np.ndarray  # (C, L) float32, finite; |x| may exceed 1 in float files
    rate: int  # Hz
    start: float = 0.0  # seconds from the start of the row's window


@dataclass(frozen=True, slots=True)
class Frames:
    """Decoded pictures of one size."""

    pixels: np.ndarray  # (K, H, W, 3) uint8, RGB, upright, square pixels
    times: tuple[float, ...] = ()  # seconds from the start of the row's window, when they have one


@dataclass(frozen=True, slots=True)
class Clip:
    """One decoded item: `parts` holds a Waveform, Frames, str, or whatever another modality's decoder returns."""

    id: str
    parts: Mapping[str, Any]
    row: Row | None = None
    target: Any = None  # the row's labels as the target codec encoded them: a numpy array or number; None = unlabelled
    seed: int = 0  # f(run seed, epoch, item); 0 at evaluation
    view: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one decoded part may be, checked before memory is taken. A decoder raises DataError beyond it."""

    max_seconds: float = 600.0  # of sound returned at once; a window of a longer recording is fine
    max_pixels: int = 64_000_000  # width x height of one picture
    max_channels: int = 64
    max_rate: int = 768_000  # Hz
    max_bytes: int = 1 << 30  # of the part that is returned


class Absent(DataError):
    """The file is readable but has no such stream, or none in the wanted window: missing, not bad."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a cheap look at a file says, before anything is decoded."""

    modalities: frozenset[str]  # what the file really carries
    seconds: float | None = None
    rate: int | None = None
    channels: int | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    codec: Mapping[str, str] = field(default_factory=dict)
    ends: Mapping[str, float] = field(default_factory=dict)  # modality -> seconds, where they are known apart

    def lasts(self, modality: str) -> float | None:
        """Seconds until a modality ends: the sound of a film may be shorter than its pictures."""
        return self.ends.get(modality, self.seconds)
