"""BEATs against numbers of the authors' code, and of the paper's formulas where no code was released."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from avssl.batch import Batch, Stream
from avssl.imports import build, import_checkpoint
from avssl.loss import Loss
from avssl_beats.checkpoint import HEAD, TOKENIZER, official_name
from avssl_beats.config import BeatsFrontendConfig, RandomTokenizerConfig, TokenizerConfig
from avssl_beats.distill import distil
from avssl_beats.frontend import BeatsFrontend
from avssl_beats.masked import Hidden, LabelPredictor, accuracy, choose, label_loss
from avssl_beats.padding import frame_padding
from avssl_beats.quantizer import Codebook, kmeans, l2
from avssl_beats.tokenizers import RandomTokenizer, flat_patches
from parity.harness import Case, cases, known_tests

COUNTS = {"floor": "floor", "round_half_even": "round"}
STARTS = ("fbank", "waveform")  # the stored spectrogram is the tighter comparison, the waveform the longer one
HANDLED = {
    "backbone",
    "backbone_kept_patches",
    "classifier",
    "frontend",
    "masked_label_loss",
    "quantizer_train_step",
    "random_projection",
    "tokenizer_labels",
    "tokenizer_losses",
}


def test_every_kind_of_case_is_handled():
    unknown = known_tests("beats") - HANDLED
    assert not unknown, f"kinds of cases without a test: {sorted(unknown)}"


# -- what a case describes, in our terms ----------------------------------------------------------------------------
def frontend_of(case: Case) -> BeatsFrontend:
    spec = case.spec["config"]["front_end"]
    assert (spec["window"], spec["frame_length_ms"], spec["frame_shift_ms"]) == ("povey", 25.0, 10.0)
    assert (spec["waveform_scale"], spec["std_multiplier"], spec["dither"]) == (32768.0, 2.0, 0.0)
    return BeatsFrontend(
        BeatsFrontendConfig(
            rate=spec["sample_rate"], mels=spec["num_mel_bins"], mean=spec["mean"], std=spec["std"], padding="official"
        )
    ).eval()


def loss_of(case: Case) -> Loss:
    """The checkpoint, through the public importer, with the options that the case lists."""
    imported = import_checkpoint(case.file("checkpoint"), format="beats", **case.model)
    loss = build(imported)
    return loss.train(case.call["mode"] == "train").to(getattr(torch, case.call["dtype"]))


def batch_of(case: Case, start: str, dtype: torch.dtype) -> Batch:
    """From the waveform, or from the stored spectrogram with the frame mask that belongs to it."""
    wave = next(i for i in case.spec["inputs"] if i["role"] == "waveform")
    x = case.io[wave["tensor"]] * wave["scale"]
    x = x[None] if x.ndim == 1 else x
    masked = case.call.get("padding_mask")
    pad = case.io[masked] if masked else None
    ids, seeds = tuple(f"clip {i}" for i in range(len(x))), torch.zeros(len(x), dtype=torch.int64)
    if start == "waveform":
        out = frontend_of(case).batch(Batch(ids, seeds, {"audio": Stream(x, pad)}))
        return out.with_streams(audio=Stream(out.streams["audio"].x.to(dtype), out.streams["audio"].pad))
    mel = case.io["output.fbank"]
    pad = None if pad is None else frame_padding(pad, mel.shape[1], "official")
    return Batch(ids, seeds, {"audio": Stream(mel.to(dtype), pad)})


def tolerance(start: str) -> str:
    return "tolerance" if start == "fbank" else "tolerance_from_waveform"


def gradients(loss: Loss) -> dict[str, Tensor | None]:
    """Our gradients under the authors' names."""
    others = {**HEAD, **TOKENIZER}
    out: dict[str, Tensor | None] = {}
    for name, parameter in loss.named_parameters():
        out[others.get(name) or official_name(name.removeprefix("backbone."))] = parameter.grad
    tables = [k for k in out if k.endswith("relative_attention_bias.weight")]
    for key in tables:  # one table, known under the name of every layer
        out |= {key.replace(".0.", f".{i}."): out[key] for i in range(loss.backbone.config.depth)}
    return out


