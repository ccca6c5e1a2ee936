"""Parameter groups, optimisers and learning-rate schedules."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from avssl.errors import check
from avssl.loss import Loss
from avssl.recipe import OptimConfig, ScheduleConfig
from avssl.training.distributed import whole


def parameter_groups(loss: Loss, cfg: OptimConfig) -> list[dict[str, Any]]:
    """Groups by decay and rate. Each has `params`, `names`, `weight_decay` and `scale` (its rate over the recipe's).

    Sets `requires_grad` off for what the recipe freezes. Biases, norms and other parameters of at most one dimension do
    not decay unless `decay_all` or the patterns of `decay` say so; those of `no_decay` never do.
    """
    heads = loss.head_parameters()
    prefix = "backbone."
    depths = len(loss.backbone.blocks) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in loss.named_parameters():
        frozen = cfg.freeze == "backbone" and name not in heads
        if frozen or any(fnmatch.fnmatchcase(name, pattern) for pattern in cfg.frozen):
            parameter.requires_grad_(False)
        if not parameter.requires_grad:
            continue
        scale = cfg.head_lr_ratio if name in heads else 1.0
        if cfg.layer_decay != 1.0 and name.startswith(prefix):
            scale *= cfg.layer_decay ** (depths - loss.backbone.depth_of(name.removeprefix(prefix)))
        decay = cfg.weight_decay if decays(name, parameter, cfg) else 0.0
        group = groups.setdefault((decay, scale), {"params": [], "names": [], "weight_decay": decay, "scale": scale})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def decays(name: str, parameter: Tensor, cfg: OptimConfig) -> bool:
    """Whether weight decay applies: the recipe's patterns first, then the number of dimensions."""
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in cfg.no_decay):
        return False
    wide = sum(n > 1 for n in parameter.shape) > 1
    return cfg.decay_all or wide or any(fnmatch.fnmatchcase(name, p) for p in cfg.decay)


def build_optimizer(loss: Loss, cfg: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a recipe over the trainable parameters of a loss; the fused kernels where they exist."""
    groups = parameter_groups(loss, cfg)
    check(bool(groups), "nothing is left to train", fix="see optim.freeze and optim.frozen")
    for group in groups:
        group["lr"] = cfg.lr * group["scale"]
    floats = {p.dtype for g in groups for p in g["params"]}
    fused = floats == {torch.float32}  # the fused kernels know these best; double precision is for tests
    if cfg.name == "adamw":
        return torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=fused)
    if cfg.name == "adam":
        return torch.optim.Adam(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=fused)
    return torch.optim.SGD(groups, lr=cfg.lr, momentum=cfg.momentum, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def schedule(cfg: ScheduleConfig, total: int, per_epoch: int) -> Callable[[int], float]:
    """Update number (0 = the first) -> multiplier of the peak rate. total: updates of the run."""
    warmup = int(cfg.warmup) if cfg.warmup >= 1 else round(cfg.warmup * total)

    def factor(update: int) -> float:
        if update < warmup:
            return cfg.warmup_start + (1 - cfg.warmup_start) * (update + 1) / warmup
        done = (update - warmup) / max(1, total - warmup)
        if cfg.name == "cosine":
            return cfg.floor + (1 - cfg.floor) * 0.5 * (1 + math.cos(math.pi * done))
        if cfg.name == "linear":
            return 1 - (1 - cfg.floor) * done
        if cfg.name == "exponential":
            return max(cfg.floor, 1e-12) ** done
        if cfg.name == "tri_stage":  # warm-up, hold, exponential decay to the floor (fairseq)
            hold = round(cfg.hold * total)
            decay = max(1, total - warmup - hold)
            return math.exp(math.log(max(cfg.floor, 1e-12)) * min(1.0, max(0, update - warmup - hold) / decay))
        if cfg.name == "step":
            epoch = update // per_epoch
            late = epoch - cfg.milestones_start
            return cfg.gamma ** (late // cfg.milestones_every + 1 if late >= 0 else 0)
        return 1.0

    return factor


@torch.no_grad()
def clip(parameters: list[Tensor], limit: float) -> Tensor:
    """() the global L2 norm of the gradients, scaled down to `limit` where it exceeds it."""
    kinds = [
        [p for p in parameters if p.grad is not None and hasattr(p, "full_tensor") == sharded]
        for sharded in (False, True)
    ]
    norms = [
        whole(nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None])) for kind in kinds if kind
    ]  # the two kinds do not mix
    if not norms:
        return torch.zeros(())
    norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
    if not math.isinf(limit):
        for kind in filter(None, kinds):
            nn.utils.clip_grads_with_norm_(kind, limit, norm)
    return norm
