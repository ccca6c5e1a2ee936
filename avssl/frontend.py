"""From a manifest row to the tensors a backbone reads: the four halves of one journey."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
from torch import nn

from avssl.batch import Batch
from avssl.data.clip import Clip, Request, Row


class Frontend(nn.Module):
    """Base of every frontend. Takes its config dataclass; constants live in the config and are stored with the model.

    plan  (row, rng)   -> Request       what to decode; rng None = the one deterministic evaluation view
    item  (clips, rng) -> Batch of one  in a worker, on the CPU: crop, resample, tokenise, mix, augment
    batch (batch)      -> Batch         on the device, batched: log-mel, normalise, SpecAug (exported with the model)
    views (row)        -> [Request]     at evaluation: ten frames, windows of a long recording

    `self.training` says whether `batch` augments; its randomness comes from `batch.seeds` alone.
    """

    modalities: ClassVar[frozenset[str]] = frozenset()
    # modalities whose items `batch` brings to one shape, with the same numbers whatever they were padded with: loaders
    # may then put items of unequal lengths into one evaluation batch
    fixed: ClassVar[frozenset[str]] = frozenset()
    pad_values: Mapping[str, float] = MappingProxyType({})  # what unequal items are padded with, per modality
    seconds_field: ClassVar[str] = ""  # field of the config that holds `seconds`; "" when it cannot be chosen

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def seconds(self) -> float | None:
        """The longest sound that `item` takes at evaluation: what is longer is cut; None (0 in the config) = any length,
        or no sound."""
        return (getattr(self.config, self.seconds_field) or None) if self.seconds_field else None

    def bind(self, backbone: Any) -> None:
        """Told, when it is built, the config of the backbone that will read its items: what must agree with it (a
        vocabulary) is refused in `item`, so that a model opens whatever it is used for."""

    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        """What to decode of a row; random crops are chosen here, so that nothing is decoded in vain."""
        raise NotImplementedError

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        """clips: the item, then its mix partners (`Request.partners`). Carries `clip.target` into `Batch.targets`."""
        raise NotImplementedError

    def batch(self, batch: Batch) -> Batch:
        """The device half; default: nothing is left to do."""
        return batch

    def forward(self, batch: Batch) -> Batch:
        """`batch`: what a device, a compiler and an exporter see of a frontend."""
        return self.batch(batch)

    def portable(self) -> Frontend:
        """The same at evaluation with every change of numbers in `batch`, so that a deployed graph reads sound and
        pictures as they were recorded; one whose `item` only crops, resamples and scales pictures is that already."""
        return self

    def save_assets(self, folder: Path) -> Any:
        """Write the files that this frontend needs (a tokenizer) into `folder` and give the config that names them
        there as "assets/NAME"; a frontend without files returns its config."""
        return self.config

    def views(self, row: Row) -> Sequence[Request]:
        """Everything of a row that an evaluation should see; scores and vectors are averaged over it."""
        return [self.plan(row, None)]