def backward_scalar(case: Case, got: dict[str, Tensor], terms: list[dict[str, Any]] | None = None) -> Tensor:
    """What the case back-propagated: the weighted sum over its terms."""
    total = torch.zeros((), dtype=torch.float64)
    for term in case.call["backward_of"] if terms is None else terms:
        value = got[term["tensor"]]
        if "times" in term:
            value = value * case.io[term["times"]].to(value.dtype)
        total = total + term["weight"] * (value.sum() if term["reduce"] in ("sum", "none") else value.mean())
    return total


# -- networks ----------------------------------------------------------------------------
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("case", cases("beats", "backbone"))
def test_official_encoder_gives_official_features_and_gradients(case: Case, start: str):
    loss, rules = loss_of(case), tolerance(start)
    backbone = loss.backbone
    batch = batch_of(case, start, next(backbone.parameters()).dtype)
    features = backbone(batch, layers="blocks")
    patches = backbone.patch(batch.need("audio").x[:, None])
    tokens = backbone.patch_norm(patches.flatten(2).transpose(1, 2))
    pad = backbone.padding(batch)
    before = backbone.project(tokens) if pad is None else backbone.project(tokens).masked_fill(pad[..., None], 0)
    got = {
        "fbank": batch.need("audio").x,
        "features": features.tokens["audio"],
        "patch_conv": patches,
        "patch_tokens": tokens,
        "pos_conv": backbone.position(before),
    }
    named = {o["tensor"]: got[o["of"]] for o in case.spec["outputs"] if o["of"] in got}
    for out in case.outputs("layer_output"):
        named[out["tensor"]] = features.layers["audio"][out["layer"]]
    for out in case.outputs("padding_mask"):
        named[out["tensor"]] = pad if out["level"] == "patch" else batch.need("audio").pad
    if case.call["backward_of"]:
        total = backward_scalar(case, named)
        named |= {o["tensor"]: total.reshape(1) for o in case.outputs("backward_scalar")}
        total.backward()
        case.check_gradients(gradients(loss), rules)
    for name, value in named.items():
        case.check(name, value, rules)
    case.check_complete()


@pytest.mark.parametrize("case", cases("beats", "backbone_kept_patches"))
def test_encoder_on_kept_patches_and_the_predictors_input(case: Case):
    loss = loss_of(case)
    assert case.call["kept_order"] == "ascending" and case.call["masked_fill_value"] == 0.0
    loss.backbone.config = replace(
        loss.backbone.config, kept_positions="sequence" if case.call["positions"] == "index_within_kept" else "grid"
    )
    batch = batch_of(case, "waveform", torch.float32)
    noise = case.input("mask_sort_keys")
    pad = loss.backbone.padding(batch)
    valid = torch.ones_like(noise, dtype=torch.bool) if pad is None else ~pad
    hidden = choose(noise, valid, case.call["mask_ratio"], COUNTS[case.call["masked_count"]])
    assert torch.equal(hidden.keep, case.input("mask_kept_indices"))
    assert torch.equal(hidden.masked, case.input("mask_true_is_masked"))
    tokens = loss.backbone.patches(batch)
    whole = loss.backbone(batch, keep={"audio": hidden.keep}).tokens["audio"]
    # The rules of what follows are tighter than what a spectrogram can be reproduced to: the authors' own front-end
    # on another machine misses them by a factor of 1.5. They hold from the stored patch tokens on.
    stored = next((case.io[o["tensor"]] for o in case.outputs("tokens")), tokens)
    kept, _ = loss.backbone.encode(stored, pad, hidden.keep)
    torch.testing.assert_close(whole, kept, atol=1e-3, rtol=0)
    got = {"encoder_kept": kept, "predictor_input": LabelPredictor.place(kept, hidden), "tokens": tokens}
    for out in case.spec["outputs"]:
        case.check(out["tensor"], got[out["of"]])
    case.check_complete()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("case", cases("beats", "classifier"))
