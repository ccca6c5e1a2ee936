"""Processes of one run: who we are, sums over all of us, and gathering with gradients."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from avssl.errors import AvsslError, Exit

BUCKET = 16_000_000  # gradient elements that travel together
T = TypeVar("T")


LOST = "that one's message says why; --resume goes on from the last checkpoint"


class PeerLost(AvsslError):
    """Another process of the run ended; its own message says why."""

    code = Exit.BUG


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

    @contextlib.contextmanager
    def first_works(self) -> Iterator[None]:
        """A block that only the first process fills, however long it takes; the others wait at its end.

        A collective operation would end the job after the time-out. Here the first process shows several times within
        it that it is alive; the others raise PeerLost when it does not. If the block fails, they go on to the next
        collective operation, which finds the first process gone.
        """
        if self.ranks == 1:
            yield
            return
        if self.first:
            with _heartbeat():
                yield
        else:
            yield
            _wait_for_first(self)

    def in_step(self, batches: Iterable[T], device: torch.device) -> Iterator[T]:
        """This process's batches, while no process is more than one batch ahead of another: however long all of them
        take, nobody waits for longer than one batch, so that the time-out is one of a batch, as in training."""
        own = iter(batches)
        more = True
        while more:
            batch = next(own, None)
            if batch is not None:
                yield batch
            more = self.any(batch is not None, device)

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
        # a dead peer ends the job, it does not hang it
        dist.init_process_group(backend, rank=rank, world_size=ranks, timeout=timedelta(seconds=_timeout()))
    return World(rank, ranks, local, backend)


def _timeout() -> float:
    return float(os.environ.get("AVSSL_DIST_TIMEOUT", "600"))


# -- waiting for the first process ----------------------------------------------------------------------------------
ALIVE, BLOCKS = "avssl/alive", "avssl/blocks"  # counters in the group's key-value store, which every process reads


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store  # there is no public name for it

    return _get_default_store()


@contextlib.contextmanager
def _heartbeat() -> Iterator[None]:
    """Counts in the store until the block ends, then counts the block."""
    store, over = _store(), threading.Event()

    def beat() -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone: whoever is left finds out by itself
            while not over.wait(min(5.0, _timeout() / 8)):
                store.add(ALIVE, 1)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(RuntimeError):
            store.add(BLOCKS, 1)


def _wait_for_first(world: World) -> None:
    """Returns when the block is over, or when the store cannot tell: it goes with a launcher that is killed, while its
    processes can still finish a step and save; the next collective operation then waits with its own time-out."""
    store = _store()
    signs, since, pause = -1, time.monotonic(), 0.001
    try:
        block = store.add(f"{BLOCKS}/{world.rank}", 1)  # the number of this one
        while store.add(BLOCKS, 0) < block:
            if (now := store.add(ALIVE, 0)) != signs:
                signs, since = now, time.monotonic()
            if time.monotonic() - since > _timeout():
                break
            time.sleep(pause)
            pause = min(0.2, 2 * pause)
        else:
            return
    except RuntimeError:
        return
    raise PeerLost(
        f"process {world.rank} of {world.ranks} lost process 0: no sign of life for {_timeout():g} s", fix=LOST
    )


def leave_world(world: World, clean: bool = True) -> None:
    """End the group. A barrier first: gloo's teardown without one aborts now and then. After an error the others may be
    gone: wait for them a moment only."""
    if world.ranks == 1 or not dist.is_initialized():
        return
    if clean:
        dist.barrier()
    elif world.backend == "gloo":
        with contextlib.suppress(RuntimeError):
            dist.monitored_barrier(timeout=timedelta(seconds=5))
    dist.destroy_process_group()


@contextlib.contextmanager
def member_of_world(device: torch.device) -> Iterator[World]:
    """`join_world`, and `leave_world` however it ends. Raises PeerLost when a collective operation fails.

    Inside another one (a run of several runs) the group stays: it is left once, by the outermost.
    """
    inside = dist.is_available() and dist.is_initialized()
    world = join_world(device)
    if inside:
        yield world
        return
    try:
        yield world
    except BaseException as error:
        lost = (
            world.ranks > 1
            and isinstance(error, RuntimeError)
            and (isinstance(error, dist.DistError) or "gloo" in str(error))
        )
        leave_world(world, clean=False)
        if lost:
            reason = str(error).strip().splitlines()[0].rpartition("] ")[2][:160]
            raise PeerLost(
                f"process {world.rank} of {world.ranks} lost another one: {reason}",
                fix=LOST,
            ) from error
        raise
    leave_world(world)


def whole(x: Tensor) -> Tensor:
    """All of a tensor that may be sharded over the processes (then all of them must call this)."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x  # type: ignore[no-any-return]


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
    wanted = [
        p for p in parameters if p.requires_grad and not hasattr(p, "full_tensor")
    ]  # sharded ones are summed already
    if not wanted:
        return
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
