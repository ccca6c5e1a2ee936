"""What is heard when: labels with times for recordings and for a live stream, by a sliding window."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Literal

import numpy as np
import torch

from avssl.batch import Batch
from avssl.data.clip import Absent, AudioRequest, Clip, Limits, Row, Waveform
from avssl.errors import CheckpointError, UsageError, check

if TYPE_CHECKING:
    from avssl.model import Model

BLOCK = 60.0  # seconds of a recording that are decoded at a time: memory does not grow with its length
DEFAULT_WINDOW = 5.0  # seconds, for a frontend that does not say how long its clips are
SHORTEST = 0.1  # seconds: a remainder below this is not classified
SHORTEST_HOP = 0.01  # seconds: a hundred windows a second are more than anyone reads
Encoding = Literal["s16le", "f32le"]


@dataclass(frozen=True, slots=True)
class Heard:
    """The labels of one window, most likely first."""

    id: str
    start: float  # seconds from the start of the recording or stream
    end: float
    labels: tuple[tuple[str, float], ...]  # (class, score in [0, 1])


class Classifier:
    """A model with a head over sound, applied every `hop` seconds to the last `window` seconds.

    window: seconds; None = the frontend's clip length. Where that can be chosen, it is set to the window: then nothing
    is padded. hop: default half the window. top: labels per window. threshold: leave out lower scores.
    Scores are a softmax, or independent sigmoids where a clip may have several labels.
    Raises CheckpointError for a model without a head, UsageError for one that does not hear, or not so long a window.
    """

    def __init__(
        self,
        model: Model,
        window: float | None = None,
        hop: float | None = None,
        *,
        top: int = 1,
        threshold: float = 0.0,
        batch_size: int = 16,
    ) -> None:
        check(
            model.head is not None,
            f"{model.path} has no classification head",
            fix="fine-tune it first",
            error=CheckpointError,
        )
        check("audio" in model.frontend.modalities, f"{model.path} does not hear", fix="give a model that reads audio")
        check(window is None or window > 0, f"window is {window}", fix="give seconds above 0")
        self.model, self.frontend = model, model.frontend
        length, field = model.frontend.seconds, model.frontend.seconds_field
        self.window = window or length or DEFAULT_WINDOW
        self.hop = self.window / 2 if hop is None else hop
        check(
            SHORTEST_HOP <= self.hop <= self.window,
            f"hop is {self.hop} with window {self.window}",
            fix=f"give a hop between {SHORTEST_HOP} and it",
        )
        check(top > 0, f"top is {top}", fix="give at least 1")
        check(
            length is None or bool(field) or self.window <= length,
            f"a window of {self.window:g} s, and {model.path} hears {length or 0:.4g} s at once",
            fix="give a shorter --window",
        )
        if length is not None and field and self.window != length:
            config = dataclasses.replace(model.frontend.config, **{field: self.window})
            self.frontend = type(model.frontend)(config).eval().to(model.device)
        self.top, self.threshold, self.batch_size = top, threshold, batch_size
        codec = model.codec
        self.classes = codec.classes if codec is not None else ()
        self.exclusive = codec is None or codec.exclusive

    def row(self, row: Row, limits: Limits | None = None) -> Iterator[Heard]:
        """A recording of any length, block by block. Raises DataError for a file that cannot be read."""
        yield from self._windows(row.id, _blocks_of(row, limits or Limits()), self.batch_size)

    def array(self, samples: np.ndarray, rate: int, id: str = "") -> Iterator[Heard]:
        """samples: (L,) or (C, L) float in [-1, 1]."""
        whole = np.atleast_2d(np.asarray(samples, dtype=np.float32))
        yield from self._windows(id, iter([(whole, rate)]), self.batch_size)

    def stream(
        self, file: BinaryIO, rate: int, *, channels: int = 1, encoding: Encoding = "s16le", id: str = "-"
    ) -> Iterator[Heard]:
        """Raw interleaved PCM, endless if need be: each window is classified as soon as its last sample arrived."""
        yield from self._windows(id, _blocks_of_pcm(file, rate, channels, encoding), 1)

    @torch.inference_mode()
    def _windows(self, id: str, blocks: Iterator[tuple[np.ndarray, int]], batch_size: int) -> Iterator[Heard]:
        waiting: list[tuple[float, float, Batch]] = []
        for start, samples, rate in slide(blocks, self.window, self.hop):
            clip = Clip(id, {"audio": Waveform(samples, rate)})
            end = start + samples.shape[1] / rate
            waiting.append((start, end, self.frontend.item([clip], None)))
            if len(waiting) == batch_size:
                yield from self._classify(id, waiting)
                waiting = []
        if waiting:
            yield from self._classify(id, waiting)

    def _classify(self, id: str, windows: list[tuple[float, float, Batch]]) -> Iterator[Heard]:
        batch = Batch.cat([w[2] for w in windows], self.frontend.pad_values)
        ready = self.frontend(batch.to(self.model.device))
        head = self.model.head
        assert head is not None
        logits = head(self.model.backbone(ready, only=getattr(head, "streams", None))).float()
        scores = (logits.softmax(-1) if self.exclusive else logits.sigmoid()).cpu().numpy()
        for (start, end, _), row in zip(windows, scores, strict=True):
            best = np.argsort(-row, kind="stable")[: self.top]
            labels = tuple((self._name(i), float(row[i])) for i in best.tolist() if row[i] >= self.threshold)
            yield Heard(id, start, end, labels)

    def _name(self, index: int) -> str:
        return self.classes[index] if index < len(self.classes) else str(index)


def slide(
    blocks: Iterable[tuple[np.ndarray, int]], window: float, hop: float
) -> Iterator[tuple[float, np.ndarray, int]]:
    """Blocks of (C, L) samples, one rate, to (start in seconds, (C, window) samples, rate) every `hop` seconds.

    Windows lie at multiples of the hop. A remainder that no window covered comes last, shorter; below 0.1 s it is left
    out, unless it is all there is. Holds at most one window and one block.
    """
    held: np.ndarray | None = None
    begin, covered, rate = 0, 0, 0  # samples: where `held` begins; up to where windows reached
    number = 0
    for block, block_rate in blocks:
        if held is None:
            held, rate = block, block_rate
        else:
            if block_rate != rate or block.shape[0] != held.shape[0]:
                raise UsageError(
                    f"the sound changes from {held.shape[0]} channels at {rate} Hz to {block.shape[0]} at {block_rate}",
                    fix="resample it to one format",
                )
            held = np.concatenate([held, block], 1)
        length = max(1, round(window * rate))
        while True:
            start = round(number * hop * rate)
            if start + length > begin + held.shape[1]:
                break
            yield start / rate, held[:, start - begin : start - begin + length], rate
            covered, number = start + length, number + 1
            keep = min(round(number * hop * rate), begin + held.shape[1])
            held, begin = held[:, keep - begin :], keep
    if held is not None:
        end = begin + held.shape[1]
        if end - covered >= SHORTEST * rate or (covered == 0 and end > 0):
            start = round(number * hop * rate)
            yield start / rate, held[:, start - begin :], rate


def _blocks_of(row: Row, limits: Limits) -> Iterator[tuple[np.ndarray, int]]:
    """A recording in blocks of a minute, from its first sample to its last."""
    from avssl.registry import load

    decode = load("modality", "audio", "decode")
    number = 0
    while True:
        try:
            wish = AudioRequest(number * BLOCK, BLOCK)
            wave: Waveform = decode(row.parts["audio"], wish, start=row.start, end=row.end, limits=limits)
        except KeyError:
            raise Absent(f"{row.id}: has no audio", fix="leave it out") from None
        except Absent:
            if number == 0:
                raise
            return
        late = round((wave.start - wish.start) * wave.rate)
        samples = (
            np.pad(wave.samples, ((0, 0), (late, 0))) if late > 0 else wave.samples
        )  # times stay those of the file
        if samples.shape[1]:
            yield samples, wave.rate
        if samples.shape[1] < int(BLOCK * wave.rate) - 1:
            return
        number += 1


def _blocks_of_pcm(file: BinaryIO, rate: int, channels: int, encoding: Encoding) -> Iterator[tuple[np.ndarray, int]]:
    """What is there, as soon as it is there; an incomplete last frame is dropped."""
    check(rate > 0 and channels > 0, f"{channels} channels at {rate} Hz", fix="give --rate and --channels")
    check(encoding in ("s16le", "f32le"), f"unknown encoding {encoding!r}", fix="s16le or f32le")
    kind, scale = (np.dtype("<i2"), 32768.0) if encoding == "s16le" else (np.dtype("<f4"), 1.0)
    step = kind.itemsize * channels
    read = getattr(file, "read1", file.read)  # read1: does not wait for more than has arrived
    rest = b""
    while data := read(max(step, 1 << 16)):
        rest += data
        whole = len(rest) // step * step
        if whole:
            samples = np.frombuffer(rest[:whole], dtype=kind).reshape(-1, channels).T.astype(np.float32) / np.float32(
                scale
            )
            rest = rest[whole:]
            check(bool(np.isfinite(samples).all()), "the stream holds values that are not finite", fix="is it f32le?")
            yield samples, rate


__all__ = ["Classifier", "Heard", "slide"]