def test_official_classifier_gives_official_probabilities_and_gradients(case: Case, start: str):
    loss, rules = loss_of(case), tolerance(start)
    batch = batch_of(case, start, next(loss.parameters()).dtype)
    features = loss.backbone(batch, layers="blocks")
    logits = loss.head(features)
    probabilities = logits.sigmoid()
    target = case.input("targets_multi_hot").to(logits.dtype)
    bce = F.binary_cross_entropy(probabilities, target)
    got = {
        "padding_mask": features.pad.get("audio"),
        "bce": bce.reshape(1),
        "fbank": batch.need("audio").x,
        "patch_logits": loss.head.patches(features),
        "pooled_logits": logits,
        "probabilities": probabilities,
    }
    named = {o["tensor"]: got[o["of"]] for o in case.spec["outputs"] if o["of"] in got}
    named |= {o["tensor"]: features.layers["audio"][o["layer"]] for o in case.outputs("layer_output")}
    ours = loss.compute(replace(batch, targets=Stream(target)), None).total()
    torch.testing.assert_close(ours, bce, atol=1e-6, rtol=1e-5)  # our objective is the same number, from logits
    backward_scalar(case, named).backward()
    case.check_gradients(gradients(loss), rules)
    for name, value in named.items():
        case.check(name, value, rules)
    case.check_complete()


@pytest.mark.parametrize("case", cases("beats", "classifier"))
def test_class_names_come_in_the_order_of_the_head(case: Case):
    from avssl.safeload import load_torch

    names = load_torch(case.file("checkpoint")).get("label_dict")
    imported = import_checkpoint(case.file("checkpoint"), format="beats", **case.model)
    if names:
        assert imported.assets["targets"]["classes"] == [names[i] for i in range(len(names))]
        assert len(names) == imported.tensors["head.linear.weight"].shape[0]


@pytest.mark.parametrize("case", cases("beats", "frontend"))
def test_official_spectrograms(case: Case):
    frontend = frontend_of(case)
    scales = {i["tensor"]: i["scale"] for i in case.spec["inputs"]}
    for out in case.outputs("fbank"):
        wave = case.io[out["input"]] * scales[out["input"]]
        single = wave.ndim == 1
        batch = frontend.batch(
            Batch(("clip",), torch.zeros(1, dtype=torch.int64), {"audio": Stream(wave[None] if single else wave)})
        )
        mel = batch.need("audio").x
        case.check(out["tensor"], mel[0] if single else mel)
    case.check_complete()


# -- tokenizers ----------------------------------------------------------------------------
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("case", cases("beats", "tokenizer_labels"))
def test_official_tokenizer_gives_official_labels_and_gradients(case: Case, start: str):
    loss, rules = loss_of(case), tolerance(start)
    batch = batch_of(case, start, next(loss.parameters()).dtype)
    features = loss.backbone(batch, layers="blocks")
    book = loss.tokenizer.codebook
    vectors = loss.tokenizer.down(features.tokens["audio"])
    quantised = book(vectors)
    embed_loss = (quantised.unit - quantised.chosen).square().mean()  # beta 1 in the official class
    for _ in range(case.call.get("calls_before_cluster_size_is_read", 0)):  # the official forward counts even in eval
        book.collect(quantised)
        book.update(move=case.call["mode"] == "train")
    got = {
        "labels": quantised.indices.flatten(),
        "buffer_after_call": book.usage,
        "embed_loss": embed_loss.reshape(1),
        "fbank": batch.need("audio").x,
        "quantize_input": vectors,
        "quantized": quantised.passed,
        "padding_mask": features.pad.get("audio"),
    }
    named = {o["tensor"]: got[o["of"]] for o in case.spec["outputs"] if o["of"] in got}
    named |= {o["tensor"]: features.layers["audio"][o["layer"]] for o in case.outputs("layer_output")}
    if case.call["backward_of"]:
        backward_scalar(case, named).backward()
        case.check_gradients(gradients(loss), rules)
    for name, value in named.items():
        case.check(name, value, rules)
    case.check_complete()


