"""What an item gives does not depend on its neighbours: sounds and sentences of unequal lengths, for every backbone.

The items go the way that `embed` and `evaluate` send them. Some authors' encoders let padding leak into an item (a
group norm over time, a convolution without a mask): there, too, the bound holds, because only equal lengths share a
batch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from avssl.data.clip import Row
from avssl.data.loader import evaluation_batches
from avssl.entries import resolve
from avssl.registry import registry
from avssl.testing import BATCH_TOLERANCE, Subject, subject

SECONDS = (1.0, 1.37, 1.0, 2.0, 1.37, 0.8, 2.0)
WORDS = ["a", "dog", "barks", "far", "away", "while", "rain", "falls", "on", "a", "tin", "roof", "and", "one", "sings"]


def rows_for(s: Subject, folder: Path) -> list[Row]:
    """Items of several lengths in every modality that the backbone reads."""
    rng = np.random.default_rng(0)
    rows = []
    for i, seconds in enumerate(SECONDS):
        parts = {}
        for modality in sorted(s.frontend.modalities or s.entry.modalities):
            if modality == "audio":
                soundfile.write(
                    folder / f"{i}.wav", (0.1 * rng.normal(size=int(16000 * seconds))).astype(np.float32), 16000
                )
                parts[modality] = str(folder / f"{i}.wav")
            elif modality == "text":
                parts[modality] = " ".join(WORDS[: 3 + int(5 * seconds)])
            else:
                parts[modality] = resolve(registry().get("modality", modality).sample)(folder, i)
        rows.append(Row(id=str(i), parts=parts, duration=seconds if "audio" in parts else None))
    return rows


def features(
    s: Subject, rows: list[Row], order: list[int], size: int, workers: int = 0
) -> dict[tuple[str, str, str], torch.Tensor]:
    out = {}
    mixed = [rows[i] for i in order]
    for indices, views, batch in evaluation_batches(mixed, s.frontend, batch_size=size, workers=workers):
        with torch.no_grad():
            pooled = s.backbone(s.frontend(batch)).pooled
        for stream, x in pooled.items():
            out.update({(mixed[i].id, view, stream): v for i, view, v in zip(indices, views, x, strict=True)})
    return out


@pytest.mark.parametrize("name", [e.name for e in registry().all("backbone")])
def test_neighbours_do_not_matter(name: str, tmp_path: Path) -> None:
    s = subject(registry().get("backbone", name), tmp_path)
    rows = rows_for(s, tmp_path)
    alone = features(s, rows, list(range(7)), size=1)
    assert {key[0] for key in alone} == {row.id for row in rows}
    again = features(s, rows, list(range(7)), size=1, workers=2)
    assert all(torch.equal(again[key], x) for key, x in alone.items())  # the same arithmetic: the same bits
    worst = 0.0
    for order, size in ((list(range(7)), 3), ([6, 2, 5, 0, 3, 1, 4], 7)):
        together = features(s, rows, order, size)
        assert together.keys() == alone.keys()
        for key, x in alone.items():
            worst = max(worst, float((together[key] - x).abs().max() / x.abs().max().clamp_min(1e-6)))
    assert worst < BATCH_TOLERANCE, f"neighbours change an item by {worst:.1e} of its largest value"
