"""ONNX files give PyTorch's numbers, with the front end inside or not, in float32 and int8."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import wave

import numpy as np
import pytest
import torch
from export.models import RATE, clips, tiny_model

from avssl.batch import Batch
from avssl.data.clip import Clip, Waveform
from avssl.data.targets import Codec
from avssl.errors import UsageError
from avssl.export.exporter import export_model, table
from avssl.model import Model, build_backbone, build_frontend, build_loss
from avssl_data2vec.example import audio

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")


def logits(model, batch):
    with torch.inference_mode():
        return model.head(model.backbone(model.frontend(batch))).numpy()


def run(path, **inputs):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, inputs)[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("onnx")
    model = tiny_model()
    report = export_model(
        model,
        out,
        ["onnx", "onnx-int8", "onnx-int8-dynamic"],
        example=clips(1),
        calibration=clips(20, seed=1),
        test=clips(6, seed=2),
    )
    return model, out, report


def test_a_waveform_in_gives_pytorchs_logits(exported):
    model, out, _ = exported
    batch = clips(5, seed=9)
    for i, want in enumerate(logits(model, batch)):
        np.testing.assert_allclose(
            run(out / "model.onnx", audio=batch.need("audio").x[i : i + 1].numpy())[0], want, atol=1e-4
        )


def test_the_report_says_what_was_measured(exported):
    model, out, report = exported
    assert report == json.loads((out / "report.json").read_text())
    assert report["parameters"] == sum(p.numel() for p in (*model.backbone.parameters(), *model.head.parameters()))
    wanted = (logits(model, clips(6, seed=2)).argmax(1) == np.arange(6) % 3).mean()
    assert report["accuracy_pytorch"] == pytest.approx(wanted)
    for f in report["files"]:
        assert f["bytes"] == (out / f["path"]).stat().st_size
        assert f["milliseconds"] > 0
        limit = 1e-4 if f["target"] == "onnx" else 0.2
        assert 0 <= f["max_logit_difference"] < limit
        assert 0 <= f["accuracy"] <= 1
    assert "not faster" in table(report)
    assert (out / "labels.txt").read_text().split() == ["cat", "dog", "rain"]


def test_int8_graphs_hold_int8_and_say_what_they_are(exported):
    _, out, _ = exported
    for name, wanted in (("model.int8.onnx", "QuantizeLinear"), ("model.int8-dynamic.onnx", "DynamicQuantizeLinear")):
        model = onnx.load(out / name)
        assert wanted in {n.op_type for n in model.graph.node}
        assert any(t.data_type == onnx.TensorProto.INT8 and t.dims[:2] == [64, 16] for t in model.graph.initializer)
        about = {p.key: p.value for p in model.metadata_props}
        assert about["avssl.labels"].split("\n") == ["cat", "dog", "rain"]
        assert about["avssl.rate"] == str(RATE) and about["avssl.licence"] == "CC0"
        assert {o.domain for o in model.opset_import if o.version == 18} >= {""}


def test_the_file_is_stripped_and_has_no_table_of_positions(exported):
    _, out, _ = exported
    model = onnx.load(out / "model.onnx")
    assert not model.graph.value_info and not any(n.metadata_props for n in model.graph.node)
    bank = 257 * 64 * 4
    assert (out / "model.onnx").stat().st_size < bank + 60_000
    assert all(len(t.raw_data) <= bank for t in model.graph.initializer)


def test_the_written_script_runs_with_onnxruntime_alone(exported, tmp_path):
    _, out, _ = exported
    pcm = (clips(1).need("audio").x[0].numpy() * 32768).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(RATE)
        file.writeframes(pcm.tobytes())
    done = subprocess.run(
        [sys.executable, "-I", out / "run_onnx.py", tmp_path / "a.wav"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shares = {line.split()[1]: float(line.split()[0]) for line in done.stdout.splitlines()}
    want = torch.from_numpy(logits(tiny_model(), clips(1))[0]).softmax(0)
    assert shares == pytest.approx(dict(zip(("cat", "dog", "rain"), want.tolist(), strict=True)), abs=2e-3)


def test_frames_in_any_length(tmp_path):
    model = tiny_model({"stack": 2}, {"standardise": "none"})
    export_model(model, tmp_path, ["onnx"], example=clips(1), frontend=False, dynamic=True)
    with torch.inference_mode():
        for seconds in (0.5, 1.0, 2.3):
            batch = clips(1, seconds)
            frames = model.frontend(batch).need("audio").x.numpy()
            np.testing.assert_allclose(run(tmp_path / "model.onnx", audio=frames), logits(model, batch), atol=1e-4)


def test_sound_that_item_normalises_is_normalised_in_the_graph(tmp_path):
    """data2vec: the graph reads recorded sound, whatever its loudness and offset."""
    tables = {**audio(tmp_path), "name": "d2v", "loss": {"name": "classify", "classes": 3}}
    loss = build_loss(tables, build_backbone(tables)).eval()
    frontend = build_frontend(tables, tmp_path).eval()
    model = Model(loss.backbone, frontend.portable(), loss.head, Codec("index", ("a", "b", "c")), tables, tmp_path)
    waves = (
        clips(6).need("audio").x * torch.tensor([1, 0.1, 0.01, 1e-3, 0.5, 0.5])[:, None]
        + 0.2 * (torch.arange(6) == 4)[:, None]
    )
    recorded = [Clip(str(i), {"audio": Waveform(w[None].numpy(), RATE)}) for i, w in enumerate(waves)]
    with torch.inference_mode():
        want = loss.head(loss.backbone(frontend(Batch.cat([frontend.item([c], None) for c in recorded])))).numpy()
    raw = Batch.cat([model.frontend.item([c], None) for c in recorded])
    report = export_model(model, tmp_path / "x", ["onnx"], example=raw, test=raw)
    assert not report["files"][0]["notes"]
    got = np.concatenate([run(tmp_path / "x" / "model.onnx", audio=w[None].numpy()) for w in waves])
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    assert "SOUND.wav" in (tmp_path / "x" / "run_onnx.py").read_text()
    # With the loader's own batches the graph cannot see what `item` did, and says so.
    outside = dataclasses.replace(model, frontend=frontend)
    done = export_model(outside, tmp_path / "y", ["onnx"], example=Batch.cat([frontend.item([recorded[0]], None)]))
    assert "portable()" in done["files"][0]["notes"][0]


def test_a_model_without_a_head_gives_its_embedding(tmp_path):
    model = tiny_model()
    model.head = model.codec = None
    export_model(model, tmp_path, ["onnx"], example=clips(1), test=clips(2))
    with torch.inference_mode():
        want = model.backbone(model.frontend(clips(1))).pooled["audio"].numpy()
    np.testing.assert_allclose(run(tmp_path / "model.onnx", audio=clips(1).need("audio").x.numpy()), want, atol=1e-4)


def test_the_cnn_exports_and_has_no_c(tmp_path):
    tables = {
        "name": "cnn",
        "backbone": {"name": "tiny_cnn", "widths": [4, 8], "dense": [16]},
        "frontend": {"seconds": 1.0},
    }
    model = tiny_model()
    model.backbone, model.frontend = build_backbone(tables).eval(), build_frontend(tables, tmp_path).eval()
    report = export_model(model, tmp_path, ["onnx", "onnx-int8"], example=clips(1), calibration=clips(4), test=clips(2))
    assert report["files"][0]["max_logit_difference"] < 1e-4
    with pytest.raises(UsageError, match="no plan"):
        export_model(model, tmp_path / "c", ["c"], example=clips(1), calibration=clips(4))


@pytest.mark.parametrize("target", ["executorch", "litert"])
def test_other_runtimes_convert_or_say_what_is_missing(tmp_path, target):
    import importlib.util

    there = any(importlib.util.find_spec(p) for p in {"executorch": ["executorch"], "litert": ["litert_torch"]}[target])
    if there:
        report = export_model(tiny_model(), tmp_path, [target], example=clips(1), test=clips(3))
        assert report["files"][0]["max_logit_difference"] < 1e-4
    else:
        with pytest.raises(UsageError, match="pip install"):
            export_model(tiny_model(), tmp_path, [target], example=clips(1))


def test_an_unknown_target_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'onnx'"):
        export_model(tiny_model(), tmp_path, ["onxx"], example=clips(1))
