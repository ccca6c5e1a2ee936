"""What a data worker does: rows to decoded clips to a batch, with bad items replaced and named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avssl.batch import Batch, Stream
from avssl.data.bad import BadItem
from avssl.data.clip import Absent, Clip, Limits, Request, Row, Source, Waveform
from avssl.data.sampler import Key, item_seed
from avssl.data.source import shown
from avssl.data.targets import Codec
from avssl.data.workers import Blame
from avssl.errors import AvsslError, DataError
from avssl.frontend import Frontend
from avssl.words import none_of

RESERVES = 20  # replacements tried for one bad item before the run stops
Packed = tuple[Any, ...]


def decode_clip(
    row: Row, request: Request, limits: Limits, codec: Codec | None = None, seed: int = 0, *, some: bool = False
) -> Clip:
    """Decode what the request asks for. Raises DataError naming the file and the reason.

    some: a part that is absent (no sound in this window) is left out as long as another part is there.
    """
    from avssl.registry import load

    parts = {}
    absent: Absent | None = None
    for modality, wish in request.parts.items():
        if modality not in row.parts:
            raise DataError(f"{row.id}: has no {modality}", fix="leave it out of the manifest")
        decode = load("modality", modality, "decode")
        try:
            part = parts[modality] = decode(row.parts[modality], wish, start=row.start, end=row.end, limits=limits)
            if isinstance(part, Waveform) and not part.samples.shape[-1]:  # padding would make it silence
                raise DataError(f"{shown(file_of(row.parts[modality]))}: holds no samples", fix="remove the file")
        except Absent as error:
            if not some:
                raise
            absent = error
        except AvsslError:
            raise
        except Exception as error:  # a decoder is a stranger: whatever it raises, this item is bad and no other
            raise DataError(
                f"{shown(file_of(row.parts[modality]))}: the {modality} decoder failed: "
                f"{type(error).__name__}: {' '.join(str(error).split())}",
                fix="mend or remove the file",
            ) from error
    if absent is not None and not parts:
        raise absent
    target = codec.encode(row) if codec is not None else None
    return Clip(id=row.id, parts=parts, row=row, target=target, seed=seed, view=request.view)


@dataclass
class Made:
    """What comes back for a list of keys: one batch (None when nothing was left), its row numbers and views, bad items."""

    batch: Batch | None
    indices: list[int]
    views: list[str]
    bad: list[BadItem]

    def __getstate__(self) -> Packed:  # arrays instead of tensors: they pickle several times faster
        return (None if self.batch is None else _pack(self.batch), self.indices, self.views, self.bad)

    def __setstate__(self, state: Packed) -> None:
        self.batch = None if state[0] is None else _unpack(state[0])
        self.indices, self.views, self.bad = state[1:]


def _pack(batch: Batch) -> Packed:
    def arrays(s: Stream) -> Packed:
        return s.x.numpy(), None if s.pad is None else s.pad.numpy()

    streams = {name: arrays(s) for name, s in batch.streams.items()}
    return batch.ids, batch.seeds.numpy(), streams, None if batch.targets is None else arrays(batch.targets)


def _unpack(packed: Packed) -> Batch:
    import torch

    def stream(arrays: Packed) -> Stream:
        return Stream(torch.from_numpy(arrays[0]), None if arrays[1] is None else torch.from_numpy(arrays[1]))

    ids, seeds, streams, targets = packed
    return Batch(
        ids,
        torch.from_numpy(seeds),
        {n: stream(s) for n, s in streams.items()},
        None if targets is None else stream(targets),
    )


@dataclass
class TrainingItems:
    """Keys to a training batch. A bad item's place is filled from a reserve that depends on (seed, epoch, item) alone."""

    rows: Sequence[Row]
    frontend: Frontend
    codec: Codec | None
    modalities: frozenset[str]
    seed: int
    limits: Limits
    on_bad: str = "skip"

    def __call__(self, keys: Sequence[Key], blamed: Sequence[Blame], hold: Callable[[int], None]) -> Made:
        bad: list[BadItem] = []
        lost = {b.item: (b.what, b.reason) for b in blamed}
        batches = [self._one(key, lost, bad, hold) for key in keys]
        return Made(Batch.cat(batches, self.frontend.pad_values), [k.index for k in keys], [""] * len(keys), bad)

    def _one(
        self, key: Key, lost: dict[int, tuple[str, str]], bad: list[BadItem], hold: Callable[[int], None]
    ) -> Batch:
        """One item, or what stands for it. The outcome depends on which rows are bad, not on when that was found out:
        whoever meets a row in `lost` goes the way of whoever tried it and failed."""
        seed = item_seed(self.seed, key)
        reserve = np.random.default_rng([seed, 0xBAD])
        index = key.index
        for _ in range(RESERVES):
            try:
                return self._make(index, seed, lost, hold)
            except _Unusable as error:
                row = self.rows[error.index]
                if self.on_bad == "fail":
                    raise DataError(
                        error.reason
                        if error.what in ("bad", "missing")
                        else f"{shown(path_of(row) or row.id)}: {error.reason}",
                        fix="mend or remove the file; data.on_bad=skip goes on without it",
                    ) from None
                bad.append(BadItem(row.id, path_of(row), error.what, error.reason))
                lost[error.index] = (error.what, error.reason)
                if error.index == index:
                    index = int(reserve.integers(len(self.rows)))
        raise DataError(
            f"{self.rows[key.index].id}: it and {RESERVES - 1} replacements are unreadable",
            fix="see bad_files.csv; `avssl data scan` lists what can be read",
        )

    def _make(self, index: int, seed: int, lost: Mapping[int, tuple[str, str]], hold: Callable[[int], None]) -> Batch:
        rng = np.random.default_rng(seed)
        reserve = np.random.default_rng([seed, 0xFA2])  # apart from `rng`: a lost partner changes no other draw
        request, clip = self._decoded(index, rng, seed, lost, hold)
        clips = [clip]
        for _ in range(request.partners):
            partner = int(rng.integers(len(self.rows)))
            for _ in range(RESERVES):
                if partner not in lost:
                    break
                partner = int(reserve.integers(len(self.rows)))
            clips.append(self._decoded(partner, rng, seed, lost, hold)[1])
        hold(index)
        try:
            return made_by(self.frontend, clips, rng, seed)
        except DataError as error:
            raise _Unusable(index, "bad", error.message) from None

    def _decoded(
        self,
        index: int,
        rng: np.random.Generator,
        seed: int,
        lost: Mapping[int, tuple[str, str]],
        hold: Callable[[int], None],
    ) -> tuple[Request, Clip]:
        hold(index)
        if index in lost:
            raise _Unusable(index, *lost[index])
        row = self.rows[index]
        row = replace(
            row, parts={m: s for m, s in row.parts.items() if m in self.modalities}
        )  # nothing is decoded in vain
        try:
            request = self.frontend.plan(row, rng)
            return request, decode_clip(row, request, self.limits, self.codec, seed)
        except DataError as error:
            raise _Unusable(index, "missing" if isinstance(error, Absent) else "bad", error.message) from None


