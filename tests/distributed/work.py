"""What the processes of the distributed tests do; `group` starts them and collects what they return."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import toy
from runs import FORKS
from torch import Tensor, nn

from avssl.batch import Batch, Stream, generators
from avssl.builtin.configs import ContrastiveConfig
from avssl.builtin.contrastive import Contrastive
from avssl.loss import Loss, LossOutput, Term
from avssl.training import distributed
from avssl.training.distributed import World, member_of_world, sum_gradients, whole
from avssl.training.step import Stepper

CPU = torch.device("cpu")


# -- processes ------------------------------------------------------------------------------------------------------
def group(ranks: int, function: Callable[..., Any], *args: Any, timeout: float = 300.0) -> list[Any]:
    """`function(*args)` in as many gloo processes; what each returns, or its exception as text, in rank order."""
    port = free_port()
    pipes = [FORKS.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        FORKS.Process(target=_member, args=(rank, ranks, port, pipes[rank][1], function, args)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    out: list[Any] = []
    try:
        for (receive, send), process in zip(pipes, processes, strict=True):
            send.close()
            if not receive.poll(timeout):
                raise AssertionError(f"no answer within {timeout} s: a hang")
            try:
                out.append(receive.recv())
            except EOFError:
                process.join(60)
                out.append(f"ended with {process.exitcode}")
        for process in processes:
            process.join(60)
            assert process.exitcode is not None, "a process does not end"
    finally:
        for process in processes:
            process.kill()
    return out


def free_port() -> int:
    """A port that nobody listens at, out of those that the system never gives to outgoing connections: one of these
    could take it before the first process listens."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.SystemRandom().randrange(10_000, 32_000)))
            return int(probe.getsockname()[1])


def _member(rank: int, ranks: int, port: int, answer: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        AVSSL_DIST_TIMEOUT="60",
    )
    torch.set_num_threads(1)
    try:
        result = function(*args)
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"
    answer.send(result)
    answer.close()


# -- objectives -----------------------------------------------------------------------------------------------------
def ready(batch: Batch) -> Batch:
    """A frontend of batches that are ready for the network."""
    return batch


ready.pad_values = {}  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Mask:
    hidden: Tensor  # (B, T) bool


class Masked(Loss[toy.Toy]):
    """Regression at hidden frames: items hide different numbers of them, so means of means would be wrong."""

    def __init__(self, backbone: toy.Toy, counted: bool) -> None:
        super().__init__(backbone, None)
        self.decoder = nn.Linear(backbone.config.dim, 20)
        self.unused = nn.Parameter(torch.ones(3))  # gets no gradient anywhere: it must stay without one
        self.counted = counted

    def sample(self, batch: Batch) -> Mask:
        length = batch.need("audio").x.shape[1]
        return Mask(
            torch.stack(
                [
                    torch.rand(length, generator=g) < 0.1 + 0.8 * (i % 3) / 2
                    for i, g in zip(batch.seeds.tolist(), generators(batch.seeds), strict=True)
                ]
            )
        )

    def counts(self, batch: Batch, draw: Mask) -> dict[str, Any] | None:
        return {"frames": draw.hidden.sum() * 20, "size": len(batch)} if self.counted else None

    def compute(self, batch: Batch, draw: Mask) -> LossOutput:
        x = batch.need("audio").x
        seen = batch.with_streams(audio=Stream(x.masked_fill(draw.hidden[..., None], 0.0)))
        tokens = self.backbone(seen, only=("audio",)).tokens["audio"]
        error = (self.decoder(tokens[:, 1:]) - x)[draw.hidden].square()
        return LossOutput(
            {
                "frames": Term(1.0, error.sum(), draw.hidden.sum() * 20),
                "size": Term(0.01, tokens.square().mean((1, 2)).sum(), len(batch)),
            },
            {"hidden": (draw.hidden.sum().detach(), draw.hidden.numel())},
        )


class Both(Contrastive):
    """A contrast beside a term of its own, as CAV-MAE's: gathered and local parts in one step."""

    def local(self, batch: Batch, draw: None) -> tuple[LossOutput, dict[str, Tensor]]:
        _, representations = super().local(batch, draw)
        tokens = self.backbone(batch, only=("audio",)).tokens["audio"]
        return LossOutput(
            {
                "flat": Term(
                    0.1, tokens[1 if len(batch) > 1 else 0].square().sum() * 0 + tokens.square().sum(), tokens.numel()
                )
            },
        ), representations


class Prepared(Masked):
    """Keeps what its network makes of the first batch: blocks, a head without a `forward`, parameters of its own."""

    def __init__(self, backbone: toy.Toy) -> None:
        super().__init__(backbone, False)
        self.head = nn.Module()
        self.head.linear = nn.Linear(backbone.config.dim, 4)
        self.register_buffer("start", torch.zeros(4))

    def exports(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}

    def prepare(self, first_batch: Batch) -> None:
        tokens = self.backbone(first_batch).tokens["audio"]
        self.start.copy_(self.head.linear(tokens).mean((0, 1)) + self.unused.mean())

    def compute(self, batch: Batch, draw: Mask) -> LossOutput:
        out = super().compute(batch, draw)
        guess = self.head.linear(self.backbone(batch).pooled["audio"]) - self.start
        return out.merged(LossOutput({"start": Term(1.0, guess.square().sum(), guess.numel())}))


def build(kind: str) -> Loss:
    torch.manual_seed(5)
    backbone = toy.Toy(toy.ToyConfig(dim=8, depth=2))
    config = ContrastiveConfig(streams=("audio", "vision"), dim=6, temperature=0.2, learn_temperature=True)
    losses = {
        "masked": lambda: Masked(backbone, True),
        "masked-uncounted": lambda: Masked(backbone, False),
        "prepared": lambda: Prepared(backbone),
        "contrastive": lambda: Contrastive(backbone, config),
        "both": lambda: Both(backbone, config),
    }
    return losses[kind]().double()


