"""data2vec 1 and 2.0 against the authors' numbers: encoders, and whole training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from avssl.batch import Batch, Stream
from avssl.imports import build, import_checkpoint
from avssl_data2vec.audio import frame_pad
from avssl_data2vec.formats import fairseq2, tables
from avssl_data2vec.formats.names import part, prefixed
from avssl_data2vec.loss import Data2Vec, Hidden
from avssl_data2vec.loss2 import Clones, Data2Vec2
from avssl_data2vec.teacher import decay_at
from parity.data2vec_steps import divisor, grads, optimise
from parity.harness import Case, cases, known_tests

HANDLED = {
    "audio_backbone",
    "audio_train_step",
    "vision_backbone",
    "vision_train_step",
    "text_backbone",
    "text_train_step",
    "d2v2_audio_train_step",
    "d2v2_image_train_step",
    "d2v2_text_train_step",
}


def test_every_kind_of_case_is_handled():
    assert known_tests("data2vec") <= HANDLED


def batch_of(**streams: Stream) -> Batch:
    n = len(next(iter(streams.values())).x)
    return Batch(tuple(f"item {i}" for i in range(n)), torch.arange(n), streams)


def audio_batch(case: Case) -> Batch:
    record = next(i for i in case.spec["inputs"] if i["role"] == "waveform")
    wave = case.io[record["tensor"]] * record["scale"]
    assert record["already_normalised"]
    pads = [i for i in case.spec["inputs"] if i["role"] == "padding_mask"]
    return batch_of(audio=Stream(wave, case.io[pads[0]["tensor"]] if pads else None))


def vision_batch(case: Case) -> Batch:
    return batch_of(vision=Stream(case.input("image")))


def text_batch(case: Case, **qualifiers: str) -> Batch:
    record = next(
        i for i in case.spec["inputs"] if i["role"] == "token_ids" and all(i.get(k) == v for k, v in qualifiers.items())
    )
    return batch_of(text=Stream(case.io[record["tensor"]]))


# -- names: our tensors (weights, gradients) under the official names ----------------------------------------------
def audio_official(loss: Data2Vec, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names, mode = part(ours, "backbone."), loss.backbone.config.extractor
    local_keys = ("mask_token", "extractor.", "feature_norm.", "project.")
    local = {k: v for k, v in names.items() if k.startswith(local_keys)}
    encoder = {k: v for k, v in names.items() if k not in local}
    return {
        **tables.audio_local(mode).to_theirs(local),
        **prefixed(tables.AUDIO_ENCODER.to_theirs(encoder), "encoder."),
        **prefixed(part(ours, "heads.audio.0."), "final_proj."),
    }


def vision_official(loss: Data2Vec, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {**tables.VISION.to_theirs(part(ours, "backbone.")), **prefixed(part(ours, "heads.vision.0."), "lm_head.")}


def text_official(loss: Data2Vec, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        **prefixed(tables.TEXT_ENCODER.to_theirs(part(ours, "backbone.")), "encoder.sentence_encoder."),
        **prefixed(part(ours, "heads.text."), "encoder.regression_head."),
    }


# -- encoders ------------------------------------------------------------------------------------------------------
def imported(case: Case, role: str = "checkpoint"):
    if role == "hf_model":
        return build(import_checkpoint(case.file(role), "data2vec_hf", config=str(case.file("hf_config")))).eval()
    return build(
        import_checkpoint(case.file(role), "data2vec_vision" if "vision" in case.spec["test"] else "data2vec_fairseq")
    ).eval()


@pytest.mark.parametrize("case", cases("data2vec", "audio_backbone"))
@torch.no_grad()
def test_audio_encoder_gives_official_features(case: Case):
    batch = audio_batch(case)
    loss = imported(case)
    model = loss.backbone
    conv = model.extractor(batch.need("audio").x)
    pad = frame_pad(model.extractor, batch.need("audio"))
    sources = {"": model}
    if "hf_model" in case.spec["files"]:
        sources["hf_model"] = imported(case, "hf_model").backbone
    known = {
        "conv_features": conv,
        "conv_features_normed": model.feature_norm(conv),
        "projected": model.local(batch),
        "frame_padding_mask": torch.zeros(conv.shape[:2], dtype=torch.bool) if pad is None else pad,
    }
    for record in case.outputs():
        source, kind = sources[record.get("checkpoint", "")], record["of"]
        if kind.startswith("layer_"):
            got = source(batch, layers="ffn" if "ffn" in kind else "blocks").layers["audio"][record["layer"]]
        else:
            got = source(batch).tokens["audio"] if kind == "x" else known[kind]
        case.check(record["tensor"], got)
    case.check_complete()


@pytest.mark.parametrize("case", cases("data2vec", "vision_backbone"))
@torch.no_grad()
def test_vision_encoder_gives_official_features(case: Case):
    batch = vision_batch(case)
    mask = case.input("mask_true_is_masked").flatten(1).bool()
    loaded = [imported(case)]
    if "hf_model" in case.spec["files"]:
        loaded.append(imported(case, "hf_model"))
    for loss in loaded:
        model = loss.backbone
        for record in case.outputs():
            hide = {"vision": mask} if record.get("masked") else None
            kind = record["of"]
            if kind.startswith("layer_"):
                got = model(batch, hide=hide, layers="ffn" if "ffn" in kind else "blocks").layers["vision"][
                    record["layer"]
                ]
                got = got if record.get("class_token", True) else got[:, 1:]
            elif kind == "norm_all_tokens":
                got = model(batch, hide=hide).tokens["vision"]
            elif kind == "patch_embed":
                got = model.patch(batch.need("vision").x).flatten(2).transpose(1, 2)
            elif kind == "rel_pos_bias":
                got = model.relative()[0]
            elif loss is loaded[0]:
                assert kind == "prediction_masked"
                got = loss.heads["vision"](model(batch, hide=hide).tokens["vision"][:, 1:][mask])
            else:
                continue  # the Hugging Face file has no head
            case.check(record["tensor"], got)
    case.check_complete()


@pytest.mark.parametrize("case", cases("data2vec", "text_backbone"))
@torch.no_grad()
def test_text_encoder_gives_official_features(case: Case):
    batch = text_batch(case)
    loaded = [imported(case)]
    if "hf_model" in case.spec["files"]:
        loaded.append(imported(case, "hf_model"))
    for loss in loaded:
        model = loss.backbone
        embedding = model.embed(batch.need("text").x)
        blocks = model(batch, layers="blocks").layers["text"]
        states = [embedding * (batch.need("text").x != model.config.pad)[..., None], *blocks]
        x = model(batch).tokens["text"]
        for record in case.outputs():
            kind = record["of"]
            if kind == "regression_head" and loss is not loaded[0]:
                continue  # the Hugging Face file has no head
            if kind == "layer_ffn_output":
                got = model(batch, layers="ffn").layers["text"][record["layer"]]
            elif kind == "encoder_state":
                got = states[record["state"]]
            elif kind == "regression_head":
                got = loss.heads["text"](x)
            else:
                got = {"embedding": embedding, "x": x}[kind]
            case.check(record["tensor"], got)
    case.check_complete()


# -- training steps of data2vec 1 ----------------------------------------------------------------------------------
@pytest.mark.parametrize("case", cases("data2vec", "audio_train_step", "vision_train_step", "text_train_step"))
def test_training_step_gives_official_numbers(case: Case):
    modality = case.spec["test"].split("_")[0]
    loss = imported(case).train()
    assert isinstance(loss, Data2Vec)
    ema = case.call["ema"]
    loss.updates.fill_(ema["updates_before"])
    _official_loss_settings(case, loss)
    names = {"audio": audio_official, "vision": vision_official, "text": text_official}[modality]
    if modality == "audio":
        off = [case.io[i["tensor"]].bool() for i in case.spec["inputs"] if i["role"] == "channel_mask_true_is_masked"]
        batch, draw = audio_batch(case), Hidden({"audio": case.input("mask_true_is_masked").bool()}, {}, *off)
    elif modality == "vision":
        batch, draw = vision_batch(case), Hidden({"vision": case.input("mask_true_is_masked").flatten(1).bool()})
    else:
        batch, draw = text_batch(case, side="teacher"), text_draw(case)
    captured = capture(loss, modality)
    out = loss.compute(batch, draw)
    term = out.terms["regression"]
    objective = out.total() if case.call["loss"]["reduction"] == "mean" else term.sum
    objective.backward()
    measured = {
        "loss": objective,
        "loss_regression": term.sum,
        "loss_main": term.sum,
        "sample_size": torch.tensor(term.count),
        "loss_per_masked_frame": term.value,
        "prediction_masked": captured["prediction"],
        "target_masked": captured["target"],
        "target_var": out.metrics["target_std"][0],
        "pred_var": out.metrics["prediction_std"][0],
        "student_x": captured["student"],
    }
    own = names(loss, grads(loss))
    case.check_gradients(own)
    step = {k: v / divisor(case) for k, v in own.items()}
    firsts = first_official_names(loss, names)
    norm = optimise(case, loss, firsts)
    loss.after_step(ema["updates_after"])
    student = names(loss, dict(loss.state_dict()))
    teacher = teacher_official(loss, modality, ema["student_prefix"])
    for record in case.outputs():
        kind = record["of"]
        if kind == "student_parameter_after":
            case.check(record["tensor"], student[record["parameter"]], own_grad=step[record["parameter"]])
        elif kind == "ema_parameter_after":
            case.check(record["tensor"], teacher[record["parameter"]], own_grad=step[record["student_parameter"]])
        elif kind == "ema_decay_used":
            case.check(
                record["tensor"],
                torch.tensor([decay_at(ema["updates_after"], loss.config.teacher)], dtype=torch.float64),
            )
        elif kind == "grad_norm":
            case.check(record["tensor"], torch.tensor([norm]))
        else:
            got = measured[kind]
            case.check(record["tensor"], got.reshape(1) if got.ndim == 0 else got)
    case.check_complete()


def _official_loss_settings(case: Case, loss: Data2Vec) -> None:
    """The importer must have read the objective from the file; what the case says besides is checked, not set."""
    spec, ema = case.call["loss"], case.call["ema"]
    assert loss.config.beta == spec["beta"]
    scale = loss.config.scale if loss.config.scale is not None else loss.backbone.dim**-0.5
    assert scale == pytest.approx(spec["scale"]) and loss.config.reduction == spec["reduction"]
    assert (loss.config.teacher.start, loss.config.teacher.end, loss.config.teacher.anneal) == (
        ema["start"],
        ema["end"],
        ema["anneal_end_step"],
    )


def text_draw(case: Case) -> Hidden:
    kind = case.input("corruption_kind")
    record = next(i for i in case.spec["inputs"] if i["role"] == "corruption_kind")
    scored = torch.isin(kind, torch.tensor(record["scored"]))
    corrupted = text_batch(case, side="student").need("text").x
    return Hidden({"text": scored}, {"text": torch.where((kind > 0) & ~scored, corrupted, -1)})


def capture(loss: Data2Vec, modality: str) -> dict[str, Tensor]:
    """Fills with what the step computes inside: the student's tokens, predictions and targets at hidden tokens."""
    seen: dict[str, Tensor] = {}
    original = loss._terms

    def terms(predicted: Tensor, wanted: Tensor, suffix: str):
        seen.update(prediction=predicted, target=wanted)
        return original(predicted, wanted, suffix)

    loss._terms = terms
    loss.backbone.register_forward_hook(lambda _m, _a, out: seen.update(student=out.tokens[modality]))
    return seen


