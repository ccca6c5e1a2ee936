"""bench, reproduce and trackers, through the real entry points."""

from __future__ import annotations

import csv
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from avssl.cli import main
from avssl.errors import Exit, UsageError
from avssl.reproduce import reproduce


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    with (tmp_path / "sounds.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["audio", "label", "split"])
        for i in range(12):
            wave = np.sin(np.arange(8000) * (0.1 if i % 2 else 0.4)) * 0.3
            soundfile.write(tmp_path / f"{i}.wav", wave + np.random.default_rng(i).normal(0, 0.01, 8000), 16_000)
            table.writerow([f"{i}.wav", "low" if i % 2 else "high", "test" if i >= 8 else "train"])
    return tmp_path / "sounds.csv"


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


def test_bench_gives_times_flops_and_a_ratio(capsys: pytest.CaptureFixture) -> None:
    small = ["--set", "data.batch_size=4", "--set", "train.best=loss", "--workers", "0", "--steps", "1", "--json"]
    assert run("bench", "tiny/masked", "--against", "tiny/masked", *small) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["recipe"]["clips_per_update"] == 4 and report["recipe"]["update_s"] > 0
    assert report["recipe"]["gflop_per_update"] > 0 and 0 < report["recipe"]["mfu"] < 2
    assert set(report["ratio"]) == {"update_s", "update_cpu_s", "forward_s", "seconds_per_clip"}


@pytest.mark.parametrize(("wanted", "code"), [(0.0, Exit.OK), (2.0, Exit.GATE)])
def test_reproduce_compares_with_what_the_recipe_states(sounds: Path, wanted: float, code: Exit,
                                                        capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    recipe = sounds.parent / "mine.toml"
    recipe.write_text(f'extends = "tiny/masked"\n[train]\nupdates = 2\n[data]\nbatch_size = 4\n[expected]\n'
                      f'"knn.audio.accuracy" = {wanted}\n', encoding="utf-8")  # fmt: skip
    out = sounds.parent / "run"
    assert run("reproduce", str(recipe), "--data", str(sounds), "--out", str(out), "--workers", "0", "--json") == code
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] == (code == Exit.OK)
    assert 0 <= result["metrics"]["knn.audio.accuracy"]["got"] <= 1
    assert json.loads((out / "reproduction.json").read_text()) == result


def test_a_tracker_gets_every_number(sounds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its id is the run's own: the same when the run goes on, another for a directory of the same name elsewhere."""
    logged: list[tuple[dict, int]] = []
    finished: list[bool] = []
    ids: list[str] = []

    def init(**options: object) -> types.SimpleNamespace:
        ids.append(str(options["id"]))
        return types.SimpleNamespace(
            log=lambda scalars, step: logged.append((scalars, step)), finish=lambda: finished.append(True)
        )

    fake = types.ModuleType("wandb")
    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    short = ["--set", "train.updates=2", "--set", "train.log_every=1", "--set", "data.batch_size=4", "--workers", "0"]

    def train(out: Path, *more: str) -> int:
        return run(
            "pretrain", "tiny/masked", "--data", str(sounds), "--out", str(out), "--tracker", "wandb", *short, *more
        )

    assert train(sounds.parent / "run") == 0
    assert [step for _, step in logged] == [1, 2] and finished == [True]
    assert {"loss", "lr", "terms/frames"} <= set(logged[0][0])
    (sounds.parent / "run" / "checksums.json").unlink()
    assert train(sounds.parent / "run", "--resume") == 0
    assert train(sounds.parent / "elsewhere" / "run") == 0
    assert ids[0] == ids[1] != ids[2]


def test_a_missing_tracker_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from avssl.training.trackers import open_trackers

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError) as caught:
        open_trackers(["mlflow"], None)  # type: ignore[arg-type]
    assert str(caught.value) == "--tracker mlflow: the package is not installed (pip install 'avssl[mlflow]')"


@pytest.mark.parametrize(("expected", "ok"), [(1000.0, True), (0.01, False)])
def test_a_number_that_should_be_low_reproduces_when_it_is_lower(
    expected: float, ok: bool, sounds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = sounds.parent / "mine.toml"
    recipe.write_text(f'extends = "tiny/masked"\n[expected]\n"retrieval.a->b.median_rank" = {expected}\n')
    monkeypatch.setattr("avssl.training.run.pretrain", lambda *a, **k: {"validation": {}})
    measured = types.SimpleNamespace(metrics={"retrieval.a->b.median_rank": 3.0})
    monkeypatch.setattr("avssl.api.evaluate", lambda *a, **k: measured)
    (sounds.parent / "run").mkdir()
    assert reproduce(str(recipe), str(sounds), sounds.parent / "run")["ok"] == ok


def test_a_number_of_no_protocol_is_refused_before_training(sounds: Path) -> None:
    recipe = sounds.parent / "mine.toml"
    recipe.write_text('extends = "tiny/masked"\n[expected]\n"retreival.r@1" = 0.5\n')
    with pytest.raises(UsageError, match="no evaluation is called 'retreival'"):
        reproduce(str(recipe), str(sounds), sounds.parent / "run")
    assert not (sounds.parent / "run").exists()
