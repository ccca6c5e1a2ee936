"""What a user is told when a run cannot begin, go on or end, word for word; each message by its real cause."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from messages import says
from runs import SMALL, avssl, pretrain_arguments
from safetensors.torch import load_file, save_file

from avssl.data.clip import Row, Waveform
from avssl.data.manifest import read_rows
from avssl.errors import AvsslError, CheckpointError, DataError, UsageError
from avssl.recipe import Pipeline, Recipe, Stage, load_recipe
from avssl.training import checkpoint, pipeline, run, setup
from avssl.training.distributed import World
from avssl.training.setup import Machine, build_run, plan_data

CPU = torch.device("cpu")


def recipe(*overrides: str, name: str = "tiny/masked") -> Recipe:
    loaded = load_recipe(name, [*(SMALL if name == "tiny/masked" else ()), "train.updates=12", *overrides])
    assert isinstance(loaded, Recipe)
    return loaded


def rows_of(sounds: Path, **changes: Any) -> list[Row]:
    return [dataclasses.replace(r, **changes) for r in read_rows(str(sounds))]


def fine(*overrides: str) -> Recipe:
    return recipe("data.batch_size=8", *overrides, name="tiny/6k-esc10")


# -- the machine ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "text"), [
    ("toaster", "--device 'toaster' is no device (cpu, cuda, cuda:1 or mps)"),
    ("cuda:7", "--device cuda:7: this machine has 0 CUDA devices (--device cpu; see `avssl doctor`)"),
    ("mps", "--device mps: this machine has none (--device cpu; see `avssl doctor`)"),
    ("meta", "--device meta is not supported (cpu, cuda or mps)"),
])  # fmt: skip
def test_devices(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with says(UsageError, text):
        setup.pick_device(name)


def test_more_processes_than_items() -> None:
    with says(DataError, "3 items cannot be shared by 4 processes (use fewer processes)"):
        setup.fitted_batch(recipe(), 3, World(0, 4))
    with says(UsageError, "data.batch_size 8 is not a multiple of the 3 processes (--set data.batch_size=6)"):
        setup.fitted_batch(recipe(), 30, World(0, 3))


def test_a_small_data_set_is_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    assert setup.fitted_batch(recipe(), 5, World()) == 5
    assert capsys.readouterr().err == "note: only 5 items: batches of 5 instead of 8\n"


# -- the data ---------------------------------------------------------------------------------------------------------
def test_rows_that_cannot_be_trained_on(sounds: Path) -> None:
    rows = rows_of(sounds)
    with says(DataError, "no row has the split 'trian' (the splits are ['test', 'train'])"):
        plan_data(recipe("data.split=trian"), [*rows_of(sounds, split="train"), *rows_of(sounds, split="test")])
    with says(DataError, "there is nothing to train on (give rows of split 'train', or without a split)"):
        plan_data(recipe(), rows_of(sounds, split="test"))
    one = dataclasses.replace(rows[0], labels=("dog",))
    with says(DataError, "001: no label (23 of 24 rows have none) (label them, or leave them out of the manifest)"):
        plan_data(fine(), [one, *rows[1:]])
    with says(DataError, "data.per_class chooses by label, and no item has one (label them)"):
        plan_data(recipe("data.per_class=2"), rows)
    with says(UsageError, "--fold 4: the data have the folds [1, 2] (give a manifest with a fold column)"):
        run.rows_of_fold([dataclasses.replace(r, fold=1 + i % 2) for i, r in enumerate(rows)], recipe(), 4)


def test_classes_that_do_not_fit(sounds: Path, tmp_path: Path) -> None:
    rows = [dataclasses.replace(r, labels=(f"class {i % 3}",)) for i, r in enumerate(rows_of(sounds))]
    loaded = fine("loss.classes=10")
    plan, _ = plan_data(loaded, rows)
    with says(DataError, "loss.classes is 10, the labels have 3 classes (leave loss.classes at 0)"):
        build_run(loaded, plan, tmp_path, World(), CPU, Machine(workers=0))


def test_everything_frozen(sounds: Path, tmp_path: Path) -> None:
    loaded = recipe('optim.frozen=["*"]')
    plan, _ = plan_data(loaded, rows_of(sounds))
    with says(UsageError, "nothing is left to train (see optim.freeze and optim.frozen)"):
        build_run(loaded, plan, tmp_path, World(), CPU, Machine(workers=0))


def test_nothing_that_can_be_used(sounds: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "sounds", tmp_path / "run"
    shutil.copytree(sounds, data)
    for path in data.glob("*.wav"):
        path.write_bytes(b"RIFF")
    ended = avssl(tmp_path / "logs", *pretrain_arguments(data, out, "data.max_bad=1.0"))
    assert (ended.code, ended.last) == (
        3, f"error: none of the 24 items can be used (see {out / 'bad_files.csv'})")  # fmt: skip


def test_items_that_lack_a_modality_are_left_out_aloud(
    sounds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*rows_of(sounds), Row(id="t", parts={"text": "a bird"})]
    plan = run._plan(recipe(), rows, tmp_path, False, Machine(workers=0), World(), None, {})
    note = f"note: 1 of 25 items lack a modality or a label and are left out; see {tmp_path / 'bad_files.csv'}\n"
    assert capsys.readouterr().err == note and len(plan.train) == 24


def test_many_files_without_a_scan(
    sounds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "MANY", 10)
    run.look(rows_of(sounds), Machine(workers=0))
    assert capsys.readouterr().err == (
        "note: looking at 24 files; `avssl data scan` writes a manifest that saves this\n")  # fmt: skip


def test_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avssl.data import decode, items
    from avssl.data.clip import AudioRequest, Clip, Limits, Request

    row = Row(id="a", parts={"audio": "a.wav"})
    text = "no item has vision (`avssl data scan` shows what they have; choose a backbone that reads it)"
    with says(DataError, text):
        items.usable([row], {"vision"})
    with says(DataError, "a: has no vision (leave it out of the manifest)"):
        items.decode_clip(row, Request({"vision": None}), Limits())  # type: ignore[dict-item]
    request = Request({"audio": AudioRequest(0.0, None)})
    monkeypatch.setattr(decode, "decode_audio", lambda *a, **k: Waveform(np.zeros((1, 0), np.float32), 8000))
    with says(DataError, "a.wav: holds no samples (remove the file)"):
        items.decode_clip(row, request, Limits())

    def broken(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr(decode, "decode_audio", broken)
    text = "a.wav: the audio decoder failed: ZeroDivisionError: of its own (mend or remove the file)"
    with says(DataError, text):
        items.decode_clip(row, request, Limits())
    from avssl.batch import item

    frontend = types.SimpleNamespace(item=lambda clips, rng: item("a", 0, None, audio=torch.tensor([1.0, torch.nan])))
    with says(DataError, "a: audio has values that are not finite (mend or remove the file)"):
        items.made_by(frontend, [Clip(id="a", parts={}, row=row)], None, 0)  # type: ignore[arg-type]


def test_workers_that_die_outside_of_any_item() -> None:
    from avssl.data.workers import WorkerPool

    text = "data workers keep dying outside of any item (exit 3) (is there enough memory? --workers 0 shows more)"
    with WorkerPool(lambda keys, blamed, hold: os._exit(3), 1) as pool, says(AvsslError, text):
        list(pool.map([[1]]))


# -- the run directory --------------------------------------------------------------------------------------------------
def test_an_output_that_cannot_be_a_directory(sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = avssl(tmp_path / "logs", *pretrain_arguments(sounds, tmp_path / "file" / "run"))
    assert (ended.code, ended.last) == (
        2, f"error: --out {tmp_path / 'file' / 'run'}: Not a directory (choose a directory that can be written)")  # fmt: skip


def test_a_full_disk_before_the_first_checkpoint(sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run, "write_rows", refuse)
    out = tmp_path / "run"
    with says(
        CheckpointError, f"cannot write to {out}: No space left on device (free some space, then resume with --resume)"
    ):
        run.pretrain(recipe(), str(sounds), out, machine=Machine(device="cpu", workers=0))


def test_overrides_of_a_loaded_recipe_are_refused_not_dropped(tmp_path: Path) -> None:
    text = "tiny/masked is loaded already: it takes no overrides (give them to load_recipe)"
    with says(UsageError, text):
        run.pretrain(recipe(), [], tmp_path / "run", overrides=["optim.lr=1"])
    with says(UsageError, text):
        run.finetune(recipe(), None, [], tmp_path / "run", overrides=["optim.lr=1"])


def test_a_pipeline_where_one_run_is_meant(tmp_path: Path) -> None:
    name = "beats/iterations-plus"
    stages = ", ".join(dict.fromkeys(stage.recipe for stage in load_recipe(name).stages))
    text = f"{name} is a pipeline (give the recipe of one of its stages: {stages})"
    with says(UsageError, text):
        run.pretrain(name, [], tmp_path / "run")
    with says(UsageError, text):
        run.finetune(name, None, [], tmp_path / "run")
    with says(UsageError, text):
        pipeline.run_folds(name, None, [], tmp_path / "run")


def test_other_data_on_resume(finished: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "checksums.json").unlink()
    ended = avssl(tmp_path / "logs", *pretrain_arguments(tmp_path, out, "train.save_every=3", resume=True))
    assert (ended.code, ended.last) == (
        2,
        f"error: {out} was started on {sounds}, --data is {tmp_path} "
        "(resume with the same data, or start a new run with --init)",
    )


def test_a_recipe_that_ends_earlier(finished: Path, sounds: Path) -> None:
    saved, _ = checkpoint.newest(finished / "checkpoints")
    assert saved is not None
    loaded = recipe()
    made = build_run(loaded, plan_data(loaded, rows_of(sounds))[0], finished, World(), CPU, Machine(workers=0))
    made.total = 6
    fix = "raise train.updates or train.epochs, or use the recipe that it was started with"
    with says(CheckpointError, f"{finished} is at update 12, the recipe ends at 6 ({fix})"):
        made.load(saved)


def test_no_such_validation_metric(sounds: Path, tmp_path: Path) -> None:
    lines = [{"id": p.stem, "audio": str(p), "split": "val" if i < 4 else "train"}
             for i, p in enumerate(sorted(sounds.glob("*.wav")))]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    arguments = pretrain_arguments(tmp_path / "data.jsonl", tmp_path / "run", "train.best=accuracy", updates=2)
    ended = avssl(tmp_path / "logs", *arguments)
    assert (ended.code, ended.last) == (
        2, "error: train.best = 'accuracy' is no validation metric (one of loss, frames)")  # fmt: skip


def test_incomplete_checkpoints(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "step-00000012"
    shutil.copytree(checkpoint.steps(finished / "checkpoints")[-1], path)
    old = "delete it; an older one will be used"
    (path / "checksums.json").write_text("[]")
    why = "checksums.json and state.json do not belong together"
    with says(CheckpointError, f"{path}: incomplete or damaged ({why}) ({old})"):
        checkpoint.read(path)
    (path / "checksums.json").unlink()
    why = f"[Errno 2] No such file or directory: '{path / 'checksums.json'}'"
    with says(CheckpointError, f"{path}: incomplete or damaged ({why}) ({old})"):
        checkpoint.read(path)


def test_two_that_take_the_lock_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from avssl.training.lock import RunLock

    def lost(*arguments: Any) -> None:
        raise FileExistsError

    monkeypatch.setattr(os, "link", lost)
    text = f"{tmp_path / 'run.lock'}: another process is just taking the lock (is the same command running twice?)"
    with says(UsageError, text), RunLock(tmp_path):
        pass


# -- runs of runs -------------------------------------------------------------------------------------------------------
def test_pipelines(sounds: Path, tmp_path: Path) -> None:
    one = Stage(name="one", recipe="tiny/masked", inputs={"init": "zero"})
    out = tmp_path / "out"
    with says(UsageError, "p: two stages have one name (rename one)"):
        pipeline.run_pipeline(Pipeline(name="p", stages=(one, one)), str(sounds), out)
    text = "stage one: input init names 'zero', which is no earlier stage (one of none: it is the first)"
    with says(UsageError, text):
        pipeline.run_pipeline(Pipeline(name="p", stages=(one,)), str(sounds), out)
    good = Stage(name="one", recipe="tiny/masked")
    unlabelled = Stage(name="two", recipe="tiny/6k-esc10", inputs={"from": "one"})
    text = "stage two: 000: no label (24 of 24 rows have none) (label them, or leave them out of the manifest)"
    with says(DataError, text):  # before the first stage runs
        pipeline.run_pipeline(Pipeline(name="p", stages=(good, unlabelled)), str(sounds), out)
    nested = Stage(name="one", recipe="beats/iterations-plus")
    stages = ", ".join(dict.fromkeys(stage.recipe for stage in load_recipe(nested.recipe).stages))
    with says(UsageError, f"stage one: {nested.recipe} is a pipeline (give the recipe of one of its stages: {stages})"):
        pipeline.run_pipeline(Pipeline(name="p", stages=(nested,)), str(sounds), out)
    assert not out.exists()
    out.mkdir()
    (out / "file").touch()
    text = f"--out {out} exists already (add --resume to go on with that run, or choose another directory)"
    with says(UsageError, text):
        pipeline.run_pipeline(Pipeline(name="p", stages=(one,)), str(sounds), out)
    with says(UsageError, text):
        pipeline.run_folds("tiny/6k-esc10", None, str(sounds), out)
    with says(UsageError, "--kfold: the data have no folds (give a manifest with a fold column)"):
        pipeline.run_folds("tiny/6k-esc10", None, str(sounds), tmp_path / "other")


def test_no_process_to_launch() -> None:
    from avssl.launch import launch

    with says(UsageError, "-n 0: give at least one process (avssl launch -n 2 -- pretrain ...)"):
        launch(["pretrain"], 0)


# -- files of others ------------------------------------------------------------------------------------------------------
TRUST = "this is no checkpoint: do not trust its source"
REASONS = {  # pickles that are refused, and why
    "operation": (b"\x80\x02\x82\x01.", "an operation that no checkpoint needs"),
    "elements": (b"\x80\x02c__builtin__\nset\nK\x05\x85R.", "the elements of a int"),
    "call": (b"\x80\x02ctorch\nUntypedStorage\nK\x05\x85R.", "a call of <class 'torch.storage.UntypedStorage'>"),
    "object": (b"\x80\x02cbuiltins\ncomplex\n)\x81.", "an object of <class 'complex'>"),
    "items": (b"\x80\x02]K\x00K\x01s.", "items for a list"),
    "additems": (b"\x80\x04](K\x00\x90.", "elements for a list"),
    "state": (b"\x80\x02]}b.", "state for a list"),
    "codec": (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", "encoding 'rot13'"),
    "shape": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00K\x05K\x06tR.", "a tensor whose shape is none"),
}  # fmt: skip


def archive(path: Path, content: bytes) -> Path:
    torch.save({"w": torch.ones(2)}, path)
    with zipfile.ZipFile(path) as old:
        members = {m.filename: old.read(m) for m in old.infolist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, value in members.items():
            new.writestr(name, content if name.endswith("data.pkl") else value)
    return path


@pytest.mark.parametrize("name", sorted(REASONS))
def test_pickles(name: str, tmp_path: Path) -> None:
    from avssl.safeload import load_torch

    content, reason = REASONS[name]
    path = archive(tmp_path / "x.pt", content)
    fix = "download it again, or name its format with --format"
    with says(CheckpointError, f"{path}: not a readable checkpoint: UnpicklingError: {reason} ({fix})"):
        load_torch(path)


def test_checkpoint_files(tmp_path: Path) -> None:
    from avssl.safeload import load_safetensors, load_torch, plain

    path = tmp_path / "x.pt"
    with says(CheckpointError, f"{path}: no such file (give the path of a checkpoint)"):
        load_torch(path)
    with says(CheckpointError, f"{path}: no such file (give the path of a model)"):
        load_safetensors(path)
    path.write_bytes(b"")
    with says(CheckpointError, f"{path}: the file is empty (download it again)"):
        load_torch(path)
    torch.save({"w": torch.ones(500)}, path)
    content = path.read_bytes()
    at = content.find(b"PK\x01\x02")
    path.write_bytes(content[:at] + b"PK\x01\x03" + content[at + 4 :])
    with says(CheckpointError, f"{path}: damaged archive: Bad magic number for central directory (download it again)"):
        load_torch(path)
    cycle: list[Any] = []
    cycle.append(cycle)
    with says(CheckpointError, f"its objects contain themselves, or are nested too deeply ({TRUST})"):
        plain(cycle)


def test_tensors_larger_than_their_file(tmp_path: Path) -> None:
    """torch's own reader enlarges a storage that a tensor reaches beyond."""
    from avssl import safeload

    path = tmp_path / "x.pt"
    torch.save({"w": torch.ones(2)}, path)
    size = safeload._look_inside(path)[0]
    with says(CheckpointError, f"{path}: its tensors take 40000 bytes, the file has {size} (download it again)"):
        safeload._check_sizes(path, {"w": torch.ones(10_000)}, size)