def codebook(codes: Tensor, decay: float, usage: Tensor | None = None) -> Codebook:
    book = Codebook(*codes.shape, decay=decay).to(codes.dtype)
    book.weight.copy_(codes)
    book.started.fill_(1)
    if usage is not None:
        book.usage.copy_(usage)
    return book


@pytest.mark.parametrize("case", cases("beats", "quantizer_train_step"))
def test_codebook_moves_like_the_official_one(case: Case):
    book = codebook(case.input("codebook"), case.model["decay"], case.input("cluster_size"))
    grads = {}
    for step in range(case.call["steps"]):
        z = case.io[f"input.z_{step}"].clone().requires_grad_()
        quantised = book(z)
        loss = case.model["beta"] * (quantised.unit - quantised.chosen).square().mean()
        got = {"indices": quantised.indices.flatten(), "loss": loss.reshape(1), "z_q": quantised.passed}
        terms = [
            {k: v.replace("{i}", str(step)) if isinstance(v, str) else v for k, v in t.items()}
            for t in case.call["backward_of"]
        ]
        backward_scalar(case, {f"output.{k}_{step}": v for k, v in got.items()}, terms).backward()
        grads[f"z_{step}"] = z.grad
        book.collect(quantised)
        book.update(move=case.call["mode"] == "train")
        got |= {"codebook": book.weight, "cluster_size": book.usage}
        for out in case.spec["outputs"]:
            if out.get("step") == step:
                case.check(out["tensor"], got[out["of"]])
    case.check_gradients(grads)
    if "kmeans" in case.call:
        samples, rule = case.input("kmeans_samples"), case.call["kmeans"]
        means, counts = kmeans(samples, samples[case.input("kmeans_initial_rows")], rule["iterations"])
        for out in case.spec["outputs"]:
            if out["of"] in ("kmeans_means", "kmeans_counts"):
                case.check(out["tensor"], means if out["of"] == "kmeans_means" else counts)
    case.check_complete()


NORMALISATIONS = {
    "none": "none",
    "l2_both": "l2",
    "layer_norm_projected": "layer_norm",
    "patch_standardised_l2": "patch_l2",
    "patch_l2": "patch_l2",
}


@pytest.mark.parametrize("dtype", ("float64", "float32"))
@pytest.mark.parametrize("case", cases("beats", "random_projection"))
def test_random_projection_labels(case: Case, dtype: str):
    rules = "tolerance" if dtype == case.call["dtype"] else f"tolerance_{dtype}"
    projection, codes, patches = (
        case.input(role).to(getattr(torch, dtype)) for role in ("projection_matrix", "codebook", "patches")
    )
    size = case.model["patch_size"]
    mel = case.input("log_mel")
    torch.testing.assert_close(flat_patches(mel[None], size)[0].double(), case.input("patches"), atol=0, rtol=0)
    for out in case.outputs("projected"):
        case.check(out["tensor"], patches @ projection.t(), rules)
    for out in case.outputs("labels"):
        cfg = RandomTokenizerConfig(
            codes=len(codes), code_dim=codes.shape[1], normalise=NORMALISATIONS[out["normalisation"]]
        )
        tokenizer = RandomTokenizer(cfg, size).to(codes.dtype)
        tokenizer.projection.copy_(projection)
        tokenizer.codes.copy_(codes)
        case.check(out["tensor"], tokenizer.assign(patches), rules)
    case.check_complete()


