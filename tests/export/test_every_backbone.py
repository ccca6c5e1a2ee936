"""Every registered backbone's embedding exports to ONNX, whichever plugin brought it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avssl.batch import Batch
from avssl.export.exporter import export_model
from avssl.export.onnx_graph import Front, Network
from avssl.registry import registry
from avssl.testing import subject

onnxruntime = pytest.importorskip("onnxruntime")


NAMES = [b.name for b in registry().all("backbone")]


def prepared(name, tmp_path):
    """(model, one item) of a backbone's smallest example."""
    s = subject(registry().get("backbone", name), tmp_path)
    model = SimpleNamespace(backbone=s.backbone, frontend=s.frontend.eval(), head=None, codec=None, licence="")
    return model, Batch.cat(s.items[:1], s.frontend.pad_values)


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_of_one_item_is_pytorchs(name, tmp_path):
    model, item = prepared(name, tmp_path)
    with torch.inference_mode():
        features = model.backbone(model.frontend(item))
    for stream, want in features.pooled.items():
        out = tmp_path / f"out-{stream}"
        export_model(model, out, ["onnx"], example=item, test=item, stream=stream)
        session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
        feeds = {i.name: item.streams[i.name].x.numpy() for i in session.get_inputs()}
        got = session.run(None, feeds)[0]
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-3 * max(1.0, float(want.abs().max())))


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_asks_for_no_order_in_memory(name, tmp_path):
    """ExecuTorch refuses a convolution whose weights and input differ in it."""
    model, item = prepared(name, tmp_path)
    names = tuple(item.streams)
    with torch.inference_mode():
        inputs = Front(model.frontend, names)(*(s.x for s in item.streams.values()))
    network = Network(model.backbone, None, names, next(iter(model.backbone.widths()))).eval()
    nodes = torch.export.export(network, tuple(x.clone() for x in inputs)).graph.nodes
    assert not [n for n in nodes if n.kwargs.get("memory_format") not in (None, torch.contiguous_format)]


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_runs_in_executorch(name, tmp_path):
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    model, item = prepared(name, tmp_path)
    for stream in model.backbone.widths():
        report = export_model(model, tmp_path / stream, ["executorch"], example=item, test=item, stream=stream)
        assert report["files"][0]["max_logit_difference"] < 1e-4
