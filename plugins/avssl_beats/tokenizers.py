"""What gives a patch its label: a frozen random projection, or a trained network with a codebook."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avssl.batch import Batch
from avssl.errors import CheckpointError, UsageError, check
from avssl_beats.backbone import Beats
from avssl_beats.config import RandomTokenizerConfig, TokenizerConfig
from avssl_beats.quantizer import Codebook, l2, nearest

CHAIN_WIDTH = 512  # of the random patch convolution of the public re-implementation


def flat_patches(mel: Tensor, size: int) -> Tensor:
    """(B, T, F) -> (B, N, size^2): patch bands * t + k, flattened frame by frame; what fills no patch is dropped."""
    steps, bands = mel.shape[1] // size, mel.shape[2] // size
    cut = mel[:, : steps * size, : bands * size].unflatten(1, (steps, size)).unflatten(3, (bands, size))
    return cut.transpose(2, 3).reshape(mel.shape[0], steps * bands, size * size)


class RandomTokenizer(nn.Module):
    """argmin_i || v_i - W x || with frozen random W and V (section 3.2.1).

    The printed formula has no normalisation and then uses a twentieth of the codes; what it cites normalises:
    none        the formula as printed
    l2          both sides to unit length (BEST-RQ, arXiv:2202.01855)
    layer_norm  the projected patch, without affine parameters
    patch_l2    every patch to mean 0 and deviation 1 first, then l2
    chain       random patch convolution, layer norm, projection, layer norm (ESPnet's BEATs)
    W is Xavier-normal, V standard normal, both from `seed`; they are stored with the run.
    """

    convolution: Tensor  # (CHAIN_WIDTH, patch^2), of "chain" alone
    projection: Tensor  # W
    codes: Tensor  # V, one code per row

    def __init__(self, cfg: RandomTokenizerConfig, patch: int) -> None:
        super().__init__()
        self.normalise, self.patch = cfg.normalise, patch
        rng, width = torch.Generator().manual_seed(cfg.seed), patch * patch

        def xavier(rows: int, columns: int, fan_out: int) -> Tensor:
            return torch.randn(rows, columns, generator=rng) * math.sqrt(2 / (columns + fan_out))

        if cfg.normalise == "chain":
            self.register_buffer("convolution", xavier(CHAIN_WIDTH, width, CHAIN_WIDTH * width))
            width = CHAIN_WIDTH
        self.register_buffer("projection", xavier(cfg.code_dim, width, cfg.code_dim))
        self.register_buffer("codes", torch.randn(cfg.codes, cfg.code_dim, generator=rng))

    @torch.no_grad()
    def labels(self, batch: Batch) -> Tensor:
        """(B, N) int64 of every patch of the batch, padded ones included."""
        return self.assign(flat_patches(batch.need("audio").x, self.patch))

    def assign(self, patches: Tensor) -> Tensor:
        """(..., patch^2) -> (...) int64."""
        with torch.autocast(patches.device.type, enabled=False):
            x, codes = patches.to(self.codes.dtype), self.codes
            if self.normalise == "patch_l2":
                x = F.layer_norm(x, x.shape[-1:])
            elif self.normalise == "chain":
                x = F.layer_norm(x @ self.convolution.t(), (CHAIN_WIDTH,))
            x = x @ self.projection.t()
            if self.normalise in ("layer_norm", "chain"):
                x = F.layer_norm(x, x.shape[-1:])
            elif self.normalise in ("l2", "patch_l2"):
                x, codes = l2(x), l2(codes)
            return nearest(x, codes)


class TokenizerHead(nn.Module):
    """From an encoder's patches to codes: Linear, tanh, Linear, codebook."""

    def __init__(self, dim: int, cfg: TokenizerConfig) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, cfg.code_dim))
        self.codebook = Codebook(cfg.codes, cfg.code_dim, cfg.decay)


class Tokenizer(nn.Module):
    """A trained tokenizer, frozen and in evaluation mode for good."""

    def __init__(self, backbone: Beats, head: TokenizerHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Tokenizer:
        return self  # Module.train() of the loss recurses, and would switch the dropout on

    @torch.no_grad()
    def labels(self, batch: Batch) -> Tensor:
        """(B, N) int64 of every patch of the batch, padded ones included. Changes nothing."""
        return self.head.codebook(self.head.down(self.backbone(batch).tokens["audio"])).indices


def load_tokenizer(path: str, patch: int, statistics: tuple[float, float]) -> Tokenizer:
    """A tokenizer from a run directory, an imported model or an official file.

    patch: the size that the labels must have; statistics: the mean and deviation that this run's front-end uses.
    """
    from avssl.imports import load_strictly
    from avssl.model import build_backbone, read_initial
    from avssl.registry import load
    from avssl.schema import structure

    initial = read_initial(path)
    table = dict(initial.tables["loss"])
    check(
        table.pop("name") == "beats_tokenizer",
        f"{path} is no BEATs tokenizer",
        fix="train one with the loss beats_tokenizer, or give an official Tokenizer_*.pt",
        error=CheckpointError,
    )
    check_statistics(path, initial.tables["frontend"], statistics)
    backbone = build_backbone(initial.tables)
    assert isinstance(backbone, Beats)
    theirs = backbone.config.patch
    check(
        theirs == patch,
        f"{path} labels patches of {theirs}, this backbone has {patch}",
        fix=f"--set backbone.patch={theirs}",
    )
    head = TokenizerHead(backbone.dim, structure(load("loss", "beats_tokenizer", "config"), table, "loss"))
    for module, prefix in ((backbone, "backbone."), (head, "tokenizer.")):
        own = {k.removeprefix(prefix): v for k, v in initial.tensors.items() if k.startswith(prefix)}
        load_strictly(module, own, path)
    return Tokenizer(backbone, head)


def check_statistics(path: str, frontend: dict[str, float], statistics: tuple[float, float]) -> None:
    """Refuse a model whose features were normalised otherwise: it would run, and its labels would mean nothing."""
    theirs = (frontend["mean"], frontend["std"])
    if any(not math.isclose(a, b, rel_tol=1e-6) for a, b in zip(theirs, statistics, strict=True)):
        mean, std = theirs
        raise UsageError(
            f"{path} was trained with the front-end statistics {theirs}, this run says {statistics}",
            fix=f"set frontend.mean={mean}, frontend.std={std} and loss.statistics=[{mean}, {std}]",
        )