@pytest.mark.parametrize("dtype", ("float64", "float32"))
@pytest.mark.parametrize("case", cases("beats", "tokenizer_losses"))
def test_distillation_terms_and_gradients(case: Case, dtype: str):
    kind, rules = getattr(torch, dtype), "tolerance" if dtype == case.call["dtype"] else f"tolerance_{dtype}"
    model = case.model
    shape = {"tanh_linear": torch.tanh, "linear": torch.nn.Identity()}[model["estimator"]["kind"]]
    weight, bias = (case.io[model["estimator"][k]].to(kind) for k in ("weight", "bias"))
    teacher, valid = case.input("teacher_output").to(kind), case.input("mask_true_is_valid")
    grads, totals = {}, {}
    for scaling in ("paper", "mean"):
        book = codebook(case.input("codebook").to(kind), model["ema_decay"])
        encoded = case.input("encoder_output").to(kind).clone().requires_grad_()
        cfg = TokenizerConfig(
            codes=len(book.weight),
            code_dim=encoded.shape[-1],
            beta=model["beta"] if scaling == "mean" else 1.0,  # the printed formula has none
            scaling=scaling,
            padded_take_part=True,  # in the commitment; the case says it of the moving average apart
        )
        out = distil(encoded, book, lambda q: shape(F.linear(q, weight, bias)), teacher, valid, cfg)
        total = sum(t.weight * t.sum / t.count for t in out.terms.values())
        total.backward()
        grads[scaling], totals[scaling] = encoded.grad, total
    commitment = out.terms["commitment"]
    book.collect(out.quantised, None if case.call["ema"]["padded_positions_take_part"] else valid)
    book.update()
    got = {
        "labels": out.quantised.indices,
        "codebook_after_ema": book.weight,
        "codebook_term": out.error,
        "commitment_term": out.error,
        "commitment_mse": (commitment.sum / commitment.count).reshape(1),
        "cosine": out.cosine,
        "cosine_loss_mean": out.terms["cosine"].value.reshape(1),
        "encoded_l2": out.quantised.unit,
        "quantized_l2": out.quantised.chosen,
        "estimated": out.estimated,
        "loss_paper_mean": totals["paper"].reshape(1),
        "loss_paper_sum": (totals["paper"] * valid.sum()).reshape(1),
        "loss_practical": totals["mean"].reshape(1),
    }
    for record in case.spec["outputs"]:
        case.check(record["tensor"], got[record["of"]], rules)
    case.check_gradients({"encoded_paper_mean": grads["paper"], "encoded_practical": grads["mean"]}, rules)
    torch.testing.assert_close(l2(out.quantised.unit), out.quantised.unit)
    case.check_complete()


@pytest.mark.parametrize("dtype", ("float64", "float32"))
@pytest.mark.parametrize("case", cases("beats", "masked_label_loss"))
def test_masked_label_loss(case: Case, dtype: str):
    rules = "tolerance" if dtype == case.call["dtype"] else f"tolerance_{dtype}"
    logits = case.input("logits").to(getattr(torch, dtype)).clone().requires_grad_()
    labels, noise, valid = case.input("labels"), case.input("mask_sort_keys"), case.input("mask_true_is_valid")
    ratio = case.call["mask_ratio"]
    hidden: Hidden = choose(noise, valid, ratio, COUNTS[case.call["masked_count"]])
    kept = valid & ~hidden.masked
    for out in case.outputs("patch_mask"):
        rule = COUNTS[out["masked_count"] if "masked_count" in out else out["kept_count"]]
        kept_share = out.get("kept_ratio")  # as a fraction: 1 - (1 - 0.3) is more than 0.3, and a tie would go astray
        mine = choose(noise, valid, ratio if kept_share is None else 1 - Fraction(str(kept_share)), rule)
        case.check(out["tensor"], valid & ~mine.masked if out["kept"] else mine.masked, rules)
    places = torch.eye(labels.numel(), dtype=torch.bool).view(-1, *labels.shape)
    nll = torch.stack([label_loss(logits, labels, place).sum for place in places]).view(labels.shape)
    term = label_loss(logits, labels, hidden.masked)
    guesses = logits.argmax(-1)
    got = {"nll": nll, "loss_sum": term.sum.reshape(1)}
    for name, where in (("accuracy_masked", hidden.masked), ("accuracy_unmasked", kept)):
        right, count = accuracy(guesses, labels, where)
        got[name] = (right.double() / count).reshape(1)
    for out in case.spec["outputs"]:
        if out["of"] == "loss_mean":
            smoothed = label_loss(logits, labels, hidden.masked, out.get("label_smoothing", 0.0))
            got["loss_mean"] = smoothed.value.reshape(1)
        if out["of"] in got:
            case.check(out["tensor"], got[out["of"]], rules)
    term.value.backward()
    case.check_gradients({"logits": logits.grad}, rules)
    case.check_complete()
