"""What a data worker does: rows to decoded clips to a batch, with bad items replaced and named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from avssl.batch import Batch, Stream
from avssl.data.bad import BadItem
from avssl.data.clip import Absent, Clip, Limits, Request, Row
from avssl.data.sampler import Key, item_seed
from avssl.data.targets import Codec
from avssl.data.workers import Blame
from avssl.errors import DataError
from avssl.frontend import Frontend

RESERVES = 20  # replacements tried for one bad item before the run stops
Packed = tuple[Any, ...]


def decode_clip(row: Row, request: Request, limits: Limits, codec: Codec | None = None, seed: int = 0, *,
                some: bool = False) -> Clip:
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
            parts[modality] = decode(row.parts[modality], wish, start=row.start, end=row.end, limits=limits)
        except Absent as error:
            if not some:
                raise
            absent = error
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
    return Batch(ids, torch.from_numpy(seeds), {n: stream(s) for n, s in streams.items()},
                 None if targets is None else stream(targets))


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

    def __call__(self, keys: Sequence[Key], blamed: Sequence[Blame[Key]], hold: Callable[[int], None]) -> Made:
        batches, bad = [], []
        blames = {b.key: b for b in blamed}
        for position, key in enumerate(keys):
            hold(position)
            batches.append(self._one(key, blames, bad))
        return Made(Batch.cat(batches, self.frontend.pad_values), [k.index for k in keys], [""] * len(keys), bad)

    def _one(self, key: Key, blames: dict[Key, Blame[Key]], bad: list[BadItem]) -> Batch:
        seed = item_seed(self.seed, key)
        reserve = np.random.default_rng([seed, 0xBAD])
        index = key.index
        for attempt in range(RESERVES):
            row = self.rows[index]
            try:
                if attempt == 0 and key in blames:
                    raise _Blamed(blames[key].what, blames[key].reason)
                return self._make(row, seed)
            except (DataError, _Blamed) as error:
                if self.on_bad == "fail":
                    raise DataError(str(error) if isinstance(error, DataError) else f"{row.id}: {error}",
                                    fix="" if isinstance(error, DataError) else "data.on_bad=skip goes on without it") from None
                what = _what(error)
                bad.append(BadItem(row.id, path_of(row), what, getattr(error, "message", str(error))))
                index = int(reserve.integers(len(self.rows)))
        raise DataError(f"{self.rows[key.index].id}: it and {RESERVES - 1} replacements are unreadable",
                        fix="see bad_files.csv; `avssl data scan` lists what can be read")

    def _make(self, row: Row, seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        row = self._wanted(row)
        request = self.frontend.plan(row, rng)
        clips = [decode_clip(row, request, self.limits, self.codec, seed)]
        for _ in range(request.partners):
            partner = self._wanted(self.rows[int(rng.integers(len(self.rows)))])
            clips.append(decode_clip(partner, self.frontend.plan(partner, rng), self.limits, self.codec, seed))
        return _made_by(self.frontend, clips, rng, seed)

    def _wanted(self, row: Row) -> Row:
        """The row with only the modalities of this run: nothing is decoded in vain."""
        return replace(row, parts={m: s for m, s in row.parts.items() if m in self.modalities})


@dataclass
class EvaluationItems:
    """(row, view) pairs to single items, deterministic. Bad ones are reported and left out.

    modalities: what to decode of each row; a row that lacks all of them is reported as "missing".
    """

    rows: Sequence[Row]
    frontend: Frontend
    codec: Codec | None
    modalities: frozenset[str]
    limits: Limits
    all_views: bool = True

    def __call__(self, keys: Sequence[int], blamed: Sequence[Blame[int]], hold: Callable[[int], None]) -> list[Made]:
        blames = {b.key: b for b in blamed}
        out = []
        for position, index in enumerate(keys):
            hold(position)
            out.extend(self._one(index, blames.get(index)))
        return out

    def _one(self, index: int, blame: Blame[int] | None) -> list[Made]:
        row = self.rows[index]
        wanted = {m: s for m, s in row.parts.items() if m in self.modalities}
        if not wanted:
            has = ", ".join(row.parts) or "nothing"
            reason = f"has no {' or '.join(sorted(self.modalities))} (it has {has})"
            return [Made(None, [index], [], [BadItem(row.id, path_of(row), "missing", reason)])]
        row = replace(row, parts=wanted)
        try:
            if blame is not None:
                raise _Blamed(blame.what, blame.reason)
            requests = self.frontend.views(row) if self.all_views else [self.frontend.plan(row, None)]
            made = []
            for request in requests:
                clip = decode_clip(row, request, self.limits, self.codec, some=True)
                made.append(Made(_made_by(self.frontend, [clip], None, 0), [index], [request.view], []))
            return made
        except (DataError, _Blamed) as error:
            what = _what(error)
            return [Made(None, [index], [], [BadItem(row.id, path_of(row), what, getattr(error, "message", str(error)))])]


class _Blamed(Exception):
    def __init__(self, what: str, reason: str) -> None:
        super().__init__(reason)
        self.what = what


def _what(error: Exception) -> str:
    return error.what if isinstance(error, _Blamed) else "missing" if isinstance(error, Absent) else "bad"


def _made_by(frontend: Frontend, clips: list[Clip], rng: np.random.Generator | None, seed: int) -> Batch:
    """`frontend.item`, its values checked: what is not finite never reaches a network."""
    import torch

    batch = frontend.item(clips, rng)
    for modality, stream in batch.streams.items():
        if stream.x.is_floating_point() and not bool(stream.x.isfinite().all()):
            raise DataError(f"{clips[0].id}: {modality} has values that are not finite", fix="mend or remove the file")
    return replace(batch, seeds=torch.full_like(batch.seeds, seed))


def path_of(row: Row) -> str:
    """The file of a row, for messages: the first path among its parts."""
    for source in row.parts.values():
        return source[0] if isinstance(source, tuple) else str(source)[:200]
    return ""


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
        raise DataError(f"none of the {len(rows)} items has {' and '.join(sorted(needed))}",
                        fix="`avssl data scan` shows what they have; choose a backbone that reads it")
    return good, lacking


__all__ = ["EvaluationItems", "Made", "TrainingItems", "decode_clip", "path_of", "usable"]