def batch_of(size: int) -> Batch:
    g = torch.Generator().manual_seed(3)
    streams = {
        "audio": Stream(torch.randn(size, 6, 20, generator=g, dtype=torch.float64)),
        "vision": Stream(torch.randn(size, 3, 8, 8, generator=g, dtype=torch.float64)),
    }
    return Batch(tuple(map(str, range(size))), torch.arange(size), streams)


# -- one or several updates ------------------------------------------------------------------------------------------
def train_all(jobs: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """`train` for each job, in one group."""
    with member_of_world(CPU) as world:
        return [train(world, *job) for job in jobs]


def train(
    world: World,
    kind: str,
    micro: int | None = None,
    negatives: str = "global",
    sharded: bool = False,
    size: int = 8,
    updates: int = 3,
) -> dict[str, Any]:
    """Updates of SGD with momentum on the same global batch, whoever shares it: loss, gradients, weights."""
    loss = build(kind)
    if sharded and world.ranks > 1:
        from avssl.training.weights import shard

        shard(loss)
    batch, share = batch_of(size), size // world.ranks
    mine = batch.rows(slice(world.rank * share, (world.rank + 1) * share))
    micro = min(micro or share, share)
    micros = [mine.rows(slice(i, i + micro)) for i in range(0, share, micro)]
    stepper = Stepper(loss, ready, CPU, world, 1, negatives=negatives)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1, momentum=0.9)
    out: dict[str, Any] = {"losses": [], "terms": []}
    if kind == "prepared":
        stepper.prepare(micros)
        out["start"] = loss.start.clone().numpy()
    for update in range(1, updates + 1):
        step = stepper.backward(micros, update)
        sum_gradients(loss.parameters(), world)
        sums = {k: (w, world.sum(torch.stack([s, c]).double())) for k, (w, s, c) in step.terms.items()}
        out["losses"].append(sum(w * float(v[0] / v[1]) for w, v in sums.values()))
        out["terms"].append({k: float(v[0] / v[1]) for k, (_, v) in sums.items()})
        out["gradients"] = {
            n: None if p.grad is None else whole(p.grad).clone().numpy() for n, p in loss.named_parameters()
        }
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    out["weights"] = {n: whole(p.detach()).clone().numpy() for n, p in loss.named_parameters()}
    return out


def look(
    plugin: str, recipes: list[str], manifest: str, slow: float = 0.0, timeout: float = 60.0
) -> list[dict[str, float]]:
    """What looks at the validation split find with untrained weights. slow: seconds that each item of the first process
    is made to take."""
    from avssl.data.manifest import read_rows
    from avssl.recipe import load_recipe
    from avssl.registry import registry
    from avssl.training.setup import Machine, build_run, plan_data
    from avssl.training.validation import neighbours, validator

    os.environ["AVSSL_DIST_TIMEOUT"] = str(timeout)
    sys.path.insert(0, plugin)
    registry.cache_clear()
    if slow and os.environ["RANK"] == "0":
        item = toy.ToyFrontend.item

        def delayed(self: Any, clips: Any, rng: Any) -> Batch:
            time.sleep(slow)
            return item(self, clips, rng)

        toy.ToyFrontend.item = delayed  # type: ignore[method-assign]
    rows, out = read_rows(manifest, modalities=None), []
    with member_of_world(CPU) as world:
        for path in recipes:
            recipe: Any = load_recipe(path)
            plan, _ = plan_data(recipe, rows)
            folder, machine = Path(path).parent, Machine(workers=0)
            run = build_run(recipe, plan, folder, world, CPU, machine, None, validator(plan.validation))
            assert run.validate is not None
            run.loss.eval()
            run.frontend.eval()
            out.append({**run.validate(1), **(neighbours(run, plan.validation) if not slow else {})})
    return out


def wait_for_the_first(seconds: float, how: str = "") -> str:
    """The first process is at work longer than the time-out, or ends in the midst of it."""
    os.environ["AVSSL_DIST_TIMEOUT"] = "4"  # a loaded machine does not let a process wait for so long
    if how == "mute":
        distributed._heartbeat = contextlib.nullcontext  # type: ignore[assignment]
    with member_of_world(CPU) as world:
        with world.first_works():
            if world.first:
                time.sleep(seconds)
                if how == "raise":
                    raise ValueError("its own reason")
                if how == "die":
                    os._exit(3)
        return str(world.sum(torch.ones(1)).item())


def run_avssl(arguments: list[str], logs: str, rank: int = -1, update: int = 0, how: str = "") -> int:
    """The command line in this process of a group; its exit code. At an update, `how` happens to one rank."""
    if int(os.environ["RANK"]) == rank:
        _arrange(how, update)
    descriptor = os.open(f"{logs}-{os.environ['RANK']}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from avssl.cli import main

    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _arrange(how: str, at: int) -> None:
    if how == "disk full":
        from avssl.training import checkpoint

        def refuse(path: Path, *rest: Any) -> None:
            raise OSError(errno.ENOSPC, "")

        checkpoint._write = refuse
        return
    step = Stepper.backward

    def backward(self: Stepper, micros: list[Batch], update: int) -> Any:
        if update == at:
            os.kill(os.getpid(), getattr(signal, how))
        return step(self, micros, update)

    Stepper.backward = backward  # type: ignore[method-assign]


__all__ = ["World", "batch_of", "build", "group", "look", "run_avssl", "train", "train_all", "wait_for_the_first"]
