"""Tiny Transformers: the fixture's numbers, from the weights and from the waveform, and the table of sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from avssl.batch import Batch, Stream
from avssl.imports import build, import_checkpoint
from avssl.schema import structure
from avssl_tiny.checkpoint import POSITIONS
from parity.harness import Case, cases, known_tests

HANDLED = {"model"}


def imported(case: Case):
    """The case's checkpoint through the public importer."""
    options = {k: v for k, v in case.model.items()}
    if front_end := case.spec["config"].get("front_end"):
        options["front_end"] = front_end
    return import_checkpoint(case.file("checkpoint"), format="tiny", **options)


def sounds(case: Case) -> tuple[torch.Tensor, int]:
    """(B, L) float waveforms of the case and their rate."""
    records = [i for i in case.spec["inputs"] if i["role"].startswith("waveform")]
    return torch.stack([case.io[i["tensor"]].float() * i.get("scale", 1.0) for i in records]), records[0]["rate"]


def as_batch(x: torch.Tensor, labels: torch.Tensor) -> Batch:
    n = len(x)
    return Batch(tuple(map(str, range(n))), torch.zeros(n, dtype=torch.long), {"audio": Stream(x)}, Stream(labels))


def compare(case: Case, loss, frames: torch.Tensor, tolerance: str) -> None:
    """Outputs and gradients for standardised frames (B, T, F)."""
    loss.train(case.call["mode"] == "train")
    batch = as_batch(frames, case.input("class_ids"))
    features = loss.backbone(batch)
    total = loss(batch).total()  # the mean over the batch
    if case.call.get("loss", {}).get("reduction", "mean") == "sum":
        total = total * len(batch)
    weights = {b["tensor"]: b for b in case.call.get("backward_of") or [{"tensor": "output.loss", "weight": 1.0}]}
    assert set(weights) == {"output.loss"} and weights["output.loss"].get("reduce", "none") == "none"
    (total * weights["output.loss"]["weight"]).backward()
    got = {
        "sequence": features.tokens["audio"],
        "pooled": features.pooled["audio"],
        "logits": loss.head(features),
        "loss": total,
    }
    for record in case.spec["outputs"]:
        if record["of"] in got:
            case.check(record["tensor"], got[record["of"]], tolerance)
    grads = {n.removeprefix("backbone."): p.grad for n, p in loss.named_parameters()}
    for name in set(case.spec.get("gradients", {}).get("names", ())) & set(POSITIONS):  # the file's word for the table
        grads[name] = grads["positions"].reshape(case.io[f"grad.{name}"].shape)
    if case.spec.get("gradients"):
        case.check_gradients(grads, tolerance)


@pytest.mark.parametrize("case", cases("tiny-transformer", "model"))
def test_the_weights_give_the_numbers_of_the_case(case):
    loss = build(imported(case))
    compare(case, loss, case.input("log_mel"), "tolerance")
    for record in case.outputs("log_mel_dB"):
        assert "skip" in case.rule(record["tensor"])
        case.checked.add(record["tensor"])
    case.check_complete()
    if "parameters" in case.model:
        assert sum(p.numel() for p in loss.parameters()) == case.model["parameters"]


@pytest.mark.parametrize("case", cases("tiny-transformer", "model"))
def test_the_waveform_gives_them_too(case):
    from avssl_tiny.config import SoundConfig
    from avssl_tiny.frontend import SoundFrontend

    source = imported(case)
    frontend = SoundFrontend(structure(SoundConfig, source.frontend)).eval()
    wave, rate = sounds(case)
    assert rate == frontend.config.rate
    for record in case.outputs("log_mel_dB"):
        case.check(record["tensor"], frontend.extract(wave), "tolerance_from_waveform")
    frames = frontend.batch(as_batch(wave, case.input("class_ids"))).need("audio").x
    compare(case, build(source), frames, "tolerance_from_waveform")
    case.check_complete()


@pytest.mark.parametrize("case", cases("tiny-transformer", "model"))
def test_the_table_of_sizes_is_the_formula_and_the_built_model(case):
    from avssl_tiny.backbone import Tiny
    from avssl_tiny.config import TinyConfig
    from avssl_tiny.cost import cost

    for row in case.spec.get("parameter_table", []):
        config = TinyConfig(
            features=row["n_mels"],
            dim=row["d"],
            layers=row["layers"],
            heads=row["heads"],
            ff=row["ff"],
            positions=row["positions"],
            pooler="tanh_dense_of_cls" if row["pooler"] else "cls",
        )
        got = cost(config, row["classes"], 216)
        assert got["macs"] == row["macs_T216"], row["name"]
        assert cost(replace(config, stack=4), row["classes"], 216)["macs"] == row["macs_T54"], row["name"]
        assert got["parameters"] == row["parameters"], row["name"]
        assert got["scores"] == row["score_elems_T216"]
        with torch.device("meta"):
            model = Tiny(config)
        head = config.dim * row["classes"] + row["classes"]
        assert sum(p.numel() for p in model.parameters()) + head == row["parameters"], row["name"]
        assert model.macs(216) + config.dim * row["classes"] == row["macs_T216"]


def test_every_kind_of_case_is_handled():
    assert known_tests("tiny-transformer") <= HANDLED


@pytest.mark.parametrize("case", cases("tiny-transformer", "model"))
def test_the_encoder_is_the_bert_of_public_tools(case):
    """The same tensors in `transformers.BertModel`'s encoder give the same sequence; skipped where it is missing."""
    bert = pytest.importorskip("transformers.models.bert.modeling_bert")
    from transformers import BertConfig

    loss = build(imported(case)).eval()
    c = loss.backbone.config
    if not c.post_norm or c.activation == "gelu_tanh":
        pytest.skip("not BERT's layout")
    config = BertConfig(
        hidden_size=c.dim,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.ff,
        hidden_act=c.activation,
        layer_norm_eps=c.layer_norm_eps,
        attn_implementation="eager",
    )
    encoder = bert.BertEncoder(config).eval()
    state = {k.removeprefix("encoder."): v for k, v in loss.backbone.state_dict().items() if k.startswith("encoder.")}
    encoder.load_state_dict(state)  # strict
    x = F.layer_norm(torch.randn(2, 30, c.dim), (c.dim,))
    want = encoder(x).last_hidden_state
    got = x
    for block in loss.backbone.blocks:
        got, _ = block(got, None)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