# -- models -----------------------------------------------------------------------------------------------------------
def damaged(finished: Path, target: Path, how: Callable[[Path], None]) -> Path:
    shutil.copytree(finished, target)
    how(target)
    return target


def edit_recipe(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / "recipe.toml").read_text()
        assert old in text
        (folder / "recipe.toml").write_text(text.replace(old, new))

    return edit


def test_model_directories(finished: Path, tmp_path: Path) -> None:
    from avssl.model import open_model, read_initial

    copy, path = "restore it from a copy", tmp_path / "nothing"
    with says(CheckpointError, f"{path}: no such model (give a run directory, or a checkpoint file with --format)"):
        open_model(path)
    (tmp_path / "pipe" / "stages").mkdir(parents=True)
    path = tmp_path / "pipe"
    (tmp_path / "folds" / "fold-1").mkdir(parents=True)
    for opened in (open_model, read_initial):
        with says(CheckpointError, f"{path} is a pipeline (give one of the runs in its stages/ folder)"):
            opened(path)
        text = f"{tmp_path / 'folds'} holds one run for each fold (give one of them, e.g. {tmp_path / 'folds/fold-1'})"
        with says(CheckpointError, text):
            opened(tmp_path / "folds")
    path = damaged(finished, tmp_path / "a", lambda folder: (folder / "recipe.toml").write_text(
        '[backbone]\nname = "tiny"\n[loss]\nname = "tiny_masked"\n[[frontend]]\n') and None)  # fmt: skip
    with says(CheckpointError, f"{path / 'recipe.toml'}: frontend is no table ({copy})"):
        open_model(path)
    path = damaged(finished, tmp_path / "b", lambda folder: (folder / "checksums.json").write_text("{") and None)
    with says(CheckpointError, f"{path}: checksums.json is missing or damaged ({copy})"):
        open_model(path)

    def change(folder: Path) -> None:
        tensors = load_file(folder / "weights.safetensors")
        save_file({k: v + 1 for k, v in tensors.items()}, folder / "weights.safetensors")

    path = damaged(finished, tmp_path / "c", change)
    text = f"{path / 'weights.safetensors'} is damaged: its checksum differs from checksums.json ({copy})"
    with says(CheckpointError, text):
        open_model(path)
    path = damaged(finished, tmp_path / "d", lambda folder: (folder / "weights.safetensors").unlink())
    with says(CheckpointError, f"{path} has no weights.safetensors: the run is not finished (resume it first)"):
        read_initial(path)
    fix = "--set backbone.name=tiny, or start from another model"
    with says(CheckpointError, f"{finished} holds a tiny backbone, the recipe builds tiny_cnn ({fix})"):
        read_initial(finished).into_backbone(None, "tiny_cnn")  # type: ignore[arg-type]


