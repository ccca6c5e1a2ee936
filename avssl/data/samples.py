"""Small example files of any modality, made by its own entry: for the conformance suite and benchmarks without data."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from avssl.data.clip import Row


def sample_rows(modalities: Collection[str], folder: Path, count: int) -> list[Row]:
    """`count` rows, of two classes in turn, whose files are written into `folder`.

    Raises UsageError for a modality whose entry names no `sample`.
    """
    from avssl.registry import load

    makers = {m: load("modality", m, "sample") for m in sorted(modalities)}
    return [
        Row(id=f"sample-{i}", parts={m: make(folder, i) for m, make in makers.items()}, labels=(str(i % 2),))
        for i in range(count)
    ]
