"""Official checkpoints <-> our names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl.safeload import load_safetensors, load_torch

LICENCE = "BSD-2-Clause"
SOURCE = "github.com/YuanGongND/cav-mae"
SYNC_SOURCE = "github.com/edsonroteia/cav-mae-sync"
PREFIX = "module."  # official files are saved from DataParallel, and load into it alone
PATCH = 16  # the only patch of the official code
SYNC_FRONTEND = {"span": 1024, "pictures": 16}  # its loader: windows of a clip's 1024 frames, around 16 pictures

# official module -> ours
PARTS = {
    "patch_embed_a.proj": "backbone.patch.audio", "patch_embed_v.proj": "backbone.patch.vision",
    "norm": "backbone.norms.joint", "norm_a": "backbone.norms.audio", "norm_v": "backbone.norms.vision",
    "decoder_embed": "decoder.embed", "decoder_norm": "decoder.norm",
    "decoder_pred_a": "decoder.predict.audio", "decoder_pred_v": "decoder.predict.vision",
    "mlp_head.0": "head.norm", "mlp_head.1": "head.linear",
    "classifier_norm": "head.norm", "classifier_head": "head.linear",
}  # fmt: skip
VECTORS = {
    "modality_a": "backbone.modality.audio", "modality_v": "backbone.modality.vision",
    "pos_embed_a": "backbone.positions.audio", "pos_embed_v": "backbone.positions.vision",
    "cls_token_a": "backbone.cls.audio", "cls_token_v": "backbone.cls.vision",
    "cls_cls_token": "head.cls", "mask_token": "decoder.mask_token",
    "decoder_modality_a": "decoder.modality.audio", "decoder_modality_v": "decoder.modality.vision",
    "decoder_pos_embed_a": "decoder.positions.audio", "decoder_pos_embed_v": "decoder.positions.vision",
}  # fmt: skip
STACKS = {
    "blocks_a": "backbone.stacks.audio", "blocks_v": "backbone.stacks.vision", "blocks_u": "backbone.shared",
    "constrative_head_audio": "backbone.contrast.audio", "constrative_head_visual": "backbone.contrast.vision",
    "decoder_blocks": "decoder.blocks", "classifier_layers": "head.blocks",
}  # fmt: skip
INNER = {
    "norm1": "norm1.joint", "norm1_a": "norm1.audio", "norm1_v": "norm1.vision",
    "norm2": "norm2.joint", "norm2_a": "norm2.audio", "norm2_v": "norm2.vision",
    "attn.qkv": "qkv", "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
}  # fmt: skip
STACK_KEY = re.compile(rf"({'|'.join(STACKS)})\.(\d+)\.(.+)")


def our_name(key: str) -> str | None:
    """Our name of an official key without prefix; None for a key that CAV-MAE does not have."""
    if key in VECTORS:
        return VECTORS[key]
    module, _, leaf = key.rpartition(".")
    if module in PARTS:
        return f"{PARTS[module]}.{leaf}"
    if (found := STACK_KEY.fullmatch(module)) and found[3] in INNER:
        return f"{STACKS[found[1]]}.{found[2]}.{INNER[found[3]]}.{leaf}"
    return None


def is_spare_norm(key: str) -> bool:
    """A modality norm in a block that is not shared: every official block has them, no official pass uses them."""
    return bool(re.fullmatch(r"(?!blocks_u)\w+\.\d+\.norm[12]_[av]\.(weight|bias)", key))


def to_ours(key: str, value: Tensor) -> Tensor:
    """The tensor in our shape: vectors and tables lose their leading ones, convolutions become matrices over patches
    of (row, column, channel)."""
    if key.endswith("proj.weight") and value.ndim == 4:
        return value.permute(0, 2, 3, 1).reshape(value.shape[0], -1)
    if key.startswith("cls_"):
        return value.reshape(1, -1)
    if key in VECTORS:
        return value.flatten() if "pos_embed" not in key else value[0]
    return value


def to_official(key: str, value: Tensor) -> Tensor:
    """The inverse of `to_ours`."""
    if key.startswith("patch_embed") and key.endswith("weight"):
        channels = value.shape[1] // PATCH**2
        return value.reshape(-1, PATCH, PATCH, channels).permute(0, 3, 1, 2).contiguous()
    if key in VECTORS:
        return value.reshape(1, -1, value.shape[-1])
    return value


# -- in ------------------------------------------------------------------------------------------------------------
def read(path: Path, **options: Any) -> Imported:
    """An official file: pretrained (with decoder), fine-tuned (CAVMAEFT), fine-tuned on sound alone without the picture's
    weights (CAVMAEFTAudio), or either of CAV-MAE Sync's; with or without the `module.` prefix.

    Options, for what a file does not show: heads, decoder_heads (default: 64 and 32 wide), mel_bins (128),
    norm_pixels (true), mode of a fine-tuned model (multimodal, audioonly, videoonly, missingaudioonly,
    missingvideoonly; default: audioonly for CAVMAEFTAudio, else multimodal), loss of a fine-tuned model (auto, bce,
    cross_entropy), labels (path of the authors' class csv), sync for a model of CAV-MAE Sync that has neither cls tokens
    nor registers, keep_registers of a Sync model (false), train_positions (the authors' tr_pos; default: true for a
    fine-tuned model). Sizes come from the shapes. Raises CheckpointError.
    """
    return imported(load_state(path), str(path), **options)


def load_state(path: Path) -> dict[str, Tensor]:
    """The flat state dict of a file: .safetensors or torch, plain or under "model"/"state_dict"; prefix removed."""
    state = load_safetensors(path) if path.suffix == ".safetensors" else load_torch(path)
    for inner in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(inner), Mapping):
            state = state[inner]
    check(
        isinstance(state, Mapping) and bool(state) and all(isinstance(v, Tensor) for v in state.values()),
        f"{path} holds no state dict",
        fix="give the authors' audio_model.*.pth",
        error=CheckpointError,
    )
    return {str(k).removeprefix(PREFIX): v for k, v in state.items()}


MODES = {"multimodal": ("joint",), "audioonly": ("audio",), "videoonly": ("vision",),
         "missingaudioonly": ("joint", "audio"), "missingvideoonly": ("joint", "vision")}  # fmt: skip


def imported(
    state: Mapping[str, Tensor],
    where: str,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    mel_bins: int = 128,
    norm_pixels: bool = True,
    mode: str = "",
    loss: str = "auto",
    labels: str = "",
    sync: bool = False,
    keep_registers: bool = False,
    train_positions: bool | None = None,
) -> Imported:
    """An official state dict, without prefix, in our terms; see `read`."""
    deaf = [k for k in state if k.startswith(("patch_embed_v", "modality_v", "pos_embed_v", "blocks_v"))] == []
    for key in ("patch_embed_a.proj.weight", "pos_embed_a", "pos_embed_v", "blocks_u.0.mlp.fc1.weight"):
        check(
            key in state or (deaf and key == "pos_embed_v"),
            f"{where} is no CAV-MAE checkpoint: it has no {key}",
            fix="is it of another system?",
            error=CheckpointError,
        )
    mode = mode or ("audioonly" if deaf else "multimodal")
    check(mode in MODES, f"mode {mode!r} is unknown", fix=f"one of {', '.join(MODES)}")
    check(
        not deaf or ("video" not in mode and mode != "multimodal"),
        f"{where} hears alone, mode {mode!r} needs pictures",
        fix="import it with --option mode=audioonly",
        error=CheckpointError,
    )
    sync = sync or any(k == "register_tokens" or k.startswith(("constrative_head", "classifier_head")) for k in state)
    sync = sync or ("cls_token_a" in state and "cls_token_av" not in state)
    tensors: dict[str, Tensor] = {}
    ignored: dict[str, str] = {}
    touched = {_owner(k) for k, v in state.items() if is_spare_norm(k) and not _default(k, v)}
    for key, value in state.items():
        if key == "register_tokens":
            for m, half in zip(("audio", "vision"), value.chunk(2), strict=True):
                tensors[f"backbone.registers.{m}"] = half.clone()
        elif key.startswith("cls_token") and not sync:
            ignored[key] = "the ImageNet adaptation script attaches it; no CAV-MAE pass reads it"
        elif is_spare_norm(key) and _owner(key) not in touched:
            ignored[key] = "a norm that no pass uses, at its initial value"
        elif (name := our_name(key)) is not None:
            tensors[name] = to_ours(key, value)
        else:
            raise CheckpointError(f"{where} has the unknown key {key}", fix="is it a CAV-MAE checkpoint?")
    backbone = _backbone_table(state, tensors, where, heads, mel_bins, "backbone" in touched)
    if train_positions is not None:
        backbone["train_positions"] = train_positions
    frontend: dict[str, Any] = {
        "frames": backbone["audio_frames"],
        "image_size": backbone["image_size"],
        "mel_bins": mel_bins,
    }
    if sync:
        backbone |= {
            "cls_tokens": "cls_token_a" in state,
            "contrast_depth": _depth(state, "constrative_head_audio"),
            "registers": len(state["register_tokens"]) // 2 if "register_tokens" in state else 0,
            "keep_registers": keep_registers,
            "chain_shared": backbone["shared_depth"] == 1,
        }
        frontend |= SYNC_FRONTEND | {"span": max(SYNC_FRONTEND["span"], backbone["audio_frames"])}
    assets: dict[str, Any] = {}
    if "mlp_head.1.weight" in state or "classifier_head.weight" in state:
        for key in [k for k in tensors if k.startswith("decoder.")]:
            ignored[key] = "the decoder of pretraining; a classifier has none"
            del tensors[key]
        if "classifier_head.weight" in state:
            loss_table = _clip_table(state, mode, loss, where, backbone["heads"]) | {"spare_norms": "head" in touched}
            frontend["together"] = True
        else:
            loss_table = {
                "name": "classify",
                "classes": state["mlp_head.1.weight"].shape[0],
                "streams": list(MODES[mode]),
                "norm": True,
                "loss": loss,
            }
        if mode != "multimodal":  # its joint pass is that of this modality alone
            frontend["modalities"] = ["audio" if "audio" in mode else "vision"]
        if labels:
            from avssl_cav_mae.layout import read_labels

            kind = "index" if loss == "cross_entropy" else "multi_hot"
            assets["targets"] = {"kind": kind, "classes": list(read_labels(Path(labels)).values())}
    else:
        check(
            not deaf, f"{where} has neither pictures nor a head", fix="give the whole checkpoint", error=CheckpointError
        )
        loss_table = _loss_table(state, tensors, where, decoder_heads, norm_pixels, "decoder" in touched)
    return Imported(backbone, loss_table, tensors, frontend, ignored, assets, LICENCE, SYNC_SOURCE if sync else SOURCE)


def _owner(key: str) -> str:
    """Which part of ours a spare norm belongs to."""
    return "decoder" if key.startswith("decoder") else "head" if key.startswith("classifier") else "backbone"


def _backbone_table(
    state: Mapping[str, Tensor], tensors: dict[str, Tensor], where: str, heads: int | None, mel_bins: int, spare: bool
) -> dict[str, Any]:
    dim = state["patch_embed_a.proj.weight"].shape[0]
    hidden = state["blocks_u.0.mlp.fc1.weight"].shape[0]
    rows = mel_bins // PATCH
    columns, rest = divmod(tensors["backbone.positions.audio"].shape[0], rows)
    check(
        rest == 0,
        f"{where}: {columns * rows + rest} audio positions do not lie on {rows} rows of patches",
        fix="import it with the authors' number: --option mel_bins=128",
        error=CheckpointError,
    )
    pictures = "pos_embed_v" in state
    side = math.isqrt(tensors["backbone.positions.vision"].shape[0]) if pictures else 14
    return {
        "name": "cav_mae",
        "modalities": ["audio", "vision"] if pictures else ["audio"],
        "image_size": side * PATCH,
        "audio_frames": columns * PATCH,
        "mel_bins": mel_bins,
        "dim": dim,
        "depth": _depth(state, "blocks_a"),
        "shared_depth": _depth(state, "blocks_u"),
        "heads": _heads(heads, dim, 64, "heads", where),
        "mlp_ratio": hidden / dim,
        "train_positions": any(k in state for k in ("mlp_head.1.weight", "classifier_head.weight")),
        "spare_norms": spare,
    }


def _clip_table(state: Mapping[str, Tensor], mode: str, loss: str, where: str, heads: int) -> dict[str, Any]:
    """Sync's CAVMAEFT with self_attention_cls: twice as wide for both modalities, which are otherwise told by `mode`."""
    classes, width = state["classifier_head.weight"].shape
    both = width == 2 * state["patch_embed_a.proj.weight"].shape[0]
    check(
        both == (mode == "multimodal"),
        f"{where}: its classifier is {width} wide, which is not mode {mode!r}",
        fix=f"import it with --option mode={'multimodal' if both else 'audioonly'}",
        error=CheckpointError,
    )
    streams = ["audio", "vision"] if both else ["audio" if mode == "audioonly" else "vision"]
    return {
        "name": "cav_mae_clip",
        "classes": classes,
        "streams": streams,
        "loss": loss,
        "heads": heads,
        "depth": _depth(state, "classifier_layers"),
        "mlp_ratio": state["classifier_layers.0.mlp.fc1.weight"].shape[0] / width,
    }


def _loss_table(
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    where: str,
    heads: int | None,
    norm_pixels: bool,
    spare: bool,
) -> dict[str, Any]:
    if "decoder_embed.weight" not in state:  # an encoder alone
        return {"name": "cav_mae", "decoder_depth": 0, "reconstruction_weight": 0.0}
    dim = state["decoder_embed.weight"].shape[0]
    return {
        "name": "cav_mae",
        "norm_pixels": norm_pixels,
        "decoder_dim": dim,
        "decoder_depth": _depth(state, "decoder_blocks"),
        "decoder_heads": _heads(heads, dim, 32, "decoder_heads", where),
        "spare_norms": spare,
        "decoder_mlp_ratio": state["decoder_blocks.0.mlp.fc1.weight"].shape[0] / dim,
    }


def _default(key: str, value: Tensor) -> bool:
    return bool((value == (1.0 if key.endswith("weight") else 0.0)).all())


def _depth(state: Mapping[str, Tensor], stack: str) -> int:
    return sum(bool(re.fullmatch(rf"{stack}\.\d+\.norm1\.weight", k)) for k in state)


def _heads(given: int | None, dim: int, width: int, option: str, where: str) -> int:
    """As told, or the official width of a head. A file does not show it, and a wrong guess loads without an error."""
    if given is None:
        check(
            dim % width == 0,
            f"{where}: a width of {dim} does not say how many heads there are",
            fix=f"import it with the authors' number: --option {option}={12 if option == 'heads' else 16}",
            error=CheckpointError,
        )
        return dim // width
    check(
        given > 0 and dim % given == 0,
        f"{option}={given} does not divide the width {dim}",
        fix="give the authors' number",
    )
    return given


def mentions(path: Path, wanted: tuple[bytes, ...], unwanted: tuple[bytes, ...] = ()) -> bool:
    """Whether the names of a torch file's tensors contain all wanted strings and no unwanted one; loads no tensor."""
    import zipfile

    if not path.is_file():
        return False
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                pickles = [i for i in archive.infolist() if i.filename.endswith("data.pkl") and i.file_size < 1 << 25]
                names = archive.read(pickles[0]) if pickles else b""
        else:  # an old torch file or safetensors: names come first
            with path.open("rb") as file:
                names = file.read(1 << 20)
    except (OSError, zipfile.BadZipFile):
        return False
    return all(w in names for w in wanted) and not any(u in names for u in unwanted)


def detect(path: Path) -> bool:
    return mentions(path, (b"patch_embed_a.proj.weight", b"blocks_u.0.norm1_a.weight"))


# -- out -----------------------------------------------------------------------------------------------------------
def write(model: Any, path: str | Path) -> list[Path]:
    """A Loss, or a Model with its run directory, as an official .pth: a flat dict with the `module.` prefix.

    A pretraining loss gives the CAVMAE layout, a classifier with LayerNorm and Linear the CAVMAEFT one, or, of a backbone
    for sound alone, the CAVMAEFTAudio one; a classifier of clips that of Sync's CAVMAEFT. Raises CheckpointError for a
    model that the official classes cannot hold.
    """
    state = official_state(model)
    path = Path(path)
    torch.save({PREFIX + k: v for k, v in state.items()}, path)
    return [path]


def official_state(model: Any) -> dict[str, Tensor]:
    """Official key (no prefix) -> tensor of a Loss or Model."""
    config = model.backbone.config
    check(
        config.patch == PATCH,
        f"the official code has patches of {PATCH}, this model of {config.patch}",
        fix="keep it in our own format",
        error=CheckpointError,
    )
    own = _own_state(model)
    clip = any(k == "head.cls" for k in own)  # of the two layouts of a head, one has this token
    check(
        clip or not any(s.endswith((".own", ".alone")) for s in getattr(_head(model), "streams", ())),
        "no official class holds the mean over a clip's pictures",
        fix="keep it in our own format",
        error=CheckpointError,
    )
    names = {v: k for k, v in VECTORS.items()}
    parts = {v: k for k, v in PARTS.items() if not v.startswith("head.") or k.startswith("classifier") == clip}
    stacks = {v: k for k, v in STACKS.items()}
    inner = {v: k for k, v in INNER.items()}
    block = re.compile(rf"({'|'.join(map(re.escape, stacks))})\.(\d+)\.(.+)\.(weight|bias)")
    out: dict[str, Tensor] = {}
    for name, value in own.items():
        module, _, leaf = name.rpartition(".")
        if name in names:
            key = names[name]
        elif module in parts:
            key = f"{parts[module]}.{leaf}"
        elif found := block.fullmatch(name):
            key = f"{stacks[found[1]]}.{found[2]}.{inner[found[3]]}.{found[4]}"
        elif name.startswith("backbone.registers"):
            continue
        else:
            raise CheckpointError(f"the official layout has no place for {name}", fix="keep it in our own format")
        out[key] = to_official(key, value.detach().cpu()).clone()
    if config.registers:
        halves = [own.get(f"backbone.registers.{m}") for m in ("audio", "vision")]
        check(
            all(h is not None for h in halves),
            "the official code has registers for both modalities only",
            fix="keep it in our own format",
            error=CheckpointError,
        )
        out["register_tokens"] = torch.cat([h.detach().cpu() for h in halves if h is not None])
    for key in [k for k in out if re.fullmatch(r"\w+\.\d+\.norm[12]\.(weight|bias)", k)]:  # norms that nothing uses
        stem, _, leaf = key.rpartition(".")
        for letter in "av":
            out.setdefault(f"{stem}_{letter}.{leaf}", (torch.ones if leaf == "weight" else torch.zeros)(out[key].shape))
    return out


def _head(model: Any) -> Any:
    return model.exports().get("head") if hasattr(model, "exports") else model.head


def _own_state(model: Any) -> dict[str, Tensor]:
    """backbone.*, and decoder.* or head.* where there are any."""
    if hasattr(model, "exports"):  # a Loss
        return dict(model.state_dict())
    out = {f"backbone.{k}": v for k, v in model.backbone.state_dict().items()}
    if model.head is not None:
        return out | {f"head.{k}": v for k, v in model.head.state_dict().items()}
    training = Path(model.path) / "training.safetensors"  # the decoder of a pretraining run
    if training.is_file():
        out |= {k: v for k, v in load_safetensors(training).items() if k.startswith("decoder.")}
    return out
