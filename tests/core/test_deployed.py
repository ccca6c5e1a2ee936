"""What a run deploys is what it judged, says and may be resumed as; folds and stages are ordinary runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import avssl
from avssl.cli import main
from avssl.data.clip import Row
from avssl.data.manifest import write_rows
from avssl.errors import DataError, UsageError
from avssl.files import finite
from avssl.recipe import load_run
from avssl.training import checkpoint, pipeline, validation
from avssl.training.distributed import World
from avssl.training.loop import improves
from avssl.training.meter import Meter, read_journal
from avssl.training.setup import Machine, plan_data

MACHINE = Machine(device="cpu", workers=0)
SMALL = ["backbone.dim=8", "backbone.layers=1", "backbone.ff=8", "frontend.seconds=0.5", "data.batch_size=4"]
MATCHING = ["backbone.features=128", "backbone.heads=4", "frontend.n_mels=128"]  # as of tiny/masked


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """24 sounds of two classes, sorted by class; every third validates; three folds."""
    folder = tmp_path_factory.mktemp("sounds")
    out = []
    for i in range(24):
        path = folder / f"{i:02d}.wav"
        low = i < 12
        wave = np.sin(np.arange(8000) * (0.1 if low else 0.11)) * 0.1 + np.random.default_rng(i).normal(0, 0.1, 8000)
        soundfile.write(path, wave.astype(np.float32), 16_000)
        split = "val" if i % 3 == 2 else "train"
        out.append(
            Row(f"{i:02d}", {"audio": str(path)}, labels=("low" if low else "high",), split=split, fold=1 + i % 3)
        )
    return out


def pretrain(rows: list[Row], out: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    return avssl.pretrain("tiny/masked", rows, out, overrides=[*SMALL, *overrides], machine=MACHINE, **options)


def finetune(rows: list[Row], out: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    changes = [*SMALL, *(MATCHING if "source" in options else []), "frontend.mixup=0", *overrides]
    source = options.pop("source", None)
    return avssl.finetune("tiny/6k-esc50", source, rows, out, overrides=changes, machine=MACHINE, **options)


def looks(out: Path) -> dict[int, dict[str, float]]:
    return {r["update"]: r["validation"] for r in read_journal(out) if r["kind"] == "validation"}


# -- the best checkpoint -----------------------------------------------------------------------------------------------
def test_the_best_loss_is_the_lowest(rows: list[Row], tmp_path: Path) -> None:
    report = pretrain(rows, tmp_path / "run", "train.epochs=4", "optim.lr=3e-2", "train.best=loss")
    seen = {update: metrics["loss"] for update, metrics in looks(tmp_path / "run").items()}
    least = min(seen, key=lambda update: seen[update])
    assert len(seen) == 4 and seen[least] < max(seen.values())
    assert checkpoint.best_name(tmp_path / "run" / "checkpoints") == checkpoint.name_of(least)
    assert report["best"] == {"loss": seen[least]} and report["validation"]["loss"] == seen[least]


def test_what_is_no_number_is_never_the_best() -> None:
    assert not improves(math.nan, None, lower=False) and not improves(math.nan, 0.5, lower=True)
    assert improves(0.5, None, lower=True) and improves(0.4, 0.5, lower=True) and improves(0.6, 0.5, lower=False)
    assert not improves(0.5, 0.5, lower=True) and not improves(0.5, 0.5, lower=False)


def test_the_best_of_nothing_is_refused(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        pretrain([r for r in rows if r.split == "train"], tmp_path / "run", "train.best=loss", "train.updates=2")
    assert str(error.value) == (
        "train.best = 'loss' chooses by validation, and no item validates "
        "(give rows of split 'val', or --set train.best='')"
    )


def test_an_average_of_epochs_that_never_come_is_said(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(rows, tmp_path / "run", "train.updates=3", "train.weight_average=[90,99]")
    assert capsys.readouterr().err.splitlines()[0] == (
        "note: train.weight_average begins with epoch 90, the run ends after 0 whole epochs: the last weights are deployed"
    )


def test_an_average_of_no_model_is_refused(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        pretrain(rows, tmp_path / "run", "train.updates=1", "train.init=average")
    assert str(error.value) == "train.init = 'average' needs a model to start from (give it with --init or --from)"


# -- averages ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "average", ["train.ema=0.7", "train.weight_average=[2,4]", "train.ema=0.7 train.best=accuracy"]
)
def test_what_is_deployed_is_what_was_validated(average: str, rows: list[Row], tmp_path: Path) -> None:
    report = finetune(
        rows, tmp_path / "run", *average.split(), "train.epochs=4", "optim.lr=3e-2", "optim.weight_decay=0"
    )
    write_rows(rows, tmp_path / "rows.parquet")
    judged = avssl.evaluate(
        tmp_path / "run", tmp_path / "rows.parquet", "classification", overrides=["split=val", "workers=0"]
    )
    for name in ("accuracy", "map", "auc"):
        assert judged.metrics[f"classification.{name}"] == pytest.approx(report["validation"][name]), name
    state = checkpoint.read(tmp_path / "run" / "checkpoints" / checkpoint.name_of(report["updates"])).tensors["loss"]
    deployed = avssl.load(tmp_path / "run").backbone.state_dict()
    assert not torch.equal(deployed["proj.weight"], state["backbone.proj.weight"]), "the average was not deployed"


def test_a_window_without_a_step_has_no_loss() -> None:
    record = Meter(World(), torch.device("cpu")).take()
    assert math.isnan(record["loss"]) and math.isnan(record["grad_norm"])
    assert json.loads(json.dumps(finite(record)))["loss"] is None


# -- looks -------------------------------------------------------------------------------------------------------------
def test_neighbours_of_sorted_data_and_a_schedule_of_their_own(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few training rows are taken, all classes among them; a look every epoch where validation comes every 0.75."""
    monkeypatch.setattr(validation, "KNN_ROWS", 6)
    strange = Row("x", rows[2].parts, labels=("siren",), split="val")
    pretrain([*rows, strange], tmp_path / "run", "train.epochs=3", "train.validate_every=0.75", "monitor.knn_every=1")
    seen = looks(tmp_path / "run")
    assert list(seen) == [3, 6, 9, 12]  # of 4 updates an epoch
    assert [u for u, metrics in seen.items() if "knn.audio.accuracy" in metrics] == [6, 9, 12]


