"""What every data2vec training-step case needs: the official optimisers, and tensors under official names."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parity.harness import Case


def divisor(case: Case) -> float:
    value = case.call["optimiser"]["grad_divided_by"]
    return float(case.io[value]) if isinstance(value, str) else float(value)


def grads(module: nn.Module) -> dict[str, Tensor]:
    """Gradients by parameter name; zeros where nothing flowed."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in module.named_parameters()}


def optimise(case: Case, module: nn.Module, official_name: Mapping[str, str]) -> float:
    """One step of the case's optimiser over the trainable parameters; returns the gradient norm before clipping.

    official_name: our parameter name -> the official one (of its first part), for groups and decay rules.
    """
    spec: dict[str, Any] = case.call["optimiser"]
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad / divisor(case)
    limit = spec.get("clip_grad_norm")
    norm = torch.nn.utils.clip_grad_norm_(list(trained.values()), limit if limit is not None else float("inf"))
    for name, p in trained.items():
        official = official_name[name]
        lr = next(
            (g["lr"] for g in spec["groups"] if any(fnmatch.fnmatchcase(official, q) for q in g["parameters"])),
            spec["lr"],
        )
        decay = 0.0 if _undecayed(official, p, spec.get("no_decay")) else spec["weight_decay"]
        if spec["name"] == "fairseq_adam":
            fairseq_adam(p, lr, spec["betas"], spec["eps"], decay)
        else:
            kind = torch.optim.AdamW if spec["decoupled"] else torch.optim.Adam
            kind([p], lr=lr, betas=tuple(spec["betas"]), eps=spec["eps"], weight_decay=decay).step()
    return float(norm)


def _undecayed(name: str, p: Tensor, rule: Mapping[str, Any] | None) -> bool:
    if not rule:
        return False
    return p.ndim <= rule["max_ndim"] or name.endswith(tuple(rule["suffixes"])) or name in rule["names"]


@torch.no_grad()
def fairseq_adam(p: Tensor, lr: float, betas: list[float], eps: float, decay: float) -> None:
    """The first step from a fresh state: eps is not bias-corrected."""
    m, v = p.grad * (1 - betas[0]), p.grad.square() * (1 - betas[1])
    size = lr * (1 - betas[1]) ** 0.5 / (1 - betas[0])
    p.sub_(lr * decay * p)
    p.sub_(size * m / (v.sqrt() + eps))
