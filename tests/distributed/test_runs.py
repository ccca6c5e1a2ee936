"""Whole runs of several processes: equal to one, resumed by any number, ended as one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from runs import assert_same, avssl, outcome, pretrain_arguments, write_sounds
from work import group, run_avssl

from avssl.training import checkpoint
from avssl.training.meter import read_journal

EXACT = ("train.save_every=3", "backbone.dropout=0.0", "train.ema=0.9", "optim.grad_clip=1.0")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


def together(ranks: int, tmp_path: Path, arguments: list[str], *rest: Any) -> tuple[list[Any], list[str]]:
    """Exit codes and output of each process."""
    codes = group(ranks, run_avssl, arguments, str(tmp_path / "log"), *rest)
    return codes, [(tmp_path / f"log-{rank}.txt").read_text() for rank in range(ranks)]


@pytest.fixture(scope="module")
def single(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("single")
    ended = avssl(folder / "logs", *pretrain_arguments(sounds, folder / "run", *EXACT))
    assert ended.code == 0, ended.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def double(sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run of two."""
    folder = tmp_path_factory.mktemp("double")
    codes, said = together(2, folder, pretrain_arguments(sounds, folder / "run", *EXACT))
    assert codes == [0, 0], said
    return folder / "run"


def assert_close(a: Path, b: Path) -> None:
    """Weights, averages, records within float32 rounding over 12 updates."""
    x, y = outcome(a), outcome(b)
    for group_name in x["state"]:
        for name, value in x["state"][group_name].items():
            if name.endswith("key.bias"):
                continue  # a softmax ignores it: its gradient is rounding, which AdamW scales up
            np.testing.assert_allclose(
                value.numpy(),
                y["state"][group_name][name].numpy(),
                rtol=2e-3,
                atol=2e-6,
                err_msg=f"{group_name}/{name}",
            )
    for old, new in zip(x["records"], y["records"], strict=True):
        assert old["update"] == new["update"] and old["loss"] == pytest.approx(new["loss"], rel=1e-5)
        assert old["grad_norm"] == pytest.approx(new["grad_norm"], rel=1e-4)


def test_two_processes_equal_one(single: Path, double: Path) -> None:
    assert_close(single, double)


def rewound(run: Path, target: Path, updates: int = 6) -> Path:
    """The run as it was after a checkpoint."""
    shutil.copytree(run, target)
    (target / "checksums.json").unlink()
    kept = [p for p in checkpoint.steps(run / "checkpoints") if p.name == checkpoint.name_of(updates)]
    assert kept
    for path in checkpoint.steps(target / "checkpoints"):
        if path.name > checkpoint.name_of(updates):
            shutil.rmtree(path)
    return target


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_checkpoint_of_two_goes_on_with_any_number(ranks: int, double: Path, sounds: Path, tmp_path: Path) -> None:
    out = rewound(double, tmp_path / "run", 9)
    arguments = pretrain_arguments(sounds, out, *EXACT, resume=True)
    codes, said = together(ranks, tmp_path, arguments)
    assert codes == [0] * ranks, said
    if ranks == 2:
        assert_same(outcome(out), outcome(double))
    else:
        assert_close(out, double)


