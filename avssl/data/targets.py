"""Labels to numbers and back: a codec is fitted on the training rows and kept with the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from avssl.data.clip import Row
from avssl.data.kinds import natural
from avssl.errors import DataError, UsageError, check, nearest
from avssl.words import none_of

Kind = Literal["index", "multi_hot", "float", "characters"]


@dataclass(frozen=True)
class Codec:
    """How labels become targets.

    index: one class, int64 (). multi_hot: any number of classes, float32 (C,). float: one number, float32 ().
    characters: a text, int64 (N,), `classes` are the symbols in order of their ids.

    exclusive: whether an item is of one class, so that scores are a softmax. Always, but for multi_hot targets: those
    may say several classes, or one, smoothed or mixed with another clip's, for a cross-entropy.
    """

    kind: Kind
    classes: tuple[str, ...] = ()
    exclusive: bool = False
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {name: i for i, name in enumerate(self.classes)})
        object.__setattr__(self, "exclusive", self.exclusive or self.kind != "multi_hot")

    @property
    def size(self) -> int:
        """Outputs of a head for these targets."""
        return max(1, len(self.classes))

    def encode(self, row: Row) -> Any:
        """The target of a row. Raises DataError naming the row for a missing or unknown label."""
        if not row.labels:
            raise DataError(f"{row.id}: no label", fix="add a label column, or leave unlabelled rows out")
        if self.kind == "index":
            check(
                len(row.labels) == 1,
                f"{row.id}: {len(row.labels)} labels where one class is expected",
                fix="--set data.target=multi_hot",
                error=DataError,
            )
            return np.int64(self._of(row.labels[0], row))
        if self.kind == "multi_hot":
            out = np.zeros(len(self.classes), dtype=np.float32)
            out[[self._of(label, row) for label in row.labels]] = 1
            return out
        if self.kind == "float":
            try:
                number = float(row.labels[0])
            except ValueError:
                number = math.nan
            check(
                math.isfinite(number),
                f"{row.id}: label {row.labels[0]!r} is no number",
                fix="give numbers, or data.target=index",
                error=DataError,
            )
            return np.float32(number)
        return np.array([self._of(c, row) for c in row.labels[0]], dtype=np.int64)

    def _of(self, label: str, row: Row) -> int:
        try:
            return self._index[label]
        except KeyError:
            what = "symbol" if self.kind == "characters" else "label"
            raise DataError(
                f"{row.id}: {what} {label!r} is not among the {len(self.classes)} known ones",
                fix=nearest(label, set(self.classes)) if len(self.classes) < 1000 else "check the labels",
            ) from None

    def state(self) -> dict[str, Any]:
        """JSON-able; `Codec.load(state)` gives the codec back."""
        return {"kind": self.kind, "classes": list(self.classes), "exclusive": self.exclusive}

    @staticmethod
    def load(state: Mapping[str, Any], exclusive: bool = False) -> Codec:
        """The codec that `state()` described. exclusive: where the state does not say (older files, importers), what the
        loss says."""
        return Codec(state["kind"], tuple(state["classes"]), state.get("exclusive", exclusive))


def fit_codec(rows: Sequence[Row], kind: str, classes: Sequence[str] | None = None) -> Codec | None:
    """The codec of a training set: classes in natural order (2 before 10). None for kind "none".

    classes: a given list (e.g. of a pretrained head), in its own order. Raises DataError when nothing is labelled.
    """
    if kind == "none":
        return None
    if kind not in ("index", "multi_hot", "float", "characters"):
        raise UsageError(f"data.target = {kind!r}", fix="one of none, index, multi_hot, float, characters")
    labelled = [row for row in rows if row.labels]
    check(
        bool(labelled),
        f"{none_of(len(rows), 'row')} has a label",
        fix="give a manifest with a label column, or class folders",
        error=DataError,
    )
    if kind == "float":
        return Codec("float")
    if classes is None:
        if kind == "characters":
            found = {c for row in labelled for c in row.labels[0]}
            classes = ["<blank>", *sorted(found)]
        else:
            classes = sorted({label for row in labelled for label in row.labels}, key=natural)
    return Codec(kind, tuple(classes))  # type: ignore[arg-type]
