"""Whole weights of a loss, sharded or not, and their averages."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from avssl.imports import load_strictly
from avssl.loss import Loss
from avssl.training.distributed import World, whole


def shard(loss: Loss) -> None:
    """Shard parameters, gradients and optimiser state over the processes (FSDP2): each block, then the rest."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    scalars = {p for p in loss.parameters() if p.ndim == 0}  # a temperature cannot be cut: each process keeps it whole
    called = [m for m in loss.exports().values() if type(m).forward is not nn.Module.forward]  # by themselves, too
    for module in (*loss.backbone.blocks, *called, loss):
        fully_shard(module, ignored_params=scalars)
        module.set_gradient_divide_factor(1.0)  # type: ignore[operator]  # losses are divided by global counts: gradients add up
        module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]  # with plain sums, which every backend has
    for name in ("prepare", "compute", "local", "joint"):
        register_fsdp_forward_method(loss, name)


def full_state(loss: nn.Module, world: World) -> dict[str, Tensor]:
    """The state dict with every tensor whole, on the CPU; all processes must call it."""
    return {name: whole(value) for name, value in loss.state_dict().items()}


@torch.no_grad()
def load_full_state(loss: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load whole tensors strictly, into sharded parameters as well."""
    own = loss.state_dict()
    if not any(hasattr(v, "full_tensor") for v in own.values()):
        load_strictly(loss, tensors, where)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(loss, dict(tensors), options=StateDictOptions(full_state_dict=True, strict=True))


@dataclass
class Averages:
    """Averages that replace the weights at the end: an EMA over updates, or the mean over a range of epochs.

    epochs: (first, last), 1-based, inclusive (as published runs state it); ema: decay. Over the whole loss.
    """

    epochs: tuple[int, int] | None = None
    decay: float | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    @torch.no_grad()
    def step(self, loss: Loss) -> None:
        """After a finished update."""
        if self.decay is None:
            return
        state = _floats(loss)
        if not self.sums:
            self.sums = {k: v.detach().clone().float() for k, v in state.items()}
            return
        self._on_device_of(state)
        torch._foreach_lerp_(list(self.sums.values()), [v.float() for v in state.values()], 1 - self.decay)

    @torch.no_grad()
    def epoch(self, finished: int, loss: Loss) -> None:
        """After `finished` whole epochs."""
        if self.epochs is None or not self.epochs[0] <= finished <= self.epochs[1]:
            return
        for name, value in _floats(loss).items():
            more = value.detach().to("cpu", torch.float64)  # once an epoch: no need to hold them on the device
            self.sums[name] = self.sums[name] + more if name in self.sums else more.clone()
        self.count += 1

    def _on_device_of(self, state: Mapping[str, Tensor]) -> None:
        """After a resume the sums are where the file was read to, in the order of the file."""
        self.sums = {k: self.sums[k].to(v.device) for k, v in state.items() if k in self.sums}

    def result(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`state` with its floating-point tensors replaced by their averages, where there are any."""
        if not self.sums or (self.epochs is not None and self.count == 0):
            return dict(state)
        scale = 1.0 / self.count if self.epochs is not None else 1.0
        return {k: (self.sums[k] * scale).to(v) if k in self.sums else v for k, v in state.items()}

    @contextlib.contextmanager
    def applied(self, loss: Loss, world: World) -> Iterator[None]:
        """Meanwhile the loss has its averaged weights, where there are any; all processes must call it."""
        if not self.sums:
            yield
            return
        own = {name: value.detach().clone() for name, value in full_state(loss, world).items()}
        load_full_state(loss, self.result(own), "the averaged weights")
        try:
            yield
        finally:
            load_full_state(loss, own, "the trained weights")

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        return {"averages": self.sums} if self.sums else {}

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        self.sums = dict(tensors.get("averages", {}))


def _floats(loss: Loss) -> dict[str, Tensor]:
    return {k: whole(v) for k, v in loss.state_dict().items() if v.is_floating_point()}