@dataclass
class EvaluationItems:
    """(row, view) pairs to single items, deterministic. Bad ones are reported and left out.

    modalities: what to decode of each row; a row that lacks all of them is reported as "missing"; some=False: a row from
    which one of the parts that the frontend asks for cannot be had, too.
    """

    rows: Sequence[Row]
    frontend: Frontend
    codec: Codec | None
    modalities: frozenset[str]
    limits: Limits
    all_views: bool = True
    some: bool = True

    def __call__(self, keys: Sequence[int], blamed: Sequence[Blame], hold: Callable[[int], None]) -> list[Made]:
        blames = {b.item: b for b in blamed}
        out = []
        for index in keys:
            hold(index)
            out.extend(self._one(index, blames.get(index)))
        return out

    def _one(self, index: int, blame: Blame | None) -> list[Made]:
        row = self.rows[index]
        wanted = {m: s for m, s in row.parts.items() if m in self.modalities}
        if not wanted:
            has = ", ".join(row.parts) or "nothing"
            reason = f"has no {' or '.join(sorted(self.modalities))} (it has {has})"
            return [Made(None, [index], [], [BadItem(row.id, path_of(row), "missing", reason)])]
        row = replace(row, parts=wanted)
        try:
            if blame is not None:
                raise _Unusable(index, blame.what, blame.reason)
            requests = self.frontend.views(row) if self.all_views else [self.frontend.plan(row, None)]
            made = []
            for request in requests:
                clip = decode_clip(row, request, self.limits, self.codec, some=self.some)
                made.append(Made(made_by(self.frontend, [clip], None, 0), [index], [request.view], []))
            return made
        except _Unusable as error:
            return [Made(None, [index], [], [BadItem(row.id, path_of(row), error.what, error.reason)])]
        except DataError as error:
            what = "missing" if isinstance(error, Absent) else "bad"
            return [Made(None, [index], [], [BadItem(row.id, path_of(row), what, error.message)])]


class _Unusable(Exception):
    def __init__(self, index: int, what: str, reason: str) -> None:
        super().__init__(reason)
        self.index, self.what, self.reason = index, what, reason


def made_by(frontend: Frontend, clips: list[Clip], rng: np.random.Generator | None, seed: int) -> Batch:
    """`frontend.item`, its values checked: what is not finite never reaches a network."""
    import torch

    batch = frontend.item(clips, rng)
    for modality, stream in batch.streams.items():
        # the sum is many times faster to look at; it may overflow where every value is finite
        if stream.x.is_floating_point() and not (bool(stream.x.sum().isfinite()) or bool(stream.x.isfinite().all())):
            raise DataError(f"{clips[0].id}: {modality} has values that are not finite", fix="mend or remove the file")
    return replace(batch, seeds=torch.full_like(batch.seeds, seed))


def path_of(row: Row) -> str:
    """The file of a row, for messages: the first path among its parts."""
    return next((file_of(source) for source in row.parts.values()), "")


def file_of(source: Source) -> str:
    """A source in a list: its path, the first of several, or the beginning of a text."""
    return source[0] if isinstance(source, tuple) else source[:200]


def usable(rows: Sequence[Row], needed: Collection[str]) -> tuple[list[Row], list[BadItem]]:
    """Rows that have every needed modality, and a "missing" item for each of the others."""
    good, lacking = [], []
    for row in rows:
        absent = sorted(set(needed) - set(row.parts))
        if absent:
            lacking.append(BadItem(row.id, path_of(row), "missing", f"has no {', '.join(absent)}"))
        else:
            good.append(row)
    if not good:
        raise DataError(
            f"{none_of(len(rows), 'item')} has {' and '.join(sorted(needed))}",
            fix="`avssl data scan` shows what they have; choose a backbone that reads it",
        )
    return good, lacking


__all__ = ["EvaluationItems", "Made", "TrainingItems", "decode_clip", "path_of", "usable"]
