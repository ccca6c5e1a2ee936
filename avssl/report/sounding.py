"""Where in a picture is what one hears, and where in a sound is what one sees.

Cosine between one modality's pooled vector and each token of the other, on that one's grid. No authors propose this
reading for their models in general: it is ours, and it shows nothing that the model was not asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avssl.backbone import Features, Grid
from avssl.data.clip import Row
from avssl.data.loader import evaluation_batches
from avssl.report import media
from avssl.report.pictures import rgb, under

if TYPE_CHECKING:
    from avssl.model import Model

MAPPED = ("audio", "vision")


def soundings(model: Model, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One record per row that has sound and picture: id, labels and `maps`: modality -> {"plain", "map": data URIs,
    "low", "high": cosines}. Empty where the model gives no tokens on a grid for both, or of different widths."""
    if not set(MAPPED) <= set(model.backbone.modalities):
        return []
    widths = model.backbone.widths()
    if widths.get("audio") != widths.get("vision"):
        return []
    rows = [r for r in rows if set(MAPPED) <= set(r.parts)]
    found: dict[int, dict[str, Any]] = {}
    for indices, _, batch in evaluation_batches(
        rows, model.frontend, batch_size=len(rows) or 1, views=False, modalities=set(MAPPED)
    ):
        with torch.inference_mode():
            prepared = model.frontend(batch.to(model.device))
            features = model.backbone(prepared, only=MAPPED)
            grids = {**model.backbone.grid(prepared), **features.grid}
        for position, index in enumerate(indices):
            maps = {}
            for seen, heard in (("vision", "audio"), ("audio", "vision")):
                values = similarity(features, grids.get(seen), seen, heard, position)
                plain = rgb(prepared.streams[seen].x[position].float().cpu().numpy(), model.frontend.config)
                if values is None or plain is None:
                    continue
                low, high = float(values.min()), float(values.max())
                heat = (values - low) / max(high - low, 1e-12)
                maps[seen] = {
                    "plain": media.jpeg(plain, 480),
                    "map": media.jpeg(under(plain, heat), 480),
                    "low": low,
                    "high": high,
                }
            if maps:
                found[index] = {"id": rows[index].id, "labels": list(rows[index].labels), "maps": maps}
    return [found[i] for i in sorted(found)]


def similarity(features: Features, grid: Grid | None, seen: str, heard: str, position: int) -> np.ndarray | None:
    """(rows, columns) cosines of one item as they lie in the drawn picture: y down and x right, or pitch up and time
    right. Frames of a clip are averaged. None when the tokens have no such grid."""
    tokens, pooled = features.tokens.get(seen), features.pooled.get(heard)
    if tokens is None or pooled is None or grid is None:
        return None
    if tokens.shape[-1] != pooled.shape[-1] or tokens.shape[1] not in (grid.tokens, grid.tokens - grid.prefix):
        return None
    placed: Tensor = tokens[position, -(grid.tokens - grid.prefix) :].float()
    values = F.cosine_similarity(placed, pooled[position].float()[None], dim=-1).reshape(grid.shape).cpu().numpy()
    axes = list(grid.axes)
    if "frame" in axes:
        values = values.mean(axes.index("frame"))
        axes.remove("frame")
    if axes == ["time"]:
        return values[None]
    wanted = ["y", "x"] if seen == "vision" else ["frequency", "time"]
    if sorted(axes) != sorted(wanted):
        return None
    values = values.transpose([axes.index(a) for a in wanted])
    return values[::-1] if seen == "audio" else values
