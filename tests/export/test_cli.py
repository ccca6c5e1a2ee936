"""`avssl export` and `avssl classify` on a saved model and real files."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import torch
from export.models import RATE, clips

from avssl import load
from avssl.classify import Classifier
from avssl.cli import main
from avssl.cli.export import _made_up, spread
from avssl.data.targets import Codec
from avssl.errors import Exit
from avssl.model import build_backbone, build_frontend, build_loss, save_model
from avssl_data2vec.example import audio

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model/ and data/ with six labelled clips."""
    root = tmp_path_factory.mktemp("cli")
    tables = {
        "name": "t",
        "backbone": {"name": "tiny"},
        "frontend": {"seconds": 1.0},
        "loss": {"name": "tiny_classify", "classes": 3},
    }
    loss = build_loss(tables, build_backbone(tables))
    save_model(root / "model", loss, build_frontend(tables, root), tables, Codec("index", ("cat", "dog", "rain")))
    for i, wave in enumerate(clips(6).need("audio").x):
        path = root / "data" / ("cat", "dog", "rain")[i % 3] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave.numpy(), RATE, subtype="PCM_16")
    return root


def avssl(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return int(stopped.value.code)


def test_export_without_data_says_what_it_compared_on(folder, tmp_path, capsys):
    assert avssl("export", folder / "model", "--out", tmp_path / "x") == Exit.OK
    assert "made-up clip" in (said := capsys.readouterr().out) and "--data" in said
    report = json.loads((tmp_path / "x" / "report.json").read_text())
    assert report["test_clips"] == 1 and "made-up" in report["note"]
    assert report["files"][0]["max_logit_difference"] < 1e-4


def test_a_target_given_as_the_format_is_put_right(folder, tmp_path, capsys):
    assert avssl("export", folder / "model", "--out", tmp_path / "x", "--format", "onnx") == Exit.USAGE
    assert "--to onnx" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_export_writes_the_files_and_one_report(folder, tmp_path, capsys):
    code = avssl(
        "export",
        folder / "model",
        "--out",
        tmp_path / "x",
        "--to",
        "onnx",
        "--to",
        "onnx-int8",
        "--to",
        "tiny",
        "--data",
        folder / "data",
        "--json",
    )
    report = json.loads(capsys.readouterr().out)
    assert code == Exit.OK
    assert [f["target"] for f in report["files"]] == ["onnx", "onnx-int8"]
    assert report["test_clips"] == 6 and 0 <= report["accuracy_pytorch"] <= 1
    assert {"model.onnx", "model.int8.onnx", "tiny.safetensors", "tiny.json", "report.json", "run_onnx.py"} <= {
        p.name for p in (tmp_path / "x").iterdir()
    }
    assert avssl("export", folder / "model", "--out", tmp_path / "x") == Exit.USAGE
    assert "exists already" in capsys.readouterr().err


def test_int8_without_clips_is_refused_before_anything_is_written(folder, tmp_path, capsys):
    assert avssl("export", folder / "model", "--out", tmp_path / "x", "--to", "c") == Exit.USAGE
    assert "calibration" in capsys.readouterr().err and not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def sorted_by_class(folder):
    """A manifest of 30 rows sorted by class, with folds and splits."""
    rows = []
    for label in ("cat", "dog", "rain"):
        (file, *_) = sorted((folder / "data" / label).iterdir())
        for i in range(10):
            split = "test" if i in (0, 5) else "val" if i == 1 else "train"
            row = {"id": f"{label}{i}", "audio": str(file), "labels": [label], "fold": i % 5, "split": split}
            rows.append(json.dumps(row))
    path = folder / "sorted.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    "options, clips, said",
    [
        (
            ["--fold", "1"],
            (6, 24),
            "compared on all 6 clips of fold 1; int8 is calibrated on all 24 clips of the other",
        ),
        ([], (6, 21), "compared on all 6 clips of split test; int8 is calibrated on all 21 clips of split train"),
        (
            ["--test", "3", "--calibrate", "4"],
            (3, 4),
            "on 3 of 6 clips of split test; int8 is calibrated on 4 of 21 clips",
        ),
    ],
)
def test_the_report_says_what_the_accuracy_is_of(folder, sorted_by_class, tmp_path, capsys, options, clips, said):
    arguments = ["export", folder / "model", "--out", tmp_path / "x", "--data", sorted_by_class, *options]
    assert avssl(*arguments) == Exit.OK
    assert said in capsys.readouterr().out
    report = json.loads((tmp_path / "x" / "report.json").read_text())
    assert (report["test_clips"], report["calibration_clips"]) == clips and said in report["note"]
    assert "flattered" not in report["note"]


def test_without_folds_or_splits_the_report_says_that_the_clips_are_the_same(folder, tmp_path, capsys):
    assert avssl("export", folder / "model", "--out", tmp_path / "x", "--data", folder / "data") == Exit.OK
    said = capsys.readouterr().out
    assert "all 6 clips of all the data" in said and "same clips, perhaps those that the model was trained on" in said


def test_without_data_the_made_up_clip_is_as_long_as_the_model_hears():
    frontend = build_frontend({"backbone": {"name": "cav_mae"}, "frontend": {"modalities": ["audio"]}}, Path()).eval()
    clip = _made_up(SimpleNamespace(frontend=frontend))
    assert clip.need("audio").x.shape[1] == 16000 * 10.255


