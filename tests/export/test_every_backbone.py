"""Every registered backbone's embedding exports to ONNX, whichever plugin brought it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from avssl.batch import Batch
from avssl.export.exporter import export_model
from avssl.registry import registry
from avssl.testing import subject

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.mark.parametrize("name", [b.name for b in registry().all("backbone")])
def test_the_embedding_of_one_item_is_pytorchs(name, tmp_path):
    s = subject(registry().get("backbone", name), tmp_path)
    model = SimpleNamespace(backbone=s.backbone, frontend=s.frontend.eval(), head=None, codec=None, licence="")
    item = Batch.cat(s.items[:1], s.frontend.pad_values)
    with torch.inference_mode():
        features = s.backbone(s.frontend(item))
    for stream, want in features.pooled.items():
        out = tmp_path / f"out-{stream}"
        export_model(model, out, ["onnx"], example=item, test=item, stream=stream)
        session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
        feeds = {i.name: item.streams[i.name].x.numpy() for i in session.get_inputs()}
        got = session.run(None, feeds)[0]
        np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-3 * max(1.0, float(want.abs().max())))
