"""CAV-MAE against the authors' numbers: pretraining step, features, fine-tuning modes and steps, weight adaptation."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from avssl.batch import Batch, Stream
from avssl.builtin.classify import Classify
from avssl.builtin.configs import ClassifyConfig
from avssl.imports import build, import_checkpoint, load_strictly
from avssl_cav_mae.adapt import adapted
from avssl_cav_mae.backbone import CavMae
from avssl_cav_mae.checkpoint import MODES, is_spare_norm, load_state, official_state, our_name, to_official, write
from avssl_cav_mae.loss import CavMaeLoss, info_nce
from avssl_cav_mae.masks import Masks
from avssl_cav_mae.patches import patches, planes
from parity.harness import Case, cases, known_tests

MODALITY = {"audio": "audio", "image": "vision"}
HANDLED = {"pretrain_step", "features", "finetune_modes", "finetune_from_pretrained", "weight_adaptation"}


def test_every_kind_of_case_is_handled():
    elsewhere = {"frontend": "test_cav_mae_frontend", "metrics": "test_cav_mae_metrics"}
    assert known_tests("cav_mae") <= HANDLED | elsewhere.keys()


def options(case: Case) -> dict[str, Any]:
    """What the authors' constructor was told and a checkpoint does not show."""
    model = {**case.model, **case.spec["config"].get("checkpoint_only", {})}
    out = {"heads": model["num_heads"], "mel_bins": model["num_mel_bins"]}
    if "decoder_num_heads" in model:
        out["decoder_heads"] = model["decoder_num_heads"]
        out["norm_pixels"] = model.get("norm_pix_loss", True)
    if "tr_pos" in model:
        out["train_positions"] = model["tr_pos"]
    assert (model["layer_norm_eps"], model["activation"], model["qkv_bias"]) == (1e-5, "gelu_exact", True)
    return out


def batch_of(case: Case, *modalities: str) -> Batch:
    found = {"audio": case.input("log_mel"), "vision": case.input("image")}
    n = len(found["audio"])
    streams = {m: Stream(found[m]) for m in modalities or found}
    return Batch(tuple(map(str, range(n))), torch.arange(n), streams)