@pytest.mark.parametrize("inside", [True, False])
def test_export_of_data2vec_reads_recorded_sound_with_the_front_end_inside(folder, tmp_path, capsys, inside):
    tables = {**audio(tmp_path), "name": "d2v", "loss": {"name": "classify", "classes": 3}}
    loss = build_loss(tables, build_backbone(tables))
    save_model(tmp_path / "m", loss, build_frontend(tables, tmp_path), tables, Codec("index", ("cat", "dog", "rain")))
    option = "--frontend" if inside else "--no-frontend"
    arguments = ["export", tmp_path / "m", "--out", tmp_path / "x", "--data", folder / "data", option]
    assert avssl(*arguments) == Exit.OK, capsys.readouterr().err
    report = json.loads((tmp_path / "x" / "report.json").read_text())
    assert report["files"][0]["max_logit_difference"] < 1e-4 and not report["files"][0]["notes"]
    assert ("SOUND.wav" in (tmp_path / "x" / "run_onnx.py").read_text()) == inside
    wave = clips(2).need("audio").x[:1]
    if not inside:
        wave = (wave - wave.mean()) / (wave.var(correction=0) + 1e-5).sqrt()
    session = onnxruntime.InferenceSession(str(tmp_path / "x" / "model.onnx"), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"audio": wave.numpy()})
    (heard,) = Classifier(load(tmp_path / "m"), top=3).array(clips(2).need("audio").x[0].numpy(), RATE)
    share = torch.from_numpy(got[0]).softmax(0).tolist()
    assert dict(zip(("cat", "dog", "rain"), share, strict=True)) == pytest.approx(dict(heard.labels), abs=1e-4)


@pytest.mark.parametrize("count", [3, 4, 7, 160, 299, 300, 301])
def test_clips_are_chosen_from_all_of_the_data(count):
    rows = list(range(300))  # sorted by class, 100 each
    got = spread(rows, count)
    assert len(got) == len(set(got)) == min(count, 300) and {x // 100 for x in got} == {0, 1, 2}


@pytest.mark.parametrize(
    "targets, said",
    [
        (["tiny", "onxx"], "unknown target 'onxx'"),
        (["tiny", "c"], "int8 needs calibration clips"),
        (["onnx", "executorch"], "needs the package executorch"),
        (["onnx", "litert"], "needs the package litert-torch"),
    ],
)
def test_a_refused_target_leaves_nothing_behind(folder, tmp_path, capsys, monkeypatch, targets, said):
    """So that the corrected command finds its --out free."""
    found = importlib.util.find_spec
    hidden = {"executorch", "litert_torch", "ai_edge_torch"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else found(name, *a))
    wanted = [word for target in targets for word in ("--to", target)]
    assert avssl("export", folder / "model", "--out", tmp_path / "x", *wanted) == Exit.USAGE
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_failure_while_files_are_written_leaves_nothing_behind(folder, tmp_path, capsys, monkeypatch):
    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("avssl.export.exporter.write_text", full)
    assert avssl("export", folder / "model", "--out", tmp_path / "x") != Exit.OK
    assert str(tmp_path / "x" / "run_onnx.py") in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_format_of_one_file_is_not_mixed_with_others(folder, tmp_path, capsys, monkeypatch):
    def write(model, path):
        path.write_text("weights")
        return [path]

    monkeypatch.setattr("avssl_tiny.checkpoint.write", write)
    both = ["export", folder / "model", "--out", tmp_path / "x", "--to", "tiny", "--to", "onnx"]
    assert avssl(*both) == Exit.USAGE
    assert "--to tiny writes one file" in capsys.readouterr().err and not list(tmp_path.iterdir())
    assert avssl(*both[:-2]) == Exit.OK
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "x")] and (tmp_path / "x").read_text() == "weights"
    assert avssl(*both[:-2]) == Exit.USAGE and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--test", "0"], ["--calibrate", "0"]])
def test_no_clips_at_all_are_refused(folder, tmp_path, capsys, options):
    arguments = ["export", folder / "model", "--out", tmp_path / "x", "--data", folder / "data", *options]
    assert avssl(*arguments) == Exit.USAGE
    assert "0 clips are asked for" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_classify_prints_labels_with_times(folder, capsys):
    assert avssl("classify", folder / "data", "--model", folder / "model", "--top", "2", "--json") == Exit.OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 6 and all((x["start"], x["end"]) == (0, 1) and len(x["labels"]) == 2 for x in lines)


@pytest.mark.parametrize("seconds,windows", [(0, 0), (0.5, 1), (2.5, 3)])
def test_classify_hears_standard_input(folder, capsys, monkeypatch, seconds, windows):
    sound = clips(3).need("audio").x.flatten()[: int(seconds * RATE)]
    pcm = (sound * 32767).to(torch.int16).numpy().tobytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(pcm)))
    code = avssl("classify", "-", "--model", folder / "model", "--hop", "1", "--rate", RATE, "--json")
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == windows
    assert code == (Exit.OK if windows else Exit.DATA) and ("no sound" in said.err) == (not windows)


def test_a_damaged_file_is_named_and_the_others_are_classified(folder, tmp_path, capsys):
    soundfile.write(tmp_path / "good.wav", clips(1).need("audio").x[0].numpy(), RATE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF\0\0\0\0WAVEjunk")
    assert avssl("classify", tmp_path, "--model", folder / "model") == Exit.DATA
    out = capsys.readouterr()
    assert "bad.wav" in out.err and len(out.out.splitlines()) == 1
