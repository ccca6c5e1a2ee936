"""Which item goes where: a pure function of (seed, epoch), so that a resumed run continues in the middle of an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from avssl.data.clip import Row
from avssl.errors import DataError, check


class Key(NamedTuple):
    """One draw of an item. occurrence: 0 for the first time in its epoch (balanced sampling repeats items)."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks a key for
    epoch: int
    occurrence: int = 0


def item_seed(seed: int, key: Key, salt: int = 0) -> int:
    """63-bit seed of everything random about one draw of one item."""
    state = np.random.SeedSequence([seed & 0xFFFFFFFF, key.epoch, key.index, key.occurrence, salt]).generate_state(
        1, np.uint64
    )
    return int(state[0] >> np.uint64(1))


class Sampler(Protocol):
    """What a LossEntry's `sampler` class offers: built with (rows, batch_size, seed), asked for whole epochs."""

    def __len__(self) -> int:
        """Batches of an epoch."""

    def epoch(self, epoch: int) -> list[list[Key]]:
        """The batches of an epoch, each of exactly batch_size keys."""


@dataclass(frozen=True)
class ShuffledSampler:
    """Each item once an epoch in a fresh order; the remainder that fills no batch is left out (another one each epoch)."""

    rows: Sequence[Row]
    batch_size: int
    seed: int
    epoch_items: int | None = None
    balance: bool = False

    def __post_init__(self) -> None:
        labelled = not self.balance or any(row.labels for row in self.rows)
        check(labelled, "data.balance draws by label, and no item has one", fix="label them", error=DataError)

    def __len__(self) -> int:
        return max(1, (self.epoch_items or len(self.rows)) // self.batch_size)

    def epoch(self, epoch: int) -> list[list[Key]]:
        """The batches of an epoch; items come again only where the epoch is longer than the data, or balanced."""
        rng = np.random.default_rng([self.seed & 0xFFFFFFFF, epoch, 0x5A3])
        wanted = len(self) * self.batch_size
        if self.balance:
            weights = balanced_weights(self.rows)
            order = rng.choice(len(self.rows), size=wanted, replace=True, p=weights / weights.sum())
        else:
            rounds = -(-wanted // len(self.rows))
            order = np.concatenate([rng.permutation(len(self.rows)) for _ in range(rounds)])[:wanted]
        seen: Counter[int] = Counter()
        keys = []
        for index in order.tolist():
            keys.append(Key(index, epoch, seen[index]))
            seen[index] += 1
        return [keys[i : i + self.batch_size] for i in range(0, wanted, self.batch_size)]


def balanced_weights(rows: Sequence[Row]) -> np.ndarray:
    """(N,) weight of each row for class-balanced sampling: the sum over its labels of 1000 / (count + 0.01).

    The rule of AST, CAV-MAE and BEATs fine-tuning on AudioSet; rows without labels weigh nothing.
    """
    counts = Counter(label for row in rows for label in row.labels)
    return np.array([sum(1000.0 / (counts[label] + 0.01) for label in row.labels) for row in rows])