def test_what_a_start_from_another_model_changes_is_said(finished: Path, sounds: Path, tmp_path: Path) -> None:
    def notes(out: Path, *changes: str, init: Path) -> list[str]:
        words = pretrain_arguments(sounds, out, *changes, updates=1)
        ended = avssl(tmp_path / "logs", *words, "--init", str(init))
        assert ended.code == 0, ended.stderr
        return [line for line in ended.stderr.splitlines() if line.startswith("note: ")]

    assert notes(tmp_path / "same", init=finished) == []
    text = f"note: the recipe differs from {finished}: backbone.activation 'gelu' -> 'relu'"
    assert notes(tmp_path / "relu", "backbone.activation=relu", init=finished) == [text]
    objective = ("loss.name=data2vec", "loss.targets={top_k=1}")
    first = tmp_path / "first"
    assert notes(first, *objective, init=finished) == []
    text = f"note: not loaded, being of other shapes in {first}: heads.audio.0.bias, heads.audio.0.weight"
    assert notes(tmp_path / "deeper", *objective, "loss.head_layers=2", init=first) == [text]


def test_a_head_of_other_classes_starts_afresh_and_says_so(sounds: Path, tmp_path: Path) -> None:
    names = sorted(p.name for p in sounds.iterdir())
    tables = {"a": ("low", "high"), "b": ("near", "far")}
    for stem, classes in tables.items():
        lines = [f"{sounds / name},{classes[i % 2]}" for i, name in enumerate(names)]
        (tmp_path / f"{stem}.csv").write_text("\n".join(["audio,label", *lines]))
    sizes = ("dim=16", "layers=1", "heads=2", "ff=32")
    changes = (*(f"backbone.{s}" for s in sizes), "train.updates=1", "data.batch_size=8", "frontend.seconds=0.6")

    def notes(data: str, out: Path, *more: str) -> list[str]:
        words = ["finetune", "tiny/6k-esc10", "--data", str(tmp_path / f"{data}.csv"), "--out", str(out), *more]
        words += [word for change in changes for word in ("--set", change)]
        ended = avssl(tmp_path / "logs", *words, "--workers", "0", "--device", "cpu")
        assert ended.code == 0, ended.stderr
        return [line for line in ended.stderr.splitlines() if line.startswith("note: ")]

    first = tmp_path / "first"
    assert notes("a", first) == []
    assert notes("a", tmp_path / "again", "--from", str(first)) == []
    text = f"note: {first} was fine-tuned on other classes: the head starts afresh"
    assert notes("b", tmp_path / "other", "--from", str(first)) == [text]
