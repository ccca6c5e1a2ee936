"""Splits and labels of rows, as the protocols need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from avssl.data.clip import Row
from avssl.data.split import HELD_OUT
from avssl.data.targets import Codec, fit_codec
from avssl.errors import DataError, check, nearest
from avssl.words import none_of

Splits = Mapping[str, Sequence[Row]]


def splits_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the value of their `split` column; "" when they have none."""
    out: dict[str, list[Row]] = {}
    for row in rows:
        out.setdefault(row.split, []).append(row)
    return out


def evaluation_split(splits: Splits, wanted: str = "", limit: int | None = None) -> tuple[str, list[Row]]:
    """(name, rows) of the split to evaluate on: the wanted one, else the first there is of `HELD_OUT`, else all rows of data
    without splits. Training rows are never taken unasked."""
    if not wanted:
        wanted = next((name for name in HELD_OUT if splits.get(name)), "")
        known = ", ".join(sorted(filter(None, splits)))
        check(
            bool(wanted) or not known,
            f"which split? The data have {known}",
            fix="name one, e.g. --split train",
            error=DataError,
        )
    return wanted or "all", named_split(splits, wanted, limit)


def named_split(splits: Splits, name: str, limit: int | None = None) -> list[Row]:
    """The rows of a split; "all" = every row. Raises DataError with the splits there are."""
    rows = [row for some in splits.values() for row in some] if name == "all" else list(splits.get(name, ()))
    if not rows:
        known = set(filter(None, splits))
        fix = nearest(name, known) if known else "the data have no split column: `avssl data split` writes one"
        raise DataError(f"the data have no {name or 'unnamed'!r} split", fix=fix)
    return spread_over(rows, limit)


def spread_over(rows: Sequence[Row], limit: int | None) -> list[Row]:
    """At most `limit` rows, evenly over all of them: the first ones of a sorted manifest are of one class."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // limit] for i in range(limit)]


@dataclass(frozen=True)
class Labels:
    """Labels of rows as arrays: y (N,) class indices; (N, C) zeros and ones when rows may have several; (N,) floats."""

    codec: Codec
    y: np.ndarray

    @property
    def multi(self) -> bool:
        return self.y.ndim == 2

    @property
    def numbers(self) -> bool:
        return self.codec.kind == "float"

    @property
    def counts(self) -> np.ndarray:
        """(C,) items of each class."""
        return self.y.sum(0).astype(int) if self.multi else np.bincount(self.y, minlength=len(self.codec.classes))


def label_codec(rows: Sequence[Row], given: Codec | None = None) -> Codec:
    """The codec of these rows: one class each, or several. given: a model's own, used when it fits a classifier.

    Labels that are all numbers with a fraction are targets of a regression."""
    if given is not None and given.kind != "characters":
        return given
    several = any(len(row.labels) > 1 for row in rows)
    numeric = not several and all(_is_fraction(row.labels[0]) for row in rows if row.labels)
    codec = fit_codec(rows, "multi_hot" if several else "float" if numeric else "index")
    assert codec is not None
    return codec


def encode(rows: Sequence[Row], codec: Codec) -> Labels:
    """Class indices where the codec says one class each and the rows agree, whatever the targets of training looked
    like. Raises DataError, naming the row, for a missing or unknown label."""
    y = np.stack([codec.encode(row) for row in rows])
    if codec.exclusive and y.ndim == 2 and (y.sum(1) == 1).all():
        y = y.argmax(1)
    return Labels(codec, y)


def labelled(rows: Sequence[Row]) -> list[Row]:
    """Rows that have a label. Raises DataError when none has."""
    kept = [row for row in rows if row.labels]
    check(
        bool(kept),
        f"{none_of(len(rows), 'row')} has a label",
        fix="give a manifest with a label column, or class folders",
        error=DataError,
    )
    return kept


def _is_fraction(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "." in text or "e" in text.lower()