def test_validation_rows_do_not_vanish(rows: list[Row]) -> None:
    recipe = load_run("tiny/6k-esc50", SMALL)
    silent = Row("silent", {"text": "no sound"}, labels=("low",), split="val")
    unnamed = Row("unnamed", rows[2].parts, split="val")
    plan, lacking = plan_data(recipe, [*rows, silent, unnamed])
    assert len(plan.validation) == 8
    assert {item.id: item.reason for item in lacking} == {
        "silent": "has no audio",
        "unnamed": "has no label to validate with",
    }
    train = [r for r in rows if r.split == "train"]
    with pytest.raises(DataError) as error:
        plan_data(recipe, [*train, unnamed, Row("other", rows[5].parts, split="val")])
    assert str(error.value) == ("none of the 2 validation items has a label (label them, or leave their split out)")


# -- resuming ----------------------------------------------------------------------------------------------------------
def test_a_run_goes_on_from_the_model_and_fold_that_it_began_with(rows: list[Row], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        pretrain(rows, tmp_path / name, "train.updates=1", f"train.seed={seed}")
    out = tmp_path / "run"
    finetune(rows, out, "train.updates=2", source=tmp_path / "a", fold=1)
    assert f"started from | {tmp_path / 'a'}" in (out / "README.md").read_text()
    again = {"source": tmp_path / "a", "fold": 1, "resume": True}
    finetune(rows, out, "train.updates=2", **again)
    for changed, told in (
        ({"source": tmp_path / "b"}, f"{out} was started from {tmp_path / 'a'}, not from {tmp_path / 'b'}"),
        ({"source": None}, f"{out} was started from {tmp_path / 'a'}, not from scratch"),
    ):
        with pytest.raises(UsageError) as error:
            finetune(rows, out, "train.updates=2", **{**again, **changed})
        assert str(error.value) == f"{told} (resume with the same model, or start a new run)"
    name = json.loads((out / "data.json").read_text())["data"]
    assert name.startswith("24 rows (") and name.endswith("), fold 1")
    with pytest.raises(UsageError) as error:
        finetune(rows, out, "train.updates=2", **{**again, "fold": 2})
    assert str(error.value) == (
        f"{out} was started on {name}, --data is {name[:-1]}2 "
        "(resume with the same data, or start a new run with --init)"
    )
    (tmp_path / "moved").mkdir()
    (tmp_path / "a").rename(tmp_path / "moved" / "a")  # the same model at another place is the same
    finetune(rows, out, "train.updates=2", **{**again, "source": tmp_path / "moved" / "a"})
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(UsageError) as error:
        finetune(rows, out, "train.updates=2", **again)
    assert str(error.value) == (
        f"{out} was started from {tmp_path / 'a'}, which has changed since "
        "(resume with the same model, or start a new run)"
    )


# -- folds -------------------------------------------------------------------------------------------------------------
def test_a_fold_without_a_number_is_not_left_out(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([math.inf, math.inf, 1.0])
    monkeypatch.setattr(
        pipeline, "finetune", lambda *a, **k: {"validation": {"d_prime": next(values), "f1": 0.5}, "seconds": 1.0}
    )
    (tmp_path / "out").mkdir()
    report = pipeline.run_folds("tiny/6k-esc50", None, rows, tmp_path / "out", machine=MACHINE)
    assert report["folds"]["d_prime"] == math.inf and math.isnan(report["folds"]["d_prime.std"])
    assert (report["folds"]["f1"], report["folds"]["f1.std"]) == (0.5, 0.0)
    assert report["per_fold"]["3"] == {"d_prime": 1.0, "f1": 0.5}


def test_a_fold_is_the_run_of_that_fold(rows: list[Row], tmp_path: Path) -> None:
    """One of them can be resumed alone, and a run that an earlier release began with rows goes on."""
    write_rows(rows, tmp_path / "rows.parquet")
    changes = [*SMALL, "frontend.mixup=0", "train.updates=1"]
    where = tmp_path / "rows.parquet", tmp_path / "out"
    pipeline.run_folds("tiny/6k-esc50", None, *where, overrides=changes, machine=MACHINE)
    one = tmp_path / "out" / "fold-2"
    again = {"overrides": changes, "machine": MACHINE, "fold": 2, "resume": True}
    report = avssl.finetune("tiny/6k-esc50", None, where[0], one, **again)
    assert report["updates"] == 1 and report["validation_items"] == 8
    (one / "data.json").write_text('{"data": "24 rows"}')
    assert avssl.finetune("tiny/6k-esc50", None, where[0], one, **again) == report


# -- options -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--out", "x", "--kfold", "--fold", "3"],
         "--kfold makes a run for every fold, --fold one (give one of them)"),
        (["--out", "x", "--kfold", "--tracker", "wandbb"], "--tracker 'wandbb' (did you mean 'wandb'?)"),
        ([], "--out is missing (name a directory for the run, or use --dry-run)"),
    ],
)  # fmt: skip
def test_options_that_cannot_be_meant(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("finetune", "tiny/6k-esc50", "--data", str(tmp_path), *options) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {told}"


def test_fine_tuning_can_be_tried_dry(rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(rows, tmp_path / "rows.parquet")
    changes = [word for change in SMALL for word in ("--set", change)]
    assert (
        run("finetune", "tiny/6k-esc50", "--data", str(tmp_path / "rows.parquet"), "--dry-run", "--json", *changes) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["items"] == 16 and report["validation_items"] == 8 and report["loss_terms"]["cross_entropy"] > 0
    dry = ["finetune", "tiny/6k-esc50", "--data", str(tmp_path / "rows.parquet"), "--dry-run", *changes]
    assert run(*dry, "--json", "--fold", "2", "--set", "data.per_class=3") == 0
    assert json.loads(capsys.readouterr().out)["items"] == 6
    assert run(*dry, "--kfold") == 2
    told = "error: --kfold is a run for each fold (try one of them dry: --fold 1)"
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert {p.name for p in tmp_path.iterdir()} == {"rows.parquet"}
