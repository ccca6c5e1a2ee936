"""What travels between workers, frontends, backbones and losses: aligned items, streams by modality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from avssl.errors import DataError


@dataclass(frozen=True, slots=True)
class Stream:
    """One modality of a batch (or its targets)."""

    x: Tensor  # (B, L, ...) padded to the longest item, or (B, ...) when every item has the same shape
    pad: Tensor | None = None  # (B, L) bool, True = padding; None = nothing is padded

    def __repr__(self) -> str:
        size, kind = " x ".join(map(str, self.x.shape)), str(self.x.dtype).removeprefix("torch.")
        return f"<Stream {size} {kind}{'' if self.pad is None else ', padded'}>"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Stream:
        """Both tensors on `device`."""
        pad = None if self.pad is None else self.pad.to(device, non_blocking=non_blocking)
        return Stream(self.x.to(device, non_blocking=non_blocking), pad)

    def __getitem__(self, rows: slice | Tensor) -> Stream:
        return Stream(self.x[rows], None if self.pad is None else self.pad[rows])

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: the number of elements of each item that are not padding."""
        if self.pad is None:
            return torch.full((self.x.shape[0],), self.x.shape[1], dtype=torch.long, device=self.x.device)
        return (~self.pad).sum(1)


@dataclass(frozen=True, slots=True)
class Batch:
    """B aligned items. Modalities are open: a stranger's stream is as good as ours."""

    ids: tuple[str, ...]  # B item names: every report, embedding and error can say which clip
    seeds: Tensor  # (B,) int64 = f(run seed, epoch, item): all randomness of an item starts here
    streams: Mapping[str, Stream] = field(default_factory=dict)
    targets: Stream | None = None  # x (B, C) multi-hot/soft, (B,) index or float, (B, N) characters: the codec decides

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        streams = ", ".join(f"{name} {stream!r}" for name, stream in self.streams.items())
        targets = f", targets {self.targets!r}" if self.targets is not None else ""
        return f"<Batch of {len(self)}: {streams or 'no streams'}{targets}>"

    def need(self, modality: str) -> Stream:
        """The stream of a modality. Raises DataError, naming the items, when the batch has none."""
        try:
            return self.streams[modality]
        except KeyError:
            has = ", ".join(self.streams) or "nothing"
            raise DataError(
                f"items {self.ids[0]!r}... have no {modality} (they have {has})",
                fix=f"give data with {modality}, or a backbone that does without",
            ) from None

    def with_streams(self, **streams: Stream) -> Batch:
        """This batch with some streams replaced or added."""
        return replace(self, streams={**self.streams, **streams})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Streams and targets on `device`. Seeds stay on the CPU: draws are made there, equal on every device."""
        targets = None if self.targets is None else self.targets.to(device, non_blocking)
        streams = {name: stream.to(device, non_blocking) for name, stream in self.streams.items()}
        return Batch(self.ids, self.seeds, streams, targets)

    def pin(self) -> Batch:
        """The batch in page-locked memory, so that its copy to a CUDA device overlaps with work."""

        def pinned(stream: Stream) -> Stream:
            return Stream(stream.x.pin_memory(), None if stream.pad is None else stream.pad.pin_memory())

        targets = None if self.targets is None else pinned(self.targets)
        return Batch(self.ids, self.seeds, {n: pinned(s) for n, s in self.streams.items()}, targets)

    pin_memory = pin  # the name that torch's DataLoader looks for

    def rows(self, rows: slice) -> Batch:
        """A contiguous part of the batch, e.g. one micro-batch."""
        targets = None if self.targets is None else self.targets[rows]
        return Batch(self.ids[rows], self.seeds[rows], {n: s[rows] for n, s in self.streams.items()}, targets)

    @staticmethod
    def cat(batches: Sequence[Batch], pad_values: Mapping[str, float] | None = None) -> Batch:
        """Join batches along the items; the collate function of every loader.

        Streams of unequal lengths (dimension 1) are padded at the end with `pad_values[modality]` (default 0) and get a
        pad mask. Raises DataError when the batches do not carry the same streams, when only some have targets, or when
        their other dimensions differ.
        """
        first = batches[0]
        for other in batches[1:]:
            if other.streams.keys() != first.streams.keys():
                raise DataError(
                    f"{other.ids[0]!r} has {sorted(other.streams)}, {first.ids[0]!r} {sorted(first.streams)}",
                    fix="items of one batch need the same modalities",
                )
        targets = [b.targets for b in batches if b.targets is not None]
        if targets and len(targets) != len(batches):
            raise DataError(
                f"{next(b.ids[0] for b in batches if b.targets is None)!r} has no target, others of its batch have one",
                fix="label all items, or none",
            )
        values = pad_values or {}
        streams = {
            name: _cat([b.streams[name] for b in batches], values.get(name, 0.0), name) for name in first.streams
        }
        return Batch(
            tuple(i for b in batches for i in b.ids),
            torch.cat([b.seeds for b in batches]),
            streams,
            _cat(targets, values.get("targets", 0.0), "targets") if targets else None,
        )


def _cat(streams: Sequence[Stream], value: float, name: str) -> Stream:
    tails = {tuple(s.x.shape[2:]) for s in streams}
    dims = {s.x.ndim for s in streams}
    if len(tails) > 1 or len(dims) > 1:
        raise DataError(
            f"{name}: items of shapes {sorted({tuple(s.x.shape[1:]) for s in streams})} do not stack",
            fix="make the frontend give one shape",
        )
    if dims == {1}:
        return Stream(torch.cat([s.x for s in streams]))
    longest = max(s.x.shape[1] for s in streams)
    if all(s.pad is None and s.x.shape[1] == longest for s in streams):
        return Stream(torch.cat([s.x for s in streams]))
    total = sum(s.x.shape[0] for s in streams)
    x = streams[0].x.new_full((total, longest, *streams[0].x.shape[2:]), value)
    pad = torch.ones(total, longest, dtype=torch.bool, device=x.device)
    row = 0
    for s in streams:
        n, length = s.x.shape[:2]
        x[row : row + n, :length] = s.x
        pad[row : row + n, :length] = False if s.pad is None else s.pad
        row += n
    return Stream(x, pad)


def item(id: str, seed: int, targets: Any = None, **streams: Tensor) -> Batch:
    """A batch of one from tensors without a batch dimension; what a frontend's `item` usually returns."""
    boxed = {name: Stream(x[None]) for name, x in streams.items()}
    boxed_targets = None if targets is None else Stream(torch.as_tensor(targets)[None])
    return Batch((id,), torch.tensor([seed], dtype=torch.int64), boxed, boxed_targets)


def generators(seeds: Tensor, salt: int = 0) -> Iterator[torch.Generator]:
    """One CPU generator per item, so that a draw depends on the item alone, not on its neighbours or the worker.

    seeds: (B,) int64. salt: keeps two uses of the same seed (masks and noise, say) independent.
    """
    for seed in seeds.tolist():
        yield torch.Generator().manual_seed(
            (seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) & 0x7FFFFFFFFFFFFFFF
        )