def first_official_names(loss: Data2Vec, names) -> dict[str, str]:
    """Our parameter -> the first official name of it, found by sending one parameter at a time through the table."""
    trained = [n for n, p in loss.named_parameters() if p.requires_grad]
    return {n: next(iter(names(loss, {n: dict(loss.named_parameters())[n].detach()}))) for n in trained}


def teacher_official(loss: Data2Vec, modality: str, student_prefix: str) -> dict[str, Tensor]:
    state = {f"backbone.{k}": v for k, v in loss.teacher.state_dict().items()}
    if loss.teacher_heads is not None:
        state |= {f"heads.{k}": v for k, v in loss.teacher_heads.state_dict().items()}
    official = {"audio": audio_official, "vision": vision_official, "text": text_official}[modality](loss, state)
    return {k.removeprefix(student_prefix): v for k, v in official.items()}


# -- training steps of data2vec 2.0 --------------------------------------------------------------------------------
def official2(loss: Data2Vec2, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    table = {"name": f"data2vec2_{loss.backbone.modality}", **dataclasses.asdict(loss.backbone.config)}
    if table.get("patch_dim", 0) is None:
        del table["patch_dim"]
    key = {"audio": "AUDIO", "vision": "IMAGE", "text": "TEXT"}[loss.backbone.modality]
    encoder = fairseq2.names_of(table).to_theirs(part(ours, "backbone."))
    decoder = tables.decoder2(loss.config.decoder.projection_layers).to_theirs(part(ours, "decoder."))
    out = {**fairseq2.unflat({**encoder, **decoder}, key), **prefixed(part(ours, "pixel_head."), "recon_proj.")}
    if loss.config.shared_decoder is not None:
        layers = loss.config.shared_decoder.projection_layers
        out |= prefixed(tables.decoder2(layers).to_theirs(part(ours, "shared_decoder.")), "shared_")
    return out


@pytest.mark.parametrize(
    "case", cases("data2vec", "d2v2_audio_train_step", "d2v2_image_train_step", "d2v2_text_train_step")
)
def test_training_step_of_version_2_gives_official_numbers(case: Case):
    loss = imported(case).train()
    assert isinstance(loss, Data2Vec2)
    ema, spec = case.call["ema"], case.call["loss"]
    assert loss.config.mask.clones == case.call["clone_batch"] and loss.config.beta == spec["beta"]
    assert loss.config.noise_std == case.call["decoder_noise"]["std"] and loss.config.class_weight == spec["cls_weight"]
    modality = loss.backbone.modality
    batch = {"audio": audio_batch, "vision": vision_batch, "text": text_batch}[modality](case)
    draw = Clones(
        case.input("mask_one_is_masked").bool(),
        case.input("mask_kept_indices"),
        case.input("mask_inverse_permutation"),
        case.input("decoder_mask_token_noise"),
        *(case.io[i["tensor"]] for i in case.spec["inputs"] if i["role"] == "shared_decoder_mask_token_noise"),
    )
    seen: dict[str, Tensor] = {}
    loss.decoder.register_forward_hook(lambda _m, _a, out: seen.update(decoder_out=out))
    loss.backbone.register_forward_hook(lambda _m, _a, out: seen.update(encoder_out=out.tokens[modality]))
    loss.backbone.blocks[loss.backbone.config.prenet_depth].register_forward_pre_hook(
        lambda _m, a: seen.update(encoder_in=a[0])
    )
    original = loss._target
    loss._target = lambda *a: seen.setdefault("targets_full", original(*a))
    loss.updates.fill_(ema["updates_before"])
    out = loss.compute(batch, draw)
    total = sum(t.weight * t.sum for t in out.terms.values())
    total.backward()
    own = official2(loss, {n: g for n, g in grads(loss).items() if not n.startswith("teacher.")})
    case.check_gradients(own)
    assert dict(loss.counts(batch, draw)) == {n: t.count for n, t in out.terms.items()}
    firsts = {n: next(iter(official2(loss, {n: p.detach()}))) for n, p in loss.named_parameters() if p.requires_grad}
    step = {k: v / divisor(case) for k, v in own.items()}
    optimise(case, loss, firsts)
    loss.after_step(ema["updates_after"])
    state = loss.state_dict()
    student = official2(loss, {k: v for k, v in state.items() if not k.startswith(("teacher.", "updates"))})
    teacher = official2(loss, prefixed(part(state, "teacher."), "backbone."))
    measured = {
        **seen,
        "total_loss": total,
        "sample_size": torch.tensor(out.terms["regression"].count),
        "target_var": out.metrics["target_std"][0],
        "pred_var": out.metrics["prediction_std"][0],
        "masked_pct": out.metrics["masked_share"][0],
    }
    for record in case.outputs():
        kind = record["of"]
        if kind == "loss_sum":
            name = {"cls": "class", "recon": "reconstruction"}.get(record["term"], "regression")
            term = out.terms["regression.shared" if record["term"].endswith("_regression_0") else name]
            case.check(record["tensor"], (term.weight * term.sum).reshape(1))
        elif kind == "student_parameter_after":
            case.check(record["tensor"], student[record["parameter"]], own_grad=step[record["parameter"]])
        elif kind == "ema_parameter_after":
            case.check(record["tensor"], teacher[record["parameter"]], own_grad=step[record["student_parameter"]])
        elif kind == "ema_decay_used":
            case.check(
                record["tensor"],
                torch.tensor([decay_at(ema["updates_after"], loss.config.teacher)], dtype=torch.float64),
            )
        else:
            got = measured[kind]
            case.check(record["tensor"], got.reshape(1) if got.ndim == 0 else got)
    case.check_complete()
