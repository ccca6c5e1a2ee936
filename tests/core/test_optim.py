"""Parameter groups and schedules, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from avssl.backbone import Backbone
from avssl.loss import Loss
from avssl.recipe import OptimConfig, ScheduleConfig
from avssl.training.optim import build_optimizer, parameter_groups, schedule, set_rate


class Net(Backbone):
    def __init__(self) -> None:
        super().__init__(None)
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norm = nn.LayerNorm(4)

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers


class Objective(Loss[Net]):
    def __init__(self) -> None:
        super().__init__(Net(), None)
        self.head = nn.Linear(4, 2)


def groups(**options: object) -> dict[str, dict]:
    loss = Objective()
    return {name: g for g in parameter_groups(loss, OptimConfig(lr=1.0, **options)) for name in g["names"]}


def test_biases_and_norms_do_not_decay() -> None:
    found = groups(weight_decay=0.1)
    assert found["backbone.embed.weight"]["weight_decay"] == 0.1
    assert found["backbone.embed.bias"]["weight_decay"] == found["backbone.norm.weight"]["weight_decay"] == 0.0
    assert groups(weight_decay=0.1, decay_all=True)["backbone.norm.weight"]["weight_decay"] == 0.1


def test_patterns_say_what_decays_whatever_its_dimensions() -> None:
    found = groups(weight_decay=0.1, decay=("*.norm.weight", "head.bias"), no_decay=("*.embed.weight", "head.b*"))
    assert found["backbone.norm.weight"]["weight_decay"] == found["head.weight"]["weight_decay"] == 0.1
    assert found["backbone.embed.weight"]["weight_decay"] == found["backbone.norm.bias"]["weight_decay"] == 0.0
    assert found["head.bias"]["weight_decay"] == 0.0  # no_decay has the last word
    assert groups(weight_decay=0.1, decay_all=True, no_decay=("*.bias",))["head.bias"]["weight_decay"] == 0.0


def test_layer_decay_grows_toward_the_top() -> None:
    found = groups(layer_decay=0.5)
    scales = [
        found[n]["scale"]
        for n in (
            "backbone.embed.weight",
            "backbone.layers.0.weight",
            "backbone.layers.2.weight",
            "backbone.norm.weight",
            "head.weight",
        )
    ]
    assert scales == [0.5**4, 0.5**3, 0.5, 1.0, 1.0]


def test_a_head_has_its_own_ratio_and_survives_freezing() -> None:
    assert groups(head_lr_ratio=10.0)["head.weight"]["scale"] == 10.0
    assert set(groups(freeze="backbone")) == {"head.weight", "head.bias"}
    assert "backbone.layers.1.weight" not in groups(frozen=("backbone.layers.*",))


def test_set_rate_keeps_the_ratios() -> None:
    optimizer = build_optimizer(Objective(), OptimConfig(lr=1.0, head_lr_ratio=10.0))
    set_rate(optimizer, 0.5)
    assert sorted({g["lr"] for g in optimizer.param_groups}) == [0.5, 5.0]


def test_step_schedule_is_the_published_milestones() -> None:
    rate = schedule(
        ScheduleConfig(name="step", milestones_start=10, milestones_every=5, gamma=0.5), total=250, per_epoch=10
    )
    weights = nn.Linear(1, 1)
    reference = torch.optim.SGD(weights.parameters(), lr=1.0)
    steps = torch.optim.lr_scheduler.MultiStepLR(reference, milestones=list(range(10, 25, 5)), gamma=0.5)
    for epoch in range(25):
        assert rate(epoch * 10) == rate(epoch * 10 + 9) == pytest.approx(reference.param_groups[0]["lr"])
        reference.step()
        steps.step()


def test_cosine_with_warm_up() -> None:
    rate = schedule(ScheduleConfig(name="cosine", warmup=10, floor=0.1), total=110, per_epoch=10)
    assert rate(0) == pytest.approx(0.1) and rate(9) == pytest.approx(1.0) and rate(10) == pytest.approx(1.0)
    assert rate(60) == pytest.approx(0.1 + 0.9 * 0.5) and rate(110) == pytest.approx(0.1)


def test_tri_stage_warms_holds_and_decays_exponentially() -> None:
    rate = schedule(ScheduleConfig(name="tri_stage", warmup=0.1, hold=0.4, floor=0.05), total=100, per_epoch=10)
    assert rate(4) == pytest.approx(0.5) and rate(10) == rate(50) == pytest.approx(1.0)
    assert rate(75) == pytest.approx(math.exp(math.log(0.05) * 0.5)) and rate(100) == pytest.approx(0.05)
