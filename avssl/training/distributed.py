"""Processes of one run: who we are, sums over all of us, and gathering with gradients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 16_000_000  # gradient elements that travel together


@dataclass(frozen=True)
class World:
    """This process among `ranks`; backend "" when there is one."""

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    backend: str = ""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes, in place."""
        if self.ranks > 1:
            dist.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether any process raised the flag."""
        return flag if self.ranks == 1 else bool(self.sum(torch.tensor([float(flag)], device=device)).item())

    def barrier(self) -> None:
        if self.ranks > 1:
            dist.barrier()

    def gather_objects(self, value: Any) -> list[Any]:
        """Every process's (small, picklable) value, in rank order, everywhere."""
        out = [value] * self.ranks
        if self.ranks > 1:
            dist.all_gather_object(out, value)
        return out

    def broadcast(self, value: Any) -> Any:
        """The first process's value, everywhere."""
        box = [value]
        if self.ranks > 1:
            dist.broadcast_object_list(box)
        return box[0]


def join_world(device: torch.device) -> World:
    """Join the group that `torchrun` announced through the environment; alone without one."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return World()
    backend = "nccl" if device.type == "cuda" else "gloo"
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if not dist.is_initialized():
        timeout = float(os.environ.get("AVSSL_DIST_TIMEOUT", "600"))  # a dead peer ends the job, it does not hang it
        dist.init_process_group(backend, rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout))
    return World(rank, ranks, local, backend)


def leave_world(world: World, clean: bool = True) -> None:
    """End the group. The barrier first: gloo's teardown without one aborts now and then."""
    if world.ranks > 1 and dist.is_initialized():
        if clean:
            dist.barrier()
        dist.destroy_process_group()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rank: int, ranks: int) -> Tensor:
        ctx.rank, ctx.rows = rank, x.shape[0]
        parts = [torch.empty_like(x) for _ in range(ranks)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad = grads[0].contiguous()
        dist.all_reduce(grad)
        return grad[ctx.rank * ctx.rows : (ctx.rank + 1) * ctx.rows], None, None


def gather(representations: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """(B, ...) of every process -> (ranks * B, ...) on each, in rank order, with gradients to where they came from."""
    if world.ranks == 1:
        return dict(representations)
    return {name: _Gather.apply(x, world.rank, world.ranks) for name, x in representations.items()}


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor], world: World) -> None:
    """Sum gradients over the processes, in buckets.

    A parameter that got no gradient anywhere keeps none (so that weight decay leaves it alone, as in one process); one
    that got none here but some elsewhere counts as zero. This is done after the backward pass rather than by
    DistributedDataParallel, whose hooks allow neither two-pass contrastive steps nor parameters outside `forward`.
    """
    if world.ranks == 1:
        return
    wanted = [p for p in parameters if p.requires_grad]
    present = torch.tensor([p.grad is not None for p in wanted], dtype=torch.float32, device=wanted[0].device)
    world.sum(present)
    live = [p for p, n in zip(wanted, present.tolist(), strict=True) if n > 0]
    for p in live:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    for bucket in _buckets(live):
        flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
        dist.all_reduce(flat)
        for p, part in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            assert p.grad is not None
            p.grad.copy_(part.view_as(p))


def _buckets(parameters: list[Tensor]) -> list[list[Tensor]]:
    out: list[list[Tensor]] = []
    size = BUCKET
    for p in parameters:
        if size + p.numel() > BUCKET or out[-1][0].dtype != p.dtype:
            out.append([])
            size = 0
        out[-1].append(p)
        size += p.numel()
    return out
