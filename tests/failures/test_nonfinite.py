"""A number that is none is named, kept and reproduced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import avssl, pretrain_arguments

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
    assert ended.last.startswith("error: update 5: loss term frames is ")  # 2, 3 and 4 were passed over
    assert sorted(p.name for p in (tmp_path / "run/debug").iterdir()) == [f"update-0000000{n}" for n in (2, 3, 4, 5)]


def test_a_wrong_policy_is_refused(sounds: Path, tmp_path: Path) -> None:
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, tmp_path / "run", "train.on_nonfinite=ignore"))
    assert ended.code == 2 and ended.last == 'error: train.on_nonfinite = \'ignore\' ("stop" or "skip-10")'
