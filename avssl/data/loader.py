"""Batches for training (resumable at any update) and for evaluation (each item once, equal lengths together)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from avssl.batch import Batch
from avssl.data.bad import BadFiles
from avssl.data.clip import Limits, Row
from avssl.data.items import EvaluationItems, Made, TrainingItems
from avssl.data.sampler import Key, Sampler
from avssl.data.targets import Codec
from avssl.data.workers import Blame, WorkerPool
from avssl.errors import DataError
from avssl.frontend import Frontend

CHUNK = 16  # items a worker makes at a time: small enough to spread one batch over several workers
BUFFER = 512  # evaluation items that may wait for others of their shape


@dataclass
class TrainingLoader:
    """The micro-batches of this rank, from any update on.

    Every update draws `batch` keys from the sampler; rank r takes the r-th of `ranks` equal parts, in micro-batches of
    `micro` items. Iterating from update u gives what an uninterrupted run would have seen.
    """

    items: TrainingItems
    sampler: Sampler
    bad: BadFiles
    workers: int
    micro: int
    rank: int = 0
    ranks: int = 1
    timeout: float = 120.0

    def updates(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """The micro-batches of updates start+1 .. stop (`start` updates are done)."""
        with WorkerPool(self.items, self.workers, timeout=self.timeout, ahead=4, known=self._quarantined) as pool:
            made = pool.map(chunk for micros in self._plan(start, stop) for chunks in micros for chunk in chunks)
            for micros in self._plan(start, stop):
                yield [self._join(list(islice(made, len(chunks)))) for chunks in micros]

    def _quarantined(self, keys: Sequence[Key]) -> list[Blame]:
        """Under data.on_bad=quarantine, an item that was bad once is not tried again, in later epochs and after a resume.
        What stands for it is the same as under "skip"; what is saved is the wait for a decoder that hangs."""
        if self.items.on_bad != "quarantine":
            return []
        rows, known = self.items.rows, self.bad.by_id
        return [Blame(k.index, item.what, item.reason) for k in keys if (item := known.get(rows[k.index].id))]

    def _plan(self, start: int, stop: int) -> Iterator[list[list[list[Key]]]]:
        """For each update: its micro-batches, each as the chunks of keys that workers make."""
        per_epoch = len(self.sampler)
        epoch, batches = -1, []
        for update in range(start, stop):
            if update // per_epoch != epoch:
                epoch = update // per_epoch
                batches = self.sampler.epoch(epoch)
            keys = batches[update % per_epoch]
            share = len(keys) // self.ranks
            mine = keys[self.rank * share : (self.rank + 1) * share]
            yield [_chunks(micro, CHUNK) for micro in _chunks(mine, self.micro)]

    def _join(self, parts: list[Made]) -> Batch:
        self.bad.add(b for p in parts for b in p.bad)
        return Batch.cat([p.batch for p in parts if p.batch is not None], self.items.frontend.pad_values)


def evaluation_batches(
    rows: Sequence[Row],
    frontend: Frontend,
    *,
    batch_size: int,
    workers: int = 0,
    modalities: Collection[str] | None = None,
    codec: Codec | None = None,
    views: bool = True,
    limits: Limits | None = None,
    on_bad: str = "skip",
    bad: BadFiles | None = None,
    mixed: bool = False,
    timeout: float = 120.0,
) -> Iterator[tuple[list[int], list[str], Batch]]:
    """(row numbers, view names, batch) until every row was seen once in each of its views.

    Items are batched with others of exactly their shapes and modalities, so that padding never touches a number; the
    order depends on the rows alone, not on the workers. mixed: batch neighbours as they come and pad them (the rule of
    some authors' evaluation). modalities: decode only these. views=False: the one view of `frontend.plan(row, None)`.
    Rows that cannot be read go to `bad` (on_bad="fail": raise DataError).
    """
    bad = bad if bad is not None else BadFiles()
    wanted = frozenset(modalities if modalities is not None else frontend.modalities)
    items = EvaluationItems(rows, frontend, codec, wanted, limits or Limits(), views)
    waiting: dict[tuple, list[Made]] = {}
    with WorkerPool(items, workers, timeout=timeout) as pool:
        for made in pool.map(_chunks(range(len(rows)), max(1, min(CHUNK, batch_size)))):
            for one in made:
                for item in bad.add(one.bad):
                    if on_bad == "fail":
                        raise DataError(
                            item.line if item.path else f"{item.id}: {item.reason}",
                            fix="on_bad=skip goes on without it",
                        )
                if one.batch is None:
                    continue
                bucket = waiting.setdefault(_signature(one.batch, mixed, frontend.fixed), [])
                bucket.append(one)
                if len(bucket) == batch_size:
                    yield _joined(waiting.pop(_signature(one.batch, mixed, frontend.fixed)), frontend)
            while sum(map(len, waiting.values())) > BUFFER:
                yield _joined(waiting.pop(max(waiting, key=lambda k: len(waiting[k]))), frontend)
    for bucket in waiting.values():
        yield _joined(bucket, frontend)


def _signature(batch: Batch, mixed: bool, fixed: frozenset[str]) -> tuple:
    if mixed:
        return tuple(sorted(batch.streams))
    shapes = {name: () if name in fixed else tuple(stream.x.shape[1:]) for name, stream in batch.streams.items()}
    return tuple(sorted(shapes.items()))


def _joined(made: Iterable[Made], frontend: Frontend) -> tuple[list[int], list[str], Batch]:
    made = list(made)
    batch = Batch.cat([m.batch for m in made if m.batch is not None], frontend.pad_values)
    return [i for m in made for i in m.indices], [v for m in made for v in m.views], batch


def _chunks(keys: Sequence, size: int) -> list[list]:
    return [list(keys[i : i + size]) for i in range(0, len(keys), size)]
