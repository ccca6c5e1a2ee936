"""What commands say when they end, well or not, word for word; each sentence by its real cause."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from media_files import tone, write_sound
from messages import says
from runs import avssl as run
from runs import pretrain_arguments
from safetensors.torch import save_file

from avssl.cli import main
from avssl.data.check import check_rows
from avssl.data.clip import Row
from avssl.embedding.encode import EmbedOptions, Encoder
from avssl.errors import CheckpointError, DataError, Exit, UsageError
from avssl.imports import import_checkpoint, load_strictly

Avssl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def avssl(toy_plugin: Path, capsys: pytest.CaptureFixture[str]) -> Avssl:
    """Runs a command in this process; gives (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


STAGES = "beats/esc10-iter1, beats/esc10-tokenizer, beats/esc10-iter"
A_PIPELINE = f"error: beats/esc10 is a pipeline (give the recipe of one of its stages: {STAGES})\n"


# -- data -------------------------------------------------------------------------------------------------------------
def test_data_commands(avssl: Avssl, tmp_path: Path) -> None:
    data, junk = tmp_path / "in", tmp_path / "junk.wav"
    for n in range(4):
        write_sound(data / f"{n}.wav", tone(0.2, hertz=200.0 + 50 * n))
    (data / "groups.csv").write_text("path,group\n" + "".join(f"{n}.wav,{n // 2}\n" for n in range(4)))
    junk.write_bytes(b"no sound")
    code, _, err = avssl("data", "scan", junk)
    assert (code, err) == (3, f"error: {junk}: none of its items can be used (see the reasons above)\n")
    assert avssl("data", "check", data)[::2] == (0, "comparing\n")
    shares = ["--share", "a=0.5", "--share", "b=0.5", "--no-content"]
    code, _, err = avssl("data", "split", data / "groups.csv", "--out", tmp_path / "s.csv", *shares)
    assert (code, err) == (0, "4 items in 2 groups: what shares a group, a file or its content stays together\n")
    code, out, err = avssl("data", "prepare", data, "--out", tmp_path / "p")
    assert (code, out, err) == (0, f"{tmp_path / 'p/manifest.parquet'}\n", "4 items prepared, 0 problems\n")
    write_sound(data / "5.wav", tone(0.1)[:, :0])
    code, _, err = avssl("data", "prepare", data, "--out", tmp_path / "p")
    assert (code, err) == (0, f"4 items prepared, 1 problem: see {tmp_path / 'p/bad_files.csv'}\n")
    code, _, err = avssl("data", "prepare", data, "--out", data)
    assert (code, err) == (2, f"error: --out {data} is the data folder itself (choose another folder)\n")
    for command in ("scan", "split"):
        where = tmp_path / "gone" / "m.csv"
        code, _, err = avssl("data", command, data, "--out", where)
        text = f"error: {where}: the folder {where.parent} does not exist (mkdir -p {where.parent})\n"
        assert (code, err) == (2, text)
    code, _, err = avssl("data", "stats", "beats/esc10", "--data", data)
    assert (code, err) == (2, A_PIPELINE)
    code, out, err = avssl("data", "stats", "cav_mae/tiny", "--data", data, "--limit", 2, "--json")
    found = json.loads(out)
    code, out, err = avssl("data", "stats", "cav_mae/tiny", "--data", data, "--limit", 2)
    assert out == f"--set 'frontend.mean={found['mean']:.4f}'\n--set 'frontend.std={found['std']:.4f}'\n"
    assert (code, err) == (0, f"audio: 2 items, {found['values']:,} values\n")


def test_windows_of_one_file_in_two_splits() -> None:
    parts = {"audio": "/a.wav"}
    rows = [Row("a", parts, split="train", end=1.0), Row("b", parts, split="test", start=1.0)]
    (found,) = check_rows(rows)
    assert (found.kind, found.message) == ("shared file", "/a.wav is in test, train, in windows that do not overlap")


# -- models -----------------------------------------------------------------------------------------------------------
def test_embed(avssl: Avssl, toy_path: Path, toy_model: Any, tmp_path: Path) -> None:
    manifest = toy.write_media(tmp_path / "media", items=3)
    out = tmp_path / "x.npz"
    code, _, err = avssl("embed", manifest, "--model", toy_path, "--out", out, "--stream", "audio")
    last = f"next: `avssl search {out} QUERY` with an id, a file or a text\n"
    assert (code, err) == (0, f"3 clips in {out} (audio 16-dimensional)\n{last}")
    for path in ("0001.wav", "0001.png"):
        (manifest.parent / path).write_bytes(b"junk")
    code, _, err = avssl("embed", manifest, "--model", toy_path, "--out", tmp_path / "y.npz", "--stream", "audio")
    failed = f"1 clip could not be embedded: {tmp_path / 'bad_files.csv'}"
    last = f"next: `avssl search {tmp_path / 'y.npz'} QUERY` with an id, a file or a text"
    assert (code, err) == (0, f"2 clips in {tmp_path / 'y.npz'} (audio 16-dimensional)\n{failed}\n{last}\n")
    why = f"{manifest.parent / '0001.wav'}: cannot be read as media: Invalid data found when processing input"
    see = f"(see {tmp_path / 'bad_files.csv'})\n"
    arguments = ["embed", manifest, "--model", toy_path, "--out", tmp_path / "z.npz", "--stream", "audio"]
    code, _, err = avssl(*arguments, "--max-bad", 0.1)
    assert (code, err) == (3, f"error: 1 of 3 items are bad, more than --max-bad allows; the first: {why} {see}")
    code, _, err = avssl("embed", manifest.parent / "0001.wav", *arguments[2:])
    assert (code, err) == (3, f"error: no item could be embedded; the first: {why} {see}")
    code, _, err = avssl(*arguments, "--on-bad", "stop")
    assert (code, err) == (2, "error: --on-bad stop (skip or fail)\n")
    code, _, err = avssl("embed", manifest, manifest, *arguments[2:])
    assert (code, err) == (3, f"error: {manifest} is given twice (name each path once)\n")
    with says(CheckpointError, f"{toy_path} has no classification head (fine-tune it first)"):
        toy_model.logits(None)


def test_layers_and_numbers_of_an_embedding(toy_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with says(UsageError, "layer 2 of 2 (give -2 to 1)"):
        Encoder(toy_model, EmbedOptions(layer=2, pooling="mean"))
    monkeypatch.setattr(type(toy_model.backbone), "blocks", ())
    with says(UsageError, "layer 0 of 0 (this backbone has no layers to choose from)"):
        Encoder(toy_model, EmbedOptions(layer=0, pooling="mean"))
    from avssl.backbone import Features
    from avssl.batch import item

    batch = item("a", 0, None, audio=torch.zeros(800))
    encoder = Encoder(toy_model, EmbedOptions(streams=("audio",)))
    broken = Features({}, {"audio": torch.full((1, 16), torch.nan)}, {}, {}, {})
    encoder.model = types.SimpleNamespace(
        device="cpu", frontend=lambda b: b, backbone=lambda b, **o: broken, autocast=toy_model.autocast
    )
    with says(DataError, "a: its audio embedding is not finite (the weights or the input are damaged)"):
        encoder(batch)
    encoder.options, encoder.model.autocast = (
        EmbedOptions(streams=("audio",), precision="fp16"), lambda p: toy_model.autocast("fp32"))  # fmt: skip
    with says(DataError, "a: its audio embedding is not finite (--precision fp32 or bf16)"):
        encoder(batch)


def test_import(avssl: Avssl, tmp_path: Path) -> None:
    code, _, err = avssl("import", "x.pt")
    assert (code, err) == (2, "error: import needs a checkpoint and --out (avssl import FILE --out MODEL)\n")
    junk = tmp_path / "x.bin"
    junk.write_bytes(b"no checkpoint")
    code, _, err = avssl("import", junk, "--out", tmp_path / "m")
    fix = "name the format: --format NAME; see `avssl import --list`"
    assert (code, err) == (4, f"error: {junk}: no registered format recognises it ({fix})\n")
    os.mkfifo(tmp_path / "pipe.pt")
    with says(CheckpointError, f"{tmp_path / 'pipe.pt'}: is no regular file (a pipe, socket or device) "
                               "(copy its content to a file)"):  # fmt: skip
        import_checkpoint(tmp_path / "pipe.pt")
    from test_beats_failures import official

    code, out, err = avssl("import", official(tmp_path / "official.pt"), "--out", tmp_path / "m")
    assert (code, err) == (0, f"the model is {tmp_path / 'm'}\n") and "beats" in out


def test_tensors_that_do_not_fit() -> None:
    layer, fix = torch.nn.Linear(2, 3), "is it a checkpoint of this system and size?"
    own = layer.state_dict()
    for tensors, text in (
        ({}, "m misses bias, weight"),
        ({**own, **{f"x{n}": own["bias"] for n in range(5)}}, "m has unknown x0, x1, x2 and 2 more"),
        ({**own, "bias": torch.zeros(4)}, "m has other shapes: bias (4,) for (3,)"),
    ):
        with says(CheckpointError, f"{text} ({fix})"):
            load_strictly(layer, tensors, "m")


def test_a_damaged_safetensors_file(tmp_path: Path) -> None:
    from avssl.safeload import load_safetensors

    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(4)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    why = "Error while deserializing header: incomplete metadata, file not fully covered"
    with says(CheckpointError, f"{path}: damaged safetensors file: {why} (restore it from a copy)"):
        load_safetensors(path)


# -- training ---------------------------------------------------------------------------------------------------------
def test_training_commands(avssl: Avssl, tmp_path: Path) -> None:
    data = write_sound(tmp_path / "in" / "a.wav", tone(1.0)).parent
    places = ["--data", data, "--out", tmp_path / "run"]
    code, _, err = avssl("pretrain", "beats/esc10", *places, "--dry-run")
    assert (code, err) == (2, A_PIPELINE)
    code, _, err = avssl("pretrain", "tiny/6k-esc10", *places)
    fix = "use `avssl finetune tiny/6k-esc10`"
    assert (code, err) == (2, f"error: tiny/6k-esc10 trains on labels: its loss is 'tiny_classify' ({fix})\n")
    code, _, err = avssl("pretrain", "tiny/masked", *places, "--option", "heads=4")
    assert (code, err) == (2, "error: --format and --option describe a model, and none is given (leave them out)\n")


def test_the_last_words_of_a_run(sounds: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "sounds", tmp_path / "run"
    shutil.copytree(sounds, data)
    (data / "003.wav").write_bytes(b"RIFF")
    ended = run(tmp_path / "logs", *pretrain_arguments(data, out, updates=2))
    done, bad, last = ended.stderr.splitlines()[-3:]
    assert ended.code == 0 and re.fullmatch(r"done in \d:\d\d: frames [\d.]+", done)
    assert bad == f"1 item could not be used: {out / 'bad_files.csv'}"
    assert last == (
        f"the model is {out}; next: `avssl report {out}`, `avssl evaluate --model {out} --task ...`, "
        f"`avssl embed FILES --model {out}`"
    )


def test_runs_of_several_runs_say_where_they_are(sounds: Path, tmp_path: Path) -> None:
    rows = [f"{p},{('cat', 'dog')[n % 2]},{1 + n // 2 % 2}" for n, p in enumerate(sorted(sounds.glob("*.wav")))]
    (tmp_path / "m.csv").write_text("path,label,fold\n" + "\n".join(rows) + "\n")
    out = tmp_path / "folds"
    words = ["--data", str(tmp_path / "m.csv"), "--out", str(out), "--workers", "0", "--device", "cpu",
             *(w for s in ("train.epochs=1", "data.batch_size=4", "frontend.seconds=0.5") for w in ("--set", s))]  # fmt: skip
    ended = run(tmp_path / "logs", "finetune", "tiny/6k-esc10", "--kfold", *words)
    assert ended.code == 0, ended.stderr
    assert [x for x in ended.stderr.splitlines() if x.startswith("== ")] == ["== fold 1 of 2", "== fold 2 of 2"]
    model = out / "fold-1"
    assert ended.last == (
        f"the model of the first fold is {model}; next: `avssl report {model}`, "
        f"`avssl evaluate --model {model} --task ...`, `avssl predict FILES --model {model}`"
    )
    (tmp_path / "two.toml").write_text(
        'name = "two"\nstage = "pipeline"\n[[stages]]\nname = "one"\nrecipe = "tiny/masked"\n[stages.overrides]\n'
        '"train.updates" = 1\n"data.batch_size" = 4\n"frontend.seconds" = 0.5\n'
    )
    ended = run(tmp_path / "logs", "pretrain", str(tmp_path / "two.toml"), *words[:2], "--out", str(tmp_path / "two"))
    assert ended.code == 0, ended.stderr
    assert ended.stderr.splitlines()[0] == "== stage one (tiny/masked)"
    model = tmp_path / "two/stages/one"
    assert ended.last == (
        f"the model of the last stage is {model}; next: `avssl report {model}`, "
        f"`avssl evaluate --model {model} --task ...`, `avssl embed FILES --model {model}`"
    )


def test_signals_between_folds(monkeypatch: pytest.MonkeyPatch, sounds: Path, tmp_path: Path) -> None:
    import dataclasses
    import signal

    from avssl.data.manifest import read_rows
    from avssl.errors import Stopped
    from avssl.training import pipeline

    rows = [dataclasses.replace(r, fold=1 + n % 2, labels=("x",)) for n, r in enumerate(read_rows(str(sounds)))]

    def fit(*arguments: Any, **options: Any) -> dict[str, Any]:
        from avssl.training.signals import StopRequest

        with StopRequest() as stop:
            stop.busy = True
            signal.raise_signal(signal.SIGTERM)
        return {"validation": {}, "seconds": 0}

    monkeypatch.setattr(pipeline, "finetune", fit)
    with says(Stopped, "stopped by SIGTERM before fold 2 (the same command with --resume goes on)"):
        pipeline.run_folds("tiny/6k-esc10", None, rows, tmp_path / "out")


def test_a_step_that_is_not_reproduced(avssl: Avssl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"update": 3, "reproduced": False, "terms": {}, "gradients_not_finite": [], "clips_not_finite_alone": [],
             "clips": ["a"]}  # fmt: skip
    monkeypatch.setattr("avssl.training.replay.replay", lambda folder, rank: found)
    code, _, err = avssl("debug", "replay", tmp_path)
    assert (code, err) == (0, "it is not reproduced: every number is finite here\n")


# -- doctor -----------------------------------------------------------------------------------------------------------
def test_doctor_of_plugins_and_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    from avssl import doctor

    found = {f.name: f for f in doctor.plugins()}
    assert re.fullmatch(r"\d+ entries, avssl [\d.]+", found["plugin tiny"].value) and found["plugin tiny"].fix == ""
    monkeypatch.setattr("avssl.entries.resolve", lambda target: (_ for _ in ()).throw(ImportError(f"no {target}")))
    broken = {f.name: f for f in doctor.plugins()}["plugin tiny"]
    assert (broken.state, broken.value, broken.fix) == (
        "bad", "backbone tiny: ImportError: no avssl_tiny.backbone:Tiny", "install what avssl 0.1.0 needs")  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (2**30, 2**31))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "a GPU")

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(torch, "ones", refuse)
    gpu = {f.name: f for f in doctor.devices()}["cuda:0"]
    assert gpu == doctor.Finding(
        "cuda:0", "bad", "a GPU, 1 of 2 GiB free: RuntimeError: no kernel image is available",
        "install a torch built for this GPU: https://pytorch.org/get-started/locally")  # fmt: skip


# -- what the system refuses ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("number", "fix"), [
    (errno.ENOSPC, "free some space, or choose a place on another disk"),
    (errno.EROFS, "choose a place that can be written"),
    (errno.EACCES, "choose a place that can be written"),
    (errno.EIO, "the disk or the share fails: use another one"),
    (errno.EMFILE, "raise the limit on open files: ulimit -n 4096"),
    (errno.ENOENT, "was it removed meanwhile?"),
    (errno.ENAMETOOLONG, "choose a shorter name"),
    (errno.EISDIR, "check the path"),
])  # fmt: skip
def test_what_the_system_refuses_is_said_with_the_file(
    number: int, fix: str, avssl: Avssl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = write_sound(tmp_path / "in" / "a.wav", tone(0.1)).parent, tmp_path / "m.csv"

    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("avssl.files.sync", refuse)
    code, _, err = avssl("data", "scan", data, "--out", out)
    assert (code, err) == (Exit.USAGE, f"error: {out}: {os.strerror(number)} ({fix})\n")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


NO_ROOM = """
import contextlib, io, json, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
from avssl.cli import main
for line in sys.stdin:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try: main(json.loads(line))
        except SystemExit as end: code = end.code
    print(json.dumps([code, said.getvalue()]))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_in_every_command(toy_path: Path, toy_manifest: Path, tmp_path: Path) -> None:
    """A limit on the size of files does what a full disk does; in a process of its own."""
    import subprocess
    import sys

    model = toy.make_model(tmp_path / "classifier", ["a", "b"])
    toy.install(tmp_path / "plugin")
    commands = {
        "x.npz": ["embed", toy_manifest, "--model", toy_path],
        "x.safetensors": ["embed", toy_manifest, "--model", toy_path],
        "m.parquet": ["data", "split", toy_manifest],
        "p.json": ["predict", toy_manifest, "--model", model],
        "e.json": ["evaluate", "--data", toy_manifest, "--model", toy_path, "--task", "knn"],
    }
    lines = (json.dumps([*map(str, words), "--out", str(tmp_path / name)]) for name, words in commands.items())
    done = subprocess.run([sys.executable, "-c", NO_ROOM], input="\n".join(lines), text=True, capture_output=True,
                          env=toy.environment(tmp_path / "plugin"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, answer in zip(commands, done.stdout.splitlines(), strict=True):
        code, said = json.loads(answer)
        where = {"x.npz": ".x.npz.parts/", "x.safetensors": ".x.safetensors.parts/"}.get(name, name)
        last = said.strip().splitlines()[-1]
        assert code == 2 and last.startswith(f"error: {tmp_path / where}"), said
        assert last.endswith(": File too large (free some space, or choose a place on another disk)"), said
        assert not (tmp_path / name).exists() and not list(tmp_path.glob("*.tmp"))


def test_a_bug_of_ours_is_called_one(avssl: Avssl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("avssl.data.manifest.read_rows", broken)
    code, _, err = avssl("data", "show", tmp_path)
    hint = "(please report it; `avssl --debug ...` shows where)"
    assert (code, err) == (1, f"internal error: ZeroDivisionError: division by zero {hint}\n")
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "data", "show", str(tmp_path)])


def test_an_error_is_one_line_whatever_it_names(avssl: Avssl, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(
        json.dumps({"id": "a\nb", "audio": "x.wav"}) + "\n" + json.dumps({"id": "a\nb", "audio": "y.wav"})
    )
    code, _, err = avssl("data", "show", tmp_path / "m.jsonl")
    assert code == 3 and err.count("\n") == 1


def test_names_that_are_no_utf8_in_every_output(avssl: Avssl, toy_classifier: Path, tmp_path: Path) -> None:
    """JSON, tables and files take them; JSON gives them back."""
    raw = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    try:
        Path(raw).write_bytes(b"no sound")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    write_sound(tmp_path / "a.wav", tone(1.0, 8000), 8000)
    for command in (["data", "scan", tmp_path], ["predict", tmp_path, "--model", toy_classifier]):
        code, out, _ = avssl(*command, "--json")
        out.encode("utf-8")
        assert code == 0 and [
            b["path"] for b in {**json.loads(out)}.get("bad_files", json.loads(out).get("failed"))
        ] == [raw]
    code, _, _ = avssl("predict", tmp_path, "--model", toy_classifier, "--out", tmp_path / "p.json")
    assert code == 0 and json.loads((tmp_path / "p.json").read_text())["failed"][0]["path"] == raw


def test_a_warning_is_one_line(avssl: Avssl, monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    from avssl.cli import listing

    def warned(kind: str) -> list[str]:
        warnings.warn("half of the codes\n  are unused", UserWarning, stacklevel=1)
        return []

    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # restored after the test
    monkeypatch.setattr(listing, "print_table", lambda *rows: warned("table"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, _, err = avssl("losses")
    assert err == "warning: half of the codes are unused\n"
