"""A number that is none is named, kept and reproduced."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from runs import SMALL, avssl, pretrain_arguments

from avssl.batch import Batch
from avssl.training import checkpoint
from avssl.training.loop import NonFinite, Run
from avssl.training.signals import StopRequest
from avssl.training.step import StepOutput

EXPLODES = ("optim.lr=1e30", "schedule.name=constant", "schedule.warmup=0", "train.ema=0.99", "optim.weight_decay=0.0")


@pytest.fixture(scope="module")
def broken(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run whose weights explode in its first update, and its last words."""
    folder = tmp_path_factory.mktemp("broken")
    ended = avssl(folder / "logs", *pretrain_arguments(sounds, folder / "run", *EXPLODES))
    assert ended.code == 5, ended.stderr
    return folder / "run", ended.last


def test_step_term_and_clips_are_named(broken: tuple[Path, str]) -> None:
    run, last = broken
    (folder,) = (run / "debug").iterdir()
    clips = json.loads((folder / "batch-0.json").read_text())["ids"][0]
    value = "nan" if "nan" in last else "inf"
    assert last == (
        f"error: update 2: loss term frames is {value}; clips {', '.join(clips[:4])}, ... "
        f"(`avssl debug replay {folder}` reproduces it; train.on_nonfinite=skip-10 passes over a few)"
    )
    assert folder.name == "update-00000002"


def test_replay_reproduces_it(broken: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = broken
    folder = run / "debug" / "update-00000002"
    ended = avssl(tmp_path, "debug", "replay", str(folder), "--json")
    assert ended.code == 0, ended.stderr
    result = json.loads(ended.stdout)
    assert result["update"] == 2 and result["reproduced"] is True and result["terms"]["frames"] is None
    clips = json.loads((folder / "batch-0.json").read_text())["ids"][0]
    assert result["clips"] == clips and sorted(result["clips_not_finite_alone"]) == sorted(
        clips
    )  # the weights, not a clip
    table = avssl(tmp_path, "debug", "replay", str(folder))
    assert table.last == "it is reproduced"
    wrong = avssl(tmp_path, "debug", "replay", str(run))
    fix = "give RUN/debug/update-N of a run that stopped on it"
    assert (wrong.code, wrong.last) == (4, f"error: {run}: holds no captured step ({fix})")


def test_a_few_may_be_skipped(sounds: Path, tmp_path: Path) -> None:
    ended = avssl(
        tmp_path / "logs", *pretrain_arguments(sounds, tmp_path / "run", *EXPLODES, "train.on_nonfinite=skip-3")
    )
    assert ended.code == 5
    folder = tmp_path / "run/debug/update-00000005"  # 2, 3 and 4 were passed over
    clips = ", ".join(json.loads((folder / "batch-0.json").read_text())["ids"][0][:4])
    assert ended.last == (
        f"error: update 5: loss term frames is {'nan' if 'is nan' in ended.last else 'inf'}; clips {clips}, ... "
        f"(`avssl debug replay {folder}` reproduces it; train.on_nonfinite=skip-10 passes over a few)"
    )
    assert sorted(p.name for p in (tmp_path / "run/debug").iterdir()) == [f"update-0000000{n}" for n in (2, 3, 4, 5)]


def test_a_wrong_policy_is_refused(sounds: Path, tmp_path: Path) -> None:
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, tmp_path / "run", "train.on_nonfinite=ignore"))
    assert ended.code == 2 and ended.last == 'error: train.on_nonfinite = \'ignore\' ("stop" or "skip-10")'


# -- half precision: what the scaler handles is no bad step ------------------------------------------------------------
def scaled(sounds: Path, folder: Path, scale: float, policy: str) -> Run:
    """A run whose losses are scaled as in fp16, on the CPU, with gradients that end where those of fp16 do; `steps` of its
    loss are the finished updates it was told."""
    from avssl.data.manifest import read_rows
    from avssl.recipe import load_recipe
    from avssl.training.distributed import World
    from avssl.training.setup import Machine, build_run, plan_data, write_run_head

    folder.mkdir()
    overrides = [*SMALL, "train.updates=12", f"train.on_nonfinite={policy}", "optim.lr=1e-3"]
    recipe = load_recipe("tiny/masked", overrides)
    plan, _ = plan_data(recipe, read_rows(str(sounds)))
    run = build_run(recipe, plan, folder, World(), torch.device("cpu"), Machine(workers=0))
    write_run_head(run)
    run.stepper.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    for p in run.parameters:
        p.register_hook(lambda g: g.where(g.abs() <= torch.finfo(torch.float16).max, math.inf))
    run.loss.steps = []
    run.loss.after_step = run.loss.steps.append
    return run


def test_overflows_are_the_scalers_business(sounds: Path, tmp_path: Path) -> None:
    """At first every gradient overflows; the scale is halved until they fit, and not one bad step is counted."""
    run = scaled(sounds, tmp_path / "run", 2.0**24, "stop")
    run.train(StopRequest())
    assert run.done == 12 and run.nonfinite == 0 and 2 <= run.skipped <= 10
    assert run.loss.steps == list(range(1, 13 - run.skipped)) and not (tmp_path / "run/debug").exists()
    saved, _ = checkpoint.newest(tmp_path / "run/checkpoints")
    assert saved is not None and (saved.meta["skipped"], saved.meta["nonfinite"]) == (run.skipped, 0)


def test_bad_steps_are_counted_beside_overflows(sounds: Path, tmp_path: Path) -> None:
    run = scaled(sounds, tmp_path / "run", 2.0**24, "skip-2")
    backward = run.stepper.backward

    def bad(micros: list[Batch], update: int) -> StepOutput:
        out = backward(micros, update)
        if update in (7, 8, 11):
            weight, total, count = out.terms["frames"]
            out.terms["frames"] = (weight, total * math.nan, count)
        return out

    run.stepper.backward = bad
    with pytest.raises(NonFinite) as caught:
        run.train(StopRequest())
    folder = tmp_path / "run/debug/update-00000011"
    clips = ", ".join(json.loads((folder / "batch-0.json").read_text())["ids"][0][:4])
    assert str(caught.value) == (
        f"update 11: loss term frames is nan; clips {clips}, ... (`avssl debug replay {folder}` reproduces it; "
        "train.on_nonfinite=skip-10 passes over a few)"
    )
    assert run.nonfinite == 3 and run.skipped >= 3 + 2


def test_a_gradient_that_no_scale_makes_finite_is_bad(sounds: Path, tmp_path: Path) -> None:
    run = scaled(sounds, tmp_path / "run", 4.0, "stop")
    run.parameters[0].register_hook(lambda g: g * math.nan)
    with pytest.raises(NonFinite) as caught:
        run.train(StopRequest())
    clips = ", ".join(json.loads((tmp_path / "run/debug/update-00000003/batch-0.json").read_text())["ids"][0][:4])
    assert str(caught.value) == (  # 4, 2, and at 1 there is nothing left to halve
        f"update 3: a gradient is not finite; clips {clips}, ... (`avssl debug replay "
        f"{tmp_path / 'run/debug/update-00000003'}` reproduces it; train.on_nonfinite=skip-10 passes over a few)"
    )
