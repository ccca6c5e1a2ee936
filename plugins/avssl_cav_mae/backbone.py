"""The encoder: a stack of blocks per modality, then shared blocks with norms of their own for each stream."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avssl.backbone import Backbone, Features, Grid, Layers
from avssl.batch import Batch, Stream
from avssl.errors import DataError
from avssl.nn.positions import resize_grid, sincos_2d
from avssl_cav_mae.blocks import EPS, Block, initialise
from avssl_cav_mae.config import CavMaeConfig
from avssl_cav_mae.patches import CHANNELS, grid_of, patches, planes

MODALITIES = ("audio", "vision")


class Trace:
    """Inner states of one stream: block outputs, or feed-forward outputs before their residual."""

    def __init__(self, kind: Layers) -> None:
        self.kind = kind
        self.states: list[Tensor] = []

    def run(self, block: nn.Module, x: Tensor, stream: str) -> Tensor:
        x = block(x, stream, ffn=self.states if self.kind == "ffn" else None)
        if self.kind == "blocks":
            self.states.append(x)
        return x


class CavMae(Backbone):
    """CAV-MAE's encoder (Gong et al., ICLR 2023, Sec. 2.3), also on items that lack one modality.

    Streams: "audio" and "vision" go through their own blocks, then through the shared blocks with that modality's
    norms; "joint" takes the patches of all present modalities through the shared blocks with the joint norms. Pooled
    features are means over patches (with cls_tokens: that token, for "audio" and "vision").

    A clip may come as K pictures, each with its window of sound: vision (B, K, 3, H, W), audio (B, K, T, F). Each pair is
    encoded by itself; tokens (B, K * N, D) lie on a grid with a leading "frame" axis, pooled features are means over K.
    `only` may then name what fine-tuning on clips reads, tokens (B, K, D): "audio.own" and "vision.own" are the cls
    tokens (without them: means) after that modality's blocks, "audio.alone" and "vision.alone" the mean over all tokens
    of the joint pass of that modality by itself.
    """

    modalities: frozenset[str] = frozenset(MODALITIES)  # type: ignore[misc]
    streams: tuple[str, ...] = (*MODALITIES, "joint")  # type: ignore[misc]
    config: CavMaeConfig

    def __init__(self, config: CavMaeConfig) -> None:
        super().__init__(config)
        c = config
        size = c.patch**2
        present = tuple(m for m in MODALITIES if m in c.modalities)
        self.modalities, self.streams = frozenset(present), (*present, "joint")

        def stack(depth: int, streams: Sequence[str] = ("joint",), spare: bool = c.spare_norms) -> nn.ModuleList:
            return nn.ModuleList(Block(c.dim, c.heads, c.mlp_ratio, streams, spare) for _ in range(depth))

        self.stacks = nn.ModuleDict({m: stack(c.depth) for m in present})
        self.shared = stack(c.shared_depth, ("joint", *present), spare=True)
        self.contrast = nn.ModuleDict({m: stack(c.contrast_depth) for m in present})
        self.norms = nn.ModuleDict({s: nn.LayerNorm(c.dim, EPS) for s in ("joint", *present)})
        initialise(self)
        # The projection is a matrix over the patch's values: a patch that is masked away is never projected.
        self.patch = nn.ModuleDict({m: nn.Linear(size * CHANNELS[m], c.dim) for m in present})
        for m in present:  # its bias keeps torch's default, as the official convolution's does
            nn.init.xavier_uniform_(self.patch[m].get_parameter("weight"))
        self.positions = nn.ParameterDict(
            {m: nn.Parameter(sincos_2d(c.dim, *c.grid(m)), c.train_positions) for m in present}
        )
        self.modality = _vectors(present, (c.dim,))
        self.cls = _vectors(present if c.cls_tokens else (), (1, c.dim))
        self.registers = _vectors(present if c.registers else (), (c.registers, c.dim), std=1.0)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [
            *(b for pair in zip(*(s.children() for s in self.stacks.values()), strict=True) for b in pair),
            *self.shared,
            *(b for s in self.contrast.values() for b in s.children()),
        ]

    def grid(self, batch: Batch) -> Mapping[str, Grid]:
        return self._grids(*folded(batch))

    def _grids(self, batch: Batch, pairs: int) -> Mapping[str, Grid]:
        grids = {m: grid_of(batch, m, self.config.patch) for m in self._present(batch)}
        return {m: Grid((pairs, *g.shape), ("frame", *g.axes)) if pairs else g for m, g in grids.items()}

    def _present(self, batch: Batch) -> list[str]:
        return [m for m in MODALITIES if m in batch.streams and m in self.modalities]

    def adapt(self, tensors: dict[str, Tensor], source: Any) -> dict[str, Tensor]:
        """Fit position tables of another clip length or picture size: time is cut (a token keeps the time it was
        trained at) or, where the table is the fixed sine-cosine one, continued; pictures are resampled. A backbone of
        one modality takes its part of a model of both. What CAV-MAE Sync adds to a model without it (cls tokens,
        registers, blocks before the contrast) starts fresh."""
        others = "|".join({*source.modalities} - self.modalities)
        foreign = re.compile(rf"(stacks|contrast|norms|patch|positions|modality|cls|registers)\.({others})(\..*)?")
        out = {k: v for k, v in tensors.items() if not (others and foreign.fullmatch(k))}
        added = {"cls": not source.cls_tokens, "registers": not source.registers, "contrast": not source.contrast_depth}
        out |= {k: v for k, v in self.state_dict().items() if added.get(k.split(".")[0]) and k not in out}
        for m in MODALITIES:
            if m not in self.modalities:
                continue
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
        raise DataError(
            f"{modality} is {grid[0] * p} x {grid[1] * p}, the model is for {own[0] * p} x {own[1] * p}",
            fix="set frontend.frames and image_size to the backbone's audio_frames and image_size; --init "
            "resizes the positions of a model to another backbone.audio_frames or image_size",
        )

    def stack(self, modality: str, x: Tensor, trace: Trace | None = None) -> Tensor:
        """(B, K, D) patches -> (B, [1 +] K [+ R], D): cls token first, registers last where the model has them."""
        n = x.shape[0]
        if self.config.cls_tokens:
            x = torch.cat([self.cls[modality].expand(n, -1, -1), x], 1)
        if self.config.registers:
            x = torch.cat([x, self.registers[modality].expand(n, -1, -1)], 1)
        for block in self.stacks[modality].children():
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

    def single(
        self, modality: str, x: Tensor, chained: bool = True, trace: Trace | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """One modality's output of `stack` -> its patches (B, K, D) and cls token (B, D) or None, normed.

        chained=False is the official pretraining pass: every shared block gets the same input and the last one's
        output counts, so that only the last one works at all.
        """
        for block in self.shared if chained else self.shared[-1:]:
            x = trace.run(block, x, modality) if trace else block(x, modality)
        for block in self.contrast[modality].children():
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
        batch, pairs = folded(batch)
        if pairs and (hide or keep):
            raise DataError("a clip of several pictures cannot be masked", fix="--set frontend.together=false")
        present = self._present(batch)
        wanted = (
            {*present, "joint"} if only is None else {s for s in only if s == "joint" or s.split(".")[0] in present}
        )
        if not present or not wanted:
            batch.need(next(iter(only or MODALITIES)).split(".")[0])
        traces = {s: Trace(layers) for s in wanted if "." not in s} if layers else {}
        stacked: dict[str, Tensor] = {}
        for m in present:
            if "joint" in wanted or any(s.split(".")[0] == m for s in wanted):
                x = self.embed(batch, m, (keep or {}).get(m), (hide or {}).get(m))
                stacked[m] = self.stack(m, x, traces.get(m))
        tokens: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        for m in [m for m in present if m in wanted]:
            tokens[m], cls = self.single(m, stacked[m], self.config.chain_shared, traces.get(m))
            pooled[m] = tokens[m].mean(1) if cls is None else cls
        if "joint" in wanted:
            tokens["joint"] = self.fuse(stacked, traces.get("joint"))
            pooled["joint"] = tokens["joint"].mean(1)
        for m in present:
            if f"{m}.own" in wanted:
                tokens[f"{m}.own"] = self._own(stacked[m])
            if f"{m}.alone" in wanted:
                tokens[f"{m}.alone"] = self._alone(stacked[m])
        states = {s: t.states for s, t in traces.items()}
        if pairs:  # (B * K, N, D) -> (B, K * N, D)
            n = len(batch) // pairs
            tokens = {s: x.reshape(n, -1, x.shape[2]) for s, x in tokens.items()}
            pooled = {s: x.view(n, pairs, -1).mean(1) for s, x in pooled.items()}
            states = {s: [x.reshape(n, -1, x.shape[2]) for x in xs] for s, xs in states.items()}
        return Features(tokens, pooled, grid=self._grids(batch, pairs), layers=states)

    def _own(self, stacked: Tensor) -> Tensor:
        """(B, 1, D): one picture's or sound's token for fine-tuning on clips, before the shared blocks and any norm."""
        if self.config.cls_tokens:
            return stacked[:, :1]
        return (self._without_registers(stacked) if self.config.keep_registers else stacked).mean(1, keepdim=True)

    def _alone(self, stacked: Tensor) -> Tensor:
        """(B, 1, D): the joint pass of one modality by itself, as the mean over its tokens: the cls token and, with
        keep_registers, the registers are among them (official CAVMAEFT of Sync, audioonly and videoonly)."""
        for block in self.shared:
            stacked = block(stacked)
        return self.norms["joint"](stacked).mean(1, keepdim=True)


def folded(batch: Batch) -> tuple[Batch, int]:
    """(the batch with the K pictures and windows of its clips as items of their own, K); K = 0 where items are single.

    Raises DataError when sound and pictures of a clip differ in number.
    """
    single = {"audio": 3, "vision": 4}
    counts = {m: s.x.shape[1] if s.x.ndim > single[m] else 0 for m, s in batch.streams.items() if m in single}
    if not any(counts.values()):
        return batch, 0
    if len(set(counts.values())) > 1:
        shapes = ", ".join(f"{m} {tuple(batch.streams[m].x.shape)}" for m in counts)
        raise DataError(f"each picture of a clip needs its window of sound: {shapes}", fix="use one frontend for both")
    pairs = next(iter(counts.values()))
    streams = {m: Stream(batch.streams[m].x.flatten(0, 1)) for m in counts}
    ids = tuple(i for i in batch.ids for _ in range(pairs))
    return Batch(ids, batch.seeds.repeat_interleave(pairs), streams), pairs


def _vectors(names: Sequence[str], shape: tuple[int, ...], std: float = 0.02) -> nn.ParameterDict:
    """Learned vectors by modality, N(0, std)."""
    return nn.ParameterDict({n: nn.Parameter(torch.randn(shape) * std) for n in names})
