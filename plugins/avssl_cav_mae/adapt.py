"""ImageNet-MAE weights as CAV-MAE's initial ones (official src/adapt_vmae_weights.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avssl.errors import CheckpointError, check
from avssl.imports import Imported
from avssl.nn.positions import sincos_2d
from avssl_cav_mae.checkpoint import PATCH, imported, load_state, mentions

LICENCE = "CC-BY-NC-4.0"
SOURCE = "github.com/facebookresearch/mae"
VECTOR_SEED = 0  # modality vectors have no counterpart in MAE


def detect(path: Path) -> bool:
    return mentions(path, (b"decoder_pos_embed", b"patch_embed.proj.weight", b"decoder_pred.weight"), (b"blocks_u",))


def read(
    path: Path,
    *,
    audio_frames: int = 1024,
    mel_bins: int = 128,
    shared_depth: int = 1,
    seed: int = VECTOR_SEED,
    **options: Any,
) -> Imported:
    """A full ImageNet-MAE checkpoint (with decoder) as a CAV-MAE pretraining model.

    Options: audio_frames, mel_bins and shared_depth of the model to make; seed of the modality vectors, which MAE does not have;
    heads, decoder_heads and norm_pixels as in the format `cav_mae`. Raises CheckpointError.
    """
    official = adapted(load_state(path), audio_frames, mel_bins, seed, str(path), shared_depth)
    official = {k: v for k, v in official.items() if "cls_token" not in k}
    out = imported(official, str(path), mel_bins=mel_bins, **options)
    ignored = {**out.ignored, "cls_token": "CAV-MAE has no class token"}
    return Imported(out.backbone, out.loss, out.tensors, out.frontend, ignored, out.assets, LICENCE, SOURCE)


def adapted(
    state: Mapping[str, Tensor],
    audio_frames: int,
    mel_bins: int = 128,
    seed: int = VECTOR_SEED,
    where: str = "checkpoint",
    shared_depth: int = 1,
) -> dict[str, Tensor]:
    """The official mapping, in official keys without prefix, cls tokens included as the authors' script writes them.

    The last `shared_depth` blocks become the shared ones, their norms all three pairs, the others both modalities'. The
    audio projection is the sum (not the mean) over the colours, the audio prediction the first rows of the picture's.
    """
    depth = sum(bool(re.fullmatch(r"blocks\.\d+\.norm1\.weight", k)) for k in state)
    check(
        depth >= 2 and "decoder_pred.weight" in state and "patch_embed.proj.weight" in state,
        f"{where} is no ImageNet-MAE checkpoint with its decoder",
        fix="download mae_pretrain_vit_base_full.pth",
        error=CheckpointError,
    )
    check(
        0 < shared_depth < depth,
        f"shared_depth is {shared_depth}, {where} has {depth} blocks",
        fix=f"give 1 to {depth - 1}",
    )
    own = depth - shared_depth
    rows, columns = mel_bins // PATCH, audio_frames // PATCH
    dim, decoder_dim = state["patch_embed.proj.weight"].shape[0], state["decoder_embed.weight"].shape[0]
    generator = torch.Generator().manual_seed(seed)
    out: dict[str, Tensor] = {
        "pos_embed_a": sincos_2d(dim, rows, columns)[None],
        "pos_embed_v": state["pos_embed"][:, 1:],
        "decoder_pos_embed_a": sincos_2d(decoder_dim, rows, columns)[None],
        "decoder_pos_embed_v": state["decoder_pos_embed"][:, 1:],
        "patch_embed_v.proj.weight": state["patch_embed.proj.weight"],
        "patch_embed_v.proj.bias": state["patch_embed.proj.bias"],
        "patch_embed_a.proj.weight": state["patch_embed.proj.weight"].sum(1, keepdim=True),
        "patch_embed_a.proj.bias": state["patch_embed.proj.bias"],
        "mask_token": state["mask_token"],
        **{f"cls_token_{s}": state["cls_token"] for s in ("a", "v", "av") if "cls_token" in state},
        **{f"modality_{m}": torch.randn(1, 1, dim, generator=generator) * 0.02 for m in "av"},
        **{f"decoder_modality_{m}": torch.randn(1, 1, decoder_dim, generator=generator) * 0.02 for m in "av"},
    }
    for leaf in ("weight", "bias"):
        out[f"decoder_embed.{leaf}"] = state[f"decoder_embed.{leaf}"]
        out[f"decoder_norm.{leaf}"] = state[f"decoder_norm.{leaf}"]
        out[f"decoder_pred_v.{leaf}"] = state[f"decoder_pred.{leaf}"]
        out[f"decoder_pred_a.{leaf}"] = state[f"decoder_pred.{leaf}"][: PATCH**2]
        for name in ("norm", "norm_a", "norm_v"):
            out[f"{name}.{leaf}"] = state[f"norm.{leaf}"]
    for key, value in state.items():
        if key.startswith("decoder_blocks."):
            out[key] = value
        elif found := re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", key):
            number, module, leaf = int(found[1]), found[2], found[3]
            if number < own:
                out |= {f"blocks_{m}.{number}.{module}.{leaf}": value for m in "av"}
            else:
                names = [module] if not module.startswith("norm") else [module, f"{module}_a", f"{module}_v"]
                out |= {f"blocks_u.{number - own}.{name}.{leaf}": value for name in names}
    return out
