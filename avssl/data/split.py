"""Splits and folds that keep together what belongs together, with every class in its share."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from avssl.data.clip import Row
from avssl.errors import DataError, check
from avssl.words import counted

VALIDATION = ("val", "valid", "validation", "dev")  # names of the split that a run looks at while it trains
HELD_OUT = ("test", "eval", *VALIDATION)  # splits that nothing is trained on, in the order in which one is evaluated


def split_rows(
    rows: Sequence[Row],
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    prints: Sequence[Mapping[str, str]] | None = None,
) -> list[Row]:
    """Rows in their order with `split` set.

    shares: split -> share of the items, summing to 1. Rows of one group (or one file, or equal fingerprints) go to one
    split; within that, each label's share is kept as closely as a greedy assignment does, the rarest labels first.
    The result depends on the rows, the shares and the seed alone.
    """
    total = sum(shares.values())
    check(
        bool(shares) and all(s > 0 for s in shares.values()) and abs(total - 1) < 1e-6,
        f"the shares {dict(shares)} do not sum to 1",
        fix="e.g. train=0.8 val=0.1 test=0.1",
        error=DataError,
    )
    places = _assign(rows, shares, seed, prints)
    return [replace(row, split=place) for row, place in zip(rows, places, strict=True)]


def fold_rows(
    rows: Sequence[Row], folds: int, *, seed: int = 0, prints: Sequence[Mapping[str, str]] | None = None
) -> list[Row]:
    """Rows in their order with `fold` set to 1 ... folds, by the rules of `split_rows`."""
    check(folds >= 2, f"{folds} folds are none", fix="give at least 2", error=DataError)
    places = _assign(rows, {str(i): 1 / folds for i in range(1, folds + 1)}, seed, prints)
    return [replace(row, fold=int(place)) for row, place in zip(rows, places, strict=True)]


def _assign(
    rows: Sequence[Row], shares: Mapping[str, float], seed: int, prints: Sequence[Mapping[str, str]] | None
) -> list[str]:
    bundles = bundle(rows, prints)
    if len(bundles) < len(shares):
        there = f"{counted(len(rows), 'item')} in {counted(len(bundles), 'group')}"
        raise DataError(
            f"{there} cannot fill {len(shares)} splits",
            fix="what shares a group, a file or its content stays together: give more, or fewer splits",
        )
    totals: Counter[str] = Counter(label for r in rows for label in _labels(r))
    names = list(shares)
    have: dict[str, Counter[str]] = {name: Counter() for name in names}
    filled = dict.fromkeys(names, 0)
    order = np.random.default_rng(seed).permutation(len(bundles))
    contents = [Counter(label for i in members for label in _labels(rows[i])) for members in bundles]
    rarest = [min((totals[label] for label in c), default=0) for c in contents]
    # large bundles first, while there is room for them; then the rare labels; ties in the seed's order
    ranked = sorted(order, key=lambda b: (-len(bundles[b]), rarest[b]))
    places = [""] * len(rows)
    for left, b in zip(range(len(bundles), 0, -1), ranked, strict=True):
        size, content = len(bundles[b]), contents[b]
        empty = [n for n in names if filled[n] == 0]

        def lacking(name: str, content: Counter[str] = content, size: int = size) -> tuple[float, float]:
            """How far behind its share a split is: in the bundle's labels, then in items."""
            wanted = sum(n * (shares[name] * totals[x] - have[name][x]) / totals[x] for x, n in content.items())
            room = shares[name] * len(rows) - filled[name]
            return (wanted / shares[name] if room > 0 else -np.inf, room / shares[name])

        name = max(empty if len(empty) >= left else names, key=lacking)
        have[name].update(content)
        filled[name] += size
        for i in bundles[b]:
            places[i] = name
    return places


def few_rows(rows: Sequence[Row], per_class: int, *, seed: int = 0) -> list[Row]:
    """At most `per_class` rows of each label, in their order; rows without a label are left out.

    A row's rank in the draw depends on the seed and its id alone: the same items are chosen wherever the same ones are
    offered, and choosing from what was chosen changes nothing. A row of several labels is taken while one of them lacks
    items.
    """

    def rank(i: int) -> bytes:
        return hashlib.blake2b(f"{seed}/{rows[i].id}".encode()).digest()

    have: Counter[str] = Counter()
    chosen = []
    for i in sorted(range(len(rows)), key=rank):
        labels = set(rows[i].labels)
        if any(have[label] < per_class for label in labels):
            have.update(labels)
            chosen.append(i)
    return [rows[i] for i in sorted(chosen)]


def bundle(rows: Sequence[Row], prints: Sequence[Mapping[str, str]] | None = None) -> list[list[int]]:
    """Row numbers that must not be divided: equal group, equal file, equal content, and what these chain together."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        keys = [("group", row.group)] if row.group else []
        keys += [("file", str(source)) for modality, source in row.parts.items() if modality != "text"]
        keys += list(prints[i].items()) if prints is not None else []
        for key in keys:
            a, b = root(first.setdefault(key, i)), root(i)
            parent[max(a, b)] = min(a, b)
    bundles: dict[int, list[int]] = defaultdict(list)
    for i in range(len(rows)):
        bundles[root(i)].append(i)
    return list(bundles.values())


def _labels(row: Row) -> tuple[str, ...]:
    return row.labels or ("",)
