"""The encoder: a stack of blocks per modality, then shared blocks with norms of their own for each stream."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from avssl.backbone import Backbone, Features, Grid, Layers
from avssl.batch import Batch
from avssl.errors import DataError
from avssl.nn.positions import resize_grid, sincos_2d
from avssl_cav_mae.blocks import EPS, STREAMS, Block, initialise
from avssl_cav_mae.config import CavMaeConfig
from avssl_cav_mae.patches import CHANNELS, grid_of, patches, planes

MODALITIES = ("audio", "vision")


class Trace:
    """Inner states of one stream: block outputs, or feed-forward outputs before their residual."""

    def __init__(self, kind: Layers) -> None:
        self.kind = kind
        self.states: list[Tensor] = []

    def run(self, block: Block, x: Tensor, stream: str) -> Tensor:
        x = block(x, stream, ffn=self.states if self.kind == "ffn" else None)
        if self.kind == "blocks":
            self.states.append(x)
        return x


class CavMae(Backbone):
    """CAV-MAE's encoder (Gong et al., ICLR 2023, Sec. 2.3), also on items that lack one modality.

    Streams: "audio" and "vision" go through their own blocks, then through the shared blocks with that modality's
    norms; "joint" takes the patches of all present modalities through the shared blocks with the joint norms. Pooled
    features are means over patches (with cls_tokens: that token, for "audio" and "vision").
    """

    modalities = frozenset(MODALITIES)
    streams: ClassVar[tuple[str, ...]] = ("audio", "vision", "joint")
    config: CavMaeConfig

    def __init__(self, config: CavMaeConfig) -> None:
        super().__init__(config)
        c = config
        size = c.patch**2

        def stack(depth: int, streams: Sequence[str] = ("joint",), spare: bool = c.spare_norms) -> nn.ModuleList:
            return nn.ModuleList(Block(c.dim, c.heads, c.mlp_ratio, streams, spare) for _ in range(depth))

        self.stacks = nn.ModuleDict({m: stack(c.depth) for m in MODALITIES})
        self.shared = stack(c.shared_depth, STREAMS)
        self.contrast = nn.ModuleDict({m: stack(c.contrast_depth) for m in MODALITIES})
        self.norms = nn.ModuleDict({s: nn.LayerNorm(c.dim, EPS) for s in STREAMS})
        initialise(self)
        # The projection is a matrix over the patch's values: a patch that is masked away is never projected.
        self.patch = nn.ModuleDict({m: nn.Linear(size * CHANNELS[m], c.dim) for m in MODALITIES})
        for m in MODALITIES:  # its bias keeps torch's default, as the official convolution's does
            nn.init.xavier_uniform_(self.patch[m].weight)
        self.positions = nn.ParameterDict({m: nn.Parameter(sincos_2d(c.dim, *c.grid(m)), c.train_positions)
                                           for m in MODALITIES})
        self.modality = _vectors(MODALITIES, (c.dim,))
        self.cls = _vectors(MODALITIES if c.cls_tokens else (), (1, c.dim))
        self.registers = _vectors(MODALITIES if c.registers else (), (c.registers, c.dim), std=1.0)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [*(b for pair in zip(*self.stacks.values(), strict=True) for b in pair), *self.shared,
                *(b for s in self.contrast.values() for b in s)]

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return {m: grid_of(batch, m, self.config.patch) for m in MODALITIES if m in batch.streams}

    def adapt(self, tensors: dict[str, Tensor], source: Any) -> dict[str, Tensor]:
        """Fit position tables of another clip length or picture size: time is cut (a token keeps the time it was
        trained at) or, where the table is the fixed sine-cosine one, continued; pictures are resampled."""
        out = dict(tensors)
        for m in MODALITIES:
            name, new, old = f"positions.{m}", self.config.grid(m), source.grid(m)
            table = out.get(name)
            if table is None or old == new or table.shape[0] != old[0] * old[1]:
                continue
            if m == "audio" and torch.allclose(table.float(), sincos_2d(table.shape[1], *old), atol=1e-5):
                out[name] = sincos_2d(table.shape[1], *new).to(table.dtype)
            else:
                out[name] = resize_grid(table, old, new, "cut" if m == "audio" else "bicubic")
        return out

    # -- the passes, in the order of the paper's figure; the pretraining loss runs them one by one ------------------
    def embed(self, batch: Batch, modality: str, keep: Tensor | None = None, hide: Tensor | None = None) -> Tensor:
        """(B, K, D): projected patches + positions + the modality's vector.

        keep: (B, K) ids of the patches to take; hide: (B, N) bool, those are replaced by zeros before positions are
        added (the modality's vector then stands for "something of this kind is here").
        """
        x = planes(batch, modality)
        tokens = self.patch[modality](patches(x, self.config.patch, keep))
        if hide is not None:
            hidden = hide if keep is None else hide.gather(1, keep)
            tokens = tokens.masked_fill(hidden[..., None], 0.0)
        table = self._table(modality, grid_of(batch, modality, self.config.patch).shape)
        return tokens + ((table if keep is None else table[keep]) + self.modality[modality])

    def _table(self, modality: str, grid: tuple[int, ...]) -> Tensor:
        own = self.config.grid(modality)
        if tuple(grid) == own:
            return self.positions[modality]
        if modality == "audio" and grid[0] == own[0] and grid[1] < own[1]:  # a shorter sound: the table's beginning
            return self.positions[modality].view(*own, -1)[:, : grid[1]].flatten(0, 1)
        p = self.config.patch
        raise DataError(f"{modality} is {grid[0] * p} x {grid[1] * p}, the model is for {own[0] * p} x {own[1] * p}",
                        fix="set frontend.frames and image_size to the backbone's audio_frames and image_size; --init "
                            "resizes the positions of a model to another backbone.audio_frames or image_size")

    def stack(self, modality: str, x: Tensor, trace: Trace | None = None) -> Tensor:
        """(B, K, D) patches -> (B, [1 +] K [+ R], D): cls token first, registers last where the model has them."""
        n = x.shape[0]
        if self.config.cls_tokens:
            x = torch.cat([self.cls[modality].expand(n, -1, -1), x], 1)
        if self.config.registers:
            x = torch.cat([x, self.registers[modality].expand(n, -1, -1)], 1)
        for block in self.stacks[modality]:
            x = trace.run(block, x, "joint") if trace else block(x)
        return x if self.config.keep_registers else self._without_registers(x)

    def _without_registers(self, x: Tensor) -> Tensor:
        return x[:, : x.shape[1] - self.config.registers]

    def fuse(self, stacked: Mapping[str, Tensor], trace: Trace | None = None) -> Tensor:
        """Outputs of `stack` -> (B, sum of K, D): the joint pass, without cls tokens and registers, normed."""
        parts = [x[:, 1:] if self.config.cls_tokens else x for x in stacked.values()]
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        for block in self.shared:
            x = trace.run(block, x, "joint") if trace else block(x)
        if self.config.keep_registers and self.config.registers:
            x = torch.cat([self._without_registers(p) for p in x.split([p.shape[1] for p in parts], 1)], 1)
        return self.norms["joint"](x)

    def single(self, modality: str, x: Tensor, chained: bool = True,
               trace: Trace | None = None) -> tuple[Tensor, Tensor | None]:
        """One modality's output of `stack` -> its patches (B, K, D) and cls token (B, D) or None, normed.

        chained=False is the official pretraining pass: every shared block gets the same input and the last one's
        output counts, so that only the last one works at all.
        """
        for block in self.shared if chained else self.shared[-1:]:
            x = trace.run(block, x, modality) if trace else block(x, modality)
        for block in self.contrast[modality]:
            x = trace.run(block, x, "joint") if trace else block(x)
        x = self.norms[modality](self._without_registers(x) if self.config.keep_registers else x)
        return (x[:, 1:], x[:, 0]) if self.config.cls_tokens else (x, None)

    def forward(
        self,
        batch: Batch,
        hide: Mapping[str, Tensor] | None = None,
        keep: Mapping[str, Tensor] | None = None,
        layers: Layers | None = None,
        only: Collection[str] | None = None,
    ) -> Features:
        """Tokens and pooled features by stream. `hide` and `keep` count patches; cls tokens and registers are extra."""
        present = [m for m in MODALITIES if m in batch.streams]
        wanted = {*present, "joint"} if only is None else {s for s in only if s == "joint" or s in present}
        if not present or not wanted:
            batch.need(next(iter(only or MODALITIES)))
        traces = {s: Trace(layers) for s in wanted} if layers else {}
        stacked: dict[str, Tensor] = {}
        for m in present:
            if m in wanted or "joint" in wanted:
                x = self.embed(batch, m, (keep or {}).get(m), (hide or {}).get(m))
                stacked[m] = self.stack(m, x, traces.get(m))
        tokens: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        for m in [m for m in present if m in wanted]:
            tokens[m], cls = self.single(m, stacked[m], trace=traces.get(m))
            pooled[m] = tokens[m].mean(1) if cls is None else cls
        if "joint" in wanted:
            tokens["joint"] = self.fuse(stacked, traces.get("joint"))
            pooled["joint"] = tokens["joint"].mean(1)
        return Features(tokens, pooled, grid=self.grid(batch), layers={s: t.states for s, t in traces.items()})


def _vectors(names: Sequence[str], shape: tuple[int, ...], std: float = 0.02) -> nn.ParameterDict:
    """Learned vectors by modality, N(0, std)."""
    return nn.ParameterDict({n: nn.Parameter(torch.randn(shape) * std) for n in names})