def test_sharded_run_equals_and_its_checkpoint_loads_unsharded(single: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    codes, said = together(2, tmp_path, pretrain_arguments(sounds, out, *EXACT, "train.shard=true"))
    assert codes == [0, 0], said
    assert_close(single, out)
    back = rewound(out, tmp_path / "back", 9)
    for ranks in (2, 1):  # sharded again, and whole
        again = tmp_path / f"again{ranks}"
        shutil.copytree(back, again)
        codes, said = together(
            ranks, tmp_path, pretrain_arguments(sounds, again, *EXACT, "train.shard=true", resume=True)
        )
        assert codes == [0] * ranks, said
        assert_close(again, out)


@pytest.mark.parametrize("shard", ["true", "false"])
def test_validation_of_two_processes(shard: str, sounds: Path, tmp_path: Path) -> None:
    lines = [
        json.dumps({"id": p.stem, "audio": str(p), "split": "val" if i < 6 else "train"})
        for i, p in enumerate(sorted(sounds.glob("*.wav")))
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    arguments = pretrain_arguments(tmp_path / "data.jsonl", tmp_path / "run", *EXACT, f"train.shard={shard}", updates=4)
    codes, said = together(2, tmp_path, arguments)
    assert codes == [0, 0], said
    alone = [str(tmp_path / "alone") if a == str(tmp_path / "run") else a for a in arguments]
    ended = avssl(tmp_path / "logs", *alone)
    assert ended.code == 0, ended.stderr
    looks, same = (
        [r["validation"]["loss"] for r in read_journal(tmp_path / name) if r["kind"] == "validation"]
        for name in ("run", "alone")
    )
    assert len(looks) == 2 and looks == pytest.approx(same, rel=1e-5)


def test_a_process_that_dies_ends_the_others_with_the_reason(sounds: Path, tmp_path: Path) -> None:
    codes, said = together(2, tmp_path, pretrain_arguments(sounds, tmp_path / "run", *EXACT), 1, 5, "SIGKILL")
    assert codes == [1, "ended with -9"]
    last = said[0].strip().splitlines()[-1]
    assert re.fullmatch(  # in the middle: gloo's own words
        r"error: process 0 of 2 lost another one: .{10,160} "
        r"\(that one's message says why; --resume goes on from the last checkpoint\)",
        last,
    )
    saved, notes = checkpoint.newest(tmp_path / "run/checkpoints")
    assert saved is not None and not notes and saved.updates == 3


def test_a_signal_to_one_process_stops_all(sounds: Path, tmp_path: Path) -> None:
    codes, said = together(2, tmp_path, pretrain_arguments(sounds, tmp_path / "run", *EXACT), 1, 5, "SIGUSR1")
    assert codes == [75, 75], said
    where = f"after update 5/12, saved in {tmp_path / 'run'} (the same command with --resume goes on)"
    assert said[0].strip().splitlines()[-1] == f"stopped: stopped by another process {where}"
    assert said[1].strip().splitlines()[-1] == f"stopped: stopped by SIGUSR1 {where}"


def test_a_full_disk_is_everyones(sounds: Path, tmp_path: Path) -> None:
    codes, said = together(2, tmp_path, pretrain_arguments(sounds, tmp_path / "run", *EXACT), 0, 0, "disk full")
    assert codes == [4, 4], said
    for text in said:
        assert text.strip().splitlines()[-1] == (
            f"error: cannot save {tmp_path / 'run/checkpoints/step-00000003'}: the disk is full; "
            "there is no earlier one "
            "(free some space, then resume with --resume)"
        )


def test_data_that_cannot_be_used_are_one_process_s_to_explain(sounds: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "sounds", tmp_path / "run"
    shutil.copytree(sounds, data)
    for path in data.glob("*.wav"):
        path.write_bytes(b"RIFF")
    codes, said = together(2, tmp_path, pretrain_arguments(data, out, *EXACT, "data.max_bad=1.0"))
    assert codes == [3, 1], said
    assert [text.strip().splitlines()[-1] for text in said] == [
        f"error: none of the 24 items can be used (see {out / 'bad_files.csv'})",
        "error: process 1 of 2 lost process 0: it froze no data "
        "(that one's message says why; --resume goes on from the last checkpoint)",
    ]


def test_bad_items_of_every_process_are_listed(sounds: Path, tmp_path: Path) -> None:
    data = tmp_path / "sounds"
    shutil.copytree(sounds, data)
    for name in ("003", "010", "017", "020"):  # a good header, then no numbers: found when it is decoded
        soundfile.write(data / f"{name}.wav", np.full(8000, np.nan, np.float32), 8000, subtype="FLOAT")
    codes, said = together(2, tmp_path, pretrain_arguments(data, tmp_path / "run", *EXACT, "data.max_bad=0.5"))
    assert codes == [0, 0], said
    lines = (tmp_path / "run/bad_files.csv").read_text().splitlines()
    assert sorted(line.split(",")[0] for line in lines[1:]) == ["003", "010", "017", "020"]
    assert not list((tmp_path / "run").glob("bad_files-*"))


def test_folds_of_two_processes_are_those_of_one(tmp_path: Path) -> None:
    """Each fold is a run of the same group, which ends with the last; the first process writes and speaks."""
    sounds = write_sounds(tmp_path / "sounds", items=12)
    rows = [f"sounds/{i:03d}.wav,{'ab'[i % 2]},{1 + i % 3}" for i in range(12)]
    (tmp_path / "folds.csv").write_text("\n".join(["audio,label,fold", *rows]))
    small = ["backbone.dim=8", "backbone.layers=1", "backbone.ff=8", "frontend.seconds=0.5", "frontend.mixup=0",
             "data.batch_size=4", "train.epochs=2"]  # fmt: skip
    changes = [word for change in small for word in ("--set", change)]

    def arguments(out: str) -> list[str]:
        where = ["--data", str(tmp_path / "folds.csv"), "--out", str(tmp_path / out)]
        return ["finetune", "tiny/6k-esc50", *where, "--kfold", "--workers", "0", "--device", "cpu", *changes]

    assert sounds.is_dir() and avssl(tmp_path / "logs", *arguments("one")).code == 0
    codes, said = together(2, tmp_path, arguments("two"))
    assert codes == [0, 0], said
    assert "== fold 3 of 3" in said[0] and "done in" in said[0] and not said[1].strip(), said[1]
    one, two = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("one", "two"))
    assert one["per_fold"].keys() == two["per_fold"].keys() == {"1", "2", "3"}
    for fold, metrics in one["per_fold"].items():
        whole = {k: v for k, v in metrics.items() if v is not None}
        assert {k: two["per_fold"][fold][k] for k in whole} == pytest.approx(whole, rel=1e-4), fold
    code, again = together(2, tmp_path, [*arguments("two"), "--resume"])
    assert code == [0, 0] and again[0].count("is finished already") == 3
