"""BEATs against the authors' code itself, over options that no stored case shows. Needs a checkout of
microsoft/unilm: AVSSL_OFFICIAL_BEATS = its folder beats/, whose modules have short names and run apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from avssl.batch import Batch, Stream
from avssl.imports import build, import_checkpoint
from avssl.model import from_imported
from avssl_beats.checkpoint import write

OFFICIAL = os.environ.get("AVSSL_OFFICIAL_BEATS", "")
pytestmark = pytest.mark.skipif(not OFFICIAL, reason="AVSSL_OFFICIAL_BEATS is no checkout of microsoft/unilm beats/")

SMALL = {
    "encoder_layers": 3,
    "encoder_embed_dim": 48,
    "encoder_ffn_embed_dim": 96,
    "encoder_attention_heads": 4,
    "conv_pos": 16,
    "conv_pos_groups": 4,
    "embed_dim": 32,
    "input_patch_size": 16,
    "num_buckets": 32,
    "max_distance": 64,
}
RELATIVE = {"relative_position_embedding": True, "gru_rel_pos": True}
CONFIGS = {
    "released": {**RELATIVE, "deep_norm": True},
    "class defaults": {},
    "gate without bias": {"gru_rel_pos": True},
    "same width": {**RELATIVE, "embed_dim": 48},
    "convolution bias, odd kernel": {**RELATIVE, "conv_bias": True, "conv_pos": 15},
    "glu": {**RELATIVE, "activation_fn": "glu"},
    "relu, pre-norm": {**RELATIVE, "activation_fn": "relu", "layer_norm_first": True},
    "tanh gelu": {**RELATIVE, "activation_fn": "gelu_accurate", "deep_norm": True},
    "tanh": {"activation_fn": "tanh", "relative_position_embedding": True},
    "linear": {"activation_fn": "linear", **RELATIVE},
    "patch 8": {**RELATIVE, "deep_norm": True, "input_patch_size": 8, "num_buckets": 320, "max_distance": 800},
    "more exact distances than max_distance": {**RELATIVE, "num_buckets": 320},
    "one layer": {**RELATIVE, "deep_norm": True, "encoder_layers": 1},
    "classifier": {**RELATIVE, "deep_norm": True, "finetuned_model": True, "predictor_class": 7},
    "tokenizer": {**RELATIVE, "deep_norm": True, "quant_n": 40, "quant_dim": 12},
}
THEIRS = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from BEATs import BEATs, BEATsConfig
from Tokenizers import Tokenizers, TokenizersConfig
spec, folder = json.loads(sys.argv[2]), sys.argv[3]
torch.manual_seed(0)
tokenizer = "quant_n" in spec
model = Tokenizers(TokenizersConfig(spec)) if tokenizer else BEATs(BEATsConfig(spec))
if len(sys.argv) > 4:
    file = torch.load(sys.argv[4], weights_only=True)
    model = Tokenizers(TokenizersConfig(file["cfg"])) if tokenizer else BEATs(BEATsConfig(file["cfg"]))
    model.load_state_dict(file["model"])
else:
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    if tokenizer:
        codes = torch.randn(spec["quant_n"], spec["quant_dim"])
        model.quantize.embedding.weight.data = torch.nn.functional.normalize(codes, dim=-1)
        model.quantize.embedding.initted.fill_(1)
    torch.save({"cfg": spec, "model": model.state_dict()}, folder + "/official.pt")
model.eval()
g = torch.Generator().manual_seed(1)
wave = 0.1 * torch.randn(2, 24000, generator=g)
pad = torch.zeros(2, 24000, dtype=torch.bool)
pad[1, 15000:] = True
out = {}
with torch.no_grad():
    out["mel"] = model.preprocess(wave)
    for name, mask in (("whole", None), ("padded", pad)):
        if name == "padded" and spec["input_patch_size"] != 16:
            continue
        out[name] = model.extract_labels(wave, mask) if tokenizer else model.extract_features(wave, mask)[0]
torch.save(out, folder + "/out.pt")
"""


def theirs(spec: dict, folder: Path, *checkpoint: Path) -> dict[str, torch.Tensor]:
    arguments = [OFFICIAL, json.dumps(spec), str(folder), *map(str, checkpoint)]
    subprocess.run([sys.executable, "-c", THEIRS, *arguments], check=True, capture_output=True, text=True)
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_any_configuration_gives_official_numbers_and_goes_back(name: str, tmp_path: Path):
    spec = {**SMALL, **CONFIGS[name]}
    want = theirs(spec, tmp_path)
    imported = import_checkpoint(tmp_path / "official.pt")
    model = from_imported(imported, tmp_path / "official.pt")
    loss = build(imported).eval()
    pad = torch.zeros(2, 24000, dtype=torch.bool)
    pad[1, 15000:] = True
    from avssl_beats.padding import frame_padding

    for case, mask in (("whole", None), ("padded", frame_padding(pad, want["mel"].shape[1], "official"))):
        if case not in want:
            continue
        batch = Batch(("a", "b"), torch.zeros(2, dtype=torch.int64), {"audio": Stream(want["mel"], mask)})
        with torch.no_grad():
            features = loss.backbone(batch)
            if "tokenizer" in name:
                got = loss.tokenizer.codebook(loss.tokenizer.down(features.tokens["audio"])).indices.flatten()
                assert torch.equal(got, want[case])
            elif name == "classifier":
                torch.testing.assert_close(loss.head(features).sigmoid(), want[case], atol=2e-6, rtol=0)
            else:
                torch.testing.assert_close(features.tokens["audio"], want[case], atol=5e-5, rtol=1e-5)
    write(model, tmp_path / "back.pt")
    again = theirs(spec, tmp_path, tmp_path / "back.pt")
    for key, value in want.items():
        torch.testing.assert_close(again[key], value, atol=0, rtol=0)