def official_gradients(loss: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    """Gradients of a Loss by official key; None where none arrived."""
    ours = dict(loss.named_parameters())
    keys = {k: our_name(k) for k in official_state(loss)}
    return {
        k: None if ours.get(n) is None or ours[n].grad is None else to_official(k, ours[n].grad)
        for k, n in keys.items()
        if n is not None
    }


# -- pretraining ---------------------------------------------------------------------------------------------------
def masks_of(case: Case) -> Masks:
    order = {m: case.io[f"mask.ids_shuffle_{o}"].long() for o, m in MODALITY.items()}
    return Masks(order, {m: case.call["len_keep"][o] for o, m in MODALITY.items()})


def block_outputs(loss: CavMaeLoss, found: dict[str, torch.Tensor], masks: Masks) -> list[Any]:
    """Hooks that record what each block gives, under the authors' names."""
    names = {
        **{f"blocks_{m[0]}.{i}": b for m, s in loss.backbone.stacks.items() for i, b in enumerate(s)},
        **{f"blocks_u.{i}": b for i, b in enumerate(loss.backbone.shared)},
    }
    public = {"joint": "joint", "audio": "audio", "vision": "image"}

    def record(name: str):
        def hook(module, args, output):
            stream = args[1] if len(args) > 1 else "joint"
            found[f"{name}.{public[stream]}" if name.startswith("blocks_u") else name] = output.detach()

        return hook

    def decoder(name: str):
        def hook(module, args, output):  # from [visible, hidden] back to the order of the grid
            kept = [masks.kept[m] for m in ("audio", "vision")]
            sizes = [masks.order[m].shape[1] for m in ("audio", "vision")]
            va, vv, ha, hv = output.detach().split([*kept, sizes[0] - kept[0], sizes[1] - kept[1]], 1)
            grid = []
            for m, parts in (("audio", (va, ha)), ("vision", (vv, hv))):
                x = torch.cat(parts, 1)
                grid.append(chosen(x, masks.order[m].argsort(1)))
            found[name] = torch.cat(grid, 1)

        return hook

    return [
        *(b.register_forward_hook(record(n)) for n, b in names.items()),
        *(b.register_forward_hook(decoder(f"decoder_blocks.{i}")) for i, b in enumerate(loss.decoder.blocks)),
    ]


@pytest.mark.parametrize("case", cases("cav_mae", "pretrain_step"))
def test_a_pretraining_step_gives_the_official_terms_and_gradients(case: Case):
    loss = build(import_checkpoint(case.file("checkpoint"), format="cav_mae", **options(case)))
    assert isinstance(loss, CavMaeLoss)
    call = case.call
    config = dataclasses.replace(
        loss.config,
        contrast_weight=call["contrast_loss_weight"],
        reconstruction_weight=call["mae_loss_weight"],
        temperature=call["temperature"],
        bidirectional=call["contrastive_bidirectional"],
        chain_shared=call["contrastive_passes_chain_shared_blocks"],
    )
    loss = rebuilt(loss, config)
    loss.train(call["mode"] == "train")
    batch, masks = batch_of(case), masks_of(case)
    for o, m in MODALITY.items():
        assert torch.equal(masks.mask(m), case.io[f"mask.mask_{o}"].float())
        assert torch.equal(masks.order[m].argsort(1), case.io[f"mask.ids_restore_{o}"].long())

    out = loss.compute(batch, masks)
    total = out.total()
    total.backward()
    value = {n: t.value for n, t in out.terms.items()}
    zero = torch.zeros(())
    mae = {o: value.get(f"reconstruct_{m}", zero) for o, m in MODALITY.items()}
    correct, count = out.metrics.get("contrast_accuracy", (zero, 1))
    case.check("output.loss", total)
    case.check("output.loss_mae", config.reconstruction_weight * (mae["audio"] + mae["image"]))
    case.check("output.loss_mae_audio", mae["audio"])
    case.check("output.loss_mae_image", mae["image"])
    case.check("output.loss_contrastive", config.contrast_weight * value.get("contrast", zero))
    case.check("output.contrastive_accuracy", correct / count)
    case.check_gradients(official_gradients(loss))

    found: dict[str, torch.Tensor] = {}
    hooks = block_outputs(loss, found, masks)
    with torch.no_grad():
        stacked = loss.encode(batch, masks)
        latent = loss.backbone.fuse(stacked)
        tokens = {m: loss.backbone.single(m, x, chained=config.chain_shared)[0] for m, x in stacked.items()}
        guesses = loss.predict(batch, masks, latent, everywhere=True)
    for hook in hooks:
        hook.remove()
    case.check("output.latent", latent)
    for o, m in MODALITY.items():
        case.check(f"output.contrast_{o}_tokens", tokens[m])
        for record in case.outputs(f"pred_{o}"):
            case.check(record["tensor"], guesses[m][:, :: record.get("patch_stride", 1)])
        for record in case.outputs(f"inpaint_{o}"):
            pasted = loss.paste(batch, m, masks, guesses[m])
            if o == "audio":  # (B, T, F) -> (B, 1, mel, T), as the authors' model sees it
                pasted = pasted.transpose(1, 2)[:, None, :, : record.get("first_frames")]
            if "item" in record:
                pasted = pasted[record["item"] : record["item"] + 1]
            case.check(record["tensor"], pasted)
    for record in case.outputs("forward_contrastive"):
        pooled = [case.io[n].mean(1) for n in record["inputs_mean_pooled"]]
        summed, hits = info_nce(*pooled, config.temperature, record["bidirectional"])
        weight = config.contrast_weight if record["weighted"] else 1.0
        case.check(record["tensor"], (weight * summed if record["returns"] == "loss" else hits) / len(batch))
    for record in case.outputs("block_output"):
        name = record["tensor"].removeprefix("output.layer.")
        if name in found:  # un-chained contrastive passes run the last shared block alone
            case.check(record["tensor"], found[name])
    case.check_complete()


def rebuilt(loss: CavMaeLoss, config: Any) -> CavMaeLoss:
    """The same weights under another loss config."""
    out = CavMaeLoss(loss.backbone, config)
    load_strictly(out, loss.state_dict(), "rebuilt")
    return out


# -- fine-tuning ---------------------------------------------------------------------------------------------------
def classifier(backbone: CavMae, head: torch.nn.Module | None, classes: int, mode: str, kind: str = "auto") -> Classify:
    loss = Classify(backbone, ClassifyConfig(classes=classes, streams=MODES[mode], loss=kind))
    if head is not None:
        load_strictly(loss.head, head.state_dict(), "head")
    return loss


INPUTS = {
    "audioonly": ("audio",),
    "missingaudioonly": ("audio",),
    "videoonly": ("vision",),
    "missingvideoonly": ("vision",),
}


@pytest.mark.parametrize("case", cases("cav_mae", "features", "finetune_modes"))
def test_a_fine_tuned_model_gives_the_official_features_logits_and_gradients(case: Case):
    imported = import_checkpoint(case.file("checkpoint"), format="cav_mae", **options(case))
    loss = build(imported)
    assert isinstance(loss, Classify) and loss.config.classes == case.model["label_dim"]
    loss.train(case.call["mode"] == "train")
    backbone: Any = loss.backbone

    for mode in case.call["forward_modes"]:
        ours = classifier(backbone, loss.head, loss.config.classes, mode)
        batch = batch_of(case, *INPUTS.get(mode, ()))
        with torch.no_grad():
            logits = ours.head(backbone(batch, only=ours.head.streams))
        for record in case.outputs("logits", forward_mode=mode):
            case.check(record["tensor"], logits)

    with torch.no_grad():
        features = {"av": backbone(batch_of(case)), "a": backbone(batch_of(case, "audio"))}
        layers = backbone(batch_of(case), layers="blocks").layers
    for record in case.outputs("features_unpooled"):
        case.check(record["tensor"], features[record["forward_mode"]].tokens[MODALITY[record["modality"]]])
    pooled = {o: F.normalize(features["av"].pooled[m], dim=-1) for o, m in MODALITY.items()}
    for record in case.outputs("embedding"):
        case.check(record["tensor"], pooled[record["modality"]])
    for record in case.outputs("cosine_matrix"):
        rows, columns = ("audio" if "audio" in record[k] else "image" for k in ("rows", "columns"))
        case.check(record["tensor"], pooled[rows] @ pooled[columns].T)
    depth = backbone.config.depth
    for record in case.outputs("block_output"):
        stack, _, rest = record["block"].partition(".")
        number = int(rest.split(".")[0])
        own = {"blocks_a": layers["audio"], "blocks_v": layers["vision"], "blocks_u": layers["joint"]}[stack]
        if stack == "blocks_u" and record.get("pass", "joint") != "joint":
            own = layers[MODALITY[record["pass"]]][depth:]
        case.check(record["tensor"], own[number])

    targets = Stream(case.input("soft_targets"))
    trained = {}
    for name, kind in (("loss_bce", "bce"), ("loss_ce", "cross_entropy")):
        trained[name] = classifier(backbone, loss.head, loss.config.classes, "multimodal", kind)
        out = trained[name].compute(dataclasses.replace(batch_of(case), targets=targets), None).total()
        case.check(f"output.{name}", out)
        if case.spec["gradients"]["of"] == f"output.{name}":
            backbone.zero_grad(set_to_none=True)
            out.backward()
            case.check_gradients(official_gradients(trained[name]))
    case.check_complete()


@pytest.mark.parametrize("case", cases("cav_mae", "finetune_from_pretrained"))
def test_fine_tuning_steps_from_a_pretraining_checkpoint_follow_the_official_ones(case: Case):
    call = case.call
    pretrained = build(import_checkpoint(case.file("checkpoint"), format="cav_mae", **options(case)))
    wanted = {k.removeprefix("module.") for k in case.spec["config"]["ignored_checkpoint_keys"]}
    decoder = {k for k in official_state(pretrained) if (our_name(k) or "").startswith("decoder.")}
    assert decoder == wanted

    trained = call["optimiser"]["position_embeddings_trainable"]
    config = dataclasses.replace(pretrained.backbone.config, train_positions=trained)
    backbone = CavMae(config)
    load_strictly(backbone, pretrained.backbone.state_dict(), "pretrained")
    (mode,) = call["forward_modes"]
    kind = {"bce": "bce", "ce": "cross_entropy"}[next(k for k in call["loss"] if k in ("bce", "ce"))]
    loss = classifier(backbone, None, case.model["label_dim"], mode, kind)
    new = {k for k in official_state(loss) if k.startswith("mlp_head.")}
    assert new == set(case.spec["config"]["new_parameters"])
    with torch.no_grad():
        for key, tensor in call["initialise_from_inputs"].items():
            dict(loss.named_parameters())[our_name(key)].copy_(case.io[tensor])
    loss.train(call["mode"] == "train")

    keys = {our_name(k): k for k in official_state(loss)}
    trainable = {keys[n]: p for n, p in loss.named_parameters() if p.requires_grad}
    optimizer = optimizer_of(call["optimiser"], trainable)
    batch = dataclasses.replace(batch_of(case, *INPUTS.get(mode, ())), targets=Stream(case.input("soft_targets")))
    smallest: dict[str, torch.Tensor] = {}
    for step in range(call["steps"]):
        with torch.no_grad():
            logits = loss.head(backbone(batch, only=loss.head.streams))
        out = loss.compute(batch, None).total()
        for record in case.outputs("logits", step=step):
            case.check(record["tensor"], logits)
        for record in case.outputs("loss", step=step):
            case.check(record["tensor"], out)
        optimizer.zero_grad(set_to_none=True)
        out.backward()
        for key, p in trainable.items():
            if p.grad is not None:
                grad = p.grad.abs()
                smallest[key] = torch.minimum(smallest[key], grad) if key in smallest else grad.clone()
        optimizer.step()
    state = official_state(loss)
    for record in case.outputs("parameter_after_steps"):
        key = record["parameter"]
        own = smallest.get(key, torch.zeros_like(dict(loss.named_parameters())[our_name(key)]))  # no gradient, no step
        case.check(record["tensor"], state[key], own_grad=to_official(key, own))
    case.check_complete()


def optimizer_of(spec: dict[str, Any], parameters: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    assert spec["clip_grad_norm"] is None and spec["grad_divided_by"] == 1
    groups, taken = [], set()
    for group in spec.get("groups") or [{"parameters": ["*"], "lr": spec["lr"]}]:
        names = [
            n
            for n in parameters
            if any(fnmatch.fnmatchcase(n, p) for p in group["parameters"])
            and n not in group.get("except", ())
            and n not in taken
        ]
        taken.update(names)
        groups.append({"params": [parameters[n] for n in names], "lr": group["lr"]})
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[spec["name"]]
    return cls(groups, lr=spec["lr"], betas=tuple(spec["betas"]), eps=spec["eps"], weight_decay=spec["weight_decay"])


# -- files ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", cases("cav_mae", "weight_adaptation"))
def test_imagenet_mae_becomes_the_official_initial_weights(case: Case):
    model, call = case.model, case.call
    chosen = {k: v for k, v in options(case).items() if k in ("heads", "mel_bins")}
    loss = build(
        import_checkpoint(
            case.file("checkpoint"),
            format="mae",
            audio_frames=model["audio_length"],
            shared_depth=model["shared_depth"],
            decoder_heads=model["decoder_num_heads"],
            **chosen,
        )
    )
    assert loss.backbone.config.image_size == model["img_size"]
    state = official_state(loss)
    source = load_state(case.file("checkpoint"))
    state |= {
        k: v
        for k, v in adapted(
            source, model["audio_length"], model["num_mel_bins"], shared_depth=model["shared_depth"]
        ).items()
        if k in call["extra_keys_written"]
    }
    for record in case.outputs("written_parameter"):
        case.check(record["tensor"], state[record["parameter"]])
    for relation in call["relations"]:
        for written, other in related(relation, state, source):
            assert torch.equal(state[written], other), written
    for pattern in call["left_at_default_init_patterns"]:
        if "norm" in pattern:
            stack, rest = pattern.split(".", 1)
            for key in (k for k in state if fnmatch.fnmatchcase(k, f"{stack}.*.{rest}")):
                assert (state[key] == (1 if key.endswith("weight") else 0)).all(), key
    assert {k for k in state if k not in source} >= set(call["left_at_random_init"])
    case.check_complete()


def related(relation: dict[str, Any], state: dict[str, torch.Tensor], source: dict[str, torch.Tensor]):
    """(written key, tensor that it must equal) of one relation, over all its placeholders."""
    import itertools
    import re

    target = relation.get("equals_written") or relation["equals_source"]
    other = state if "equals_written" in relation else source
    numbers = range(relation["n"][0], relation["n"][1] + 1) if "n" in relation else [None]
    found = 0
    for n, i, m in itertools.product(numbers, relation.get("i", [None]), relation.get("m", [None])):
        names = {"n": n, "i": i, "m": m, "rest": "\0"}
        pattern = re.compile(re.escape(target.format(**names)).replace(re.escape("\0"), "(.+)"))
        for key in other:
            if (match := pattern.fullmatch(key)) and not is_spare_norm(key):
                written = relation["written"].format(**{**names, "rest": match[1]})
                found += 1
                yield written, other[key]
    assert found, relation


FILES = ("pretrain_step", "features", "finetune_modes", "finetune_from_pretrained")


@pytest.mark.parametrize("case", cases("cav_mae", *FILES))
def test_an_official_file_comes_out_as_it_went_in(case: Case, tmp_path):
    before = torch.load(case.file("checkpoint"), weights_only=True)
    loss = build(import_checkpoint(case.file("checkpoint"), **options(case)))  # the format is recognised
    (path,) = write(loss, tmp_path / "model.pth")
    after = torch.load(path, weights_only=True)
    assert before.keys() == after.keys()
    for key in before:
        assert torch.equal(before[key], after[key]), key


@pytest.mark.parametrize("case", cases("cav_mae", "pretrain_step"))
def test_a_file_without_the_prefix_is_the_same_model(case: Case, tmp_path):
    state = torch.load(case.file("checkpoint"), weights_only=True)
    torch.save({k.removeprefix("module."): v for k, v in state.items()}, tmp_path / "bare.pth")
    bare = import_checkpoint(tmp_path / "bare.pth", **options(case))
    full = import_checkpoint(case.file("checkpoint"), **options(case))
    assert bare.tensors.keys() == full.tensors.keys() and bare.backbone == full.backbone
    assert all(torch.equal(bare.tensors[k], full.tensors[k]) for k in full.tensors)


@pytest.mark.parametrize("case", cases("cav_mae", "pretrain_step"))
def test_projecting_only_visible_patches_is_projecting_all_and_choosing(case: Case):
    loss = build(import_checkpoint(case.file("checkpoint"), format="cav_mae", **options(case)))
    batch, masks = batch_of(case), masks_of(case)
    for m in ("audio", "vision"):
        ids = masks.visible(m)
        everything = patches(planes(batch, m), 16)
        assert torch.equal(patches(planes(batch, m), 16, ids), chosen(everything, ids))
        torch.testing.assert_close(loss.backbone.embed(batch, m, ids), chosen(loss.backbone.embed(batch, m), ids))


def chosen(x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return x.gather(1, ids[..., None].expand(-1, -1, x.shape[2]))
