"""The joint decoder of the masked autoencoder: training needs it, deployment does not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from avssl.nn.positions import sincos_2d
from avssl_cav_mae.blocks import EPS, Block, initialise
from avssl_cav_mae.config import CavMaeConfig, CavMaeLossConfig
from avssl_cav_mae.masks import Masks
from avssl_cav_mae.patches import CHANNELS


class Decoder(nn.Module):
    """From the visible patches' latents to the values of all hidden ones (paper, Sec. 2.3; official forward_decoder).

    Attention does not mind the order of its tokens, so the sequence is [visible, hidden] instead of the grid's order:
    nothing is un-shuffled, and the last block computes only what the loss will read.
    """

    def __init__(self, config: CavMaeLossConfig, encoder: CavMaeConfig) -> None:
        super().__init__()
        dim, size = config.decoder_dim, encoder.patch**2
        self.embed = nn.Linear(encoder.dim, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.decoder_heads, config.decoder_mlp_ratio, spare=config.spare_norms)
            for _ in range(config.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, EPS)
        self.predict = nn.ModuleDict({m: nn.Linear(dim, size * c) for m, c in CHANNELS.items()})
        initialise(self)
        self.mask_token = nn.Parameter(torch.randn(dim) * 0.02)
        self.modality = nn.ParameterDict({m: nn.Parameter(torch.randn(dim) * 0.02) for m in CHANNELS})
        self.positions = nn.ParameterDict(
            {m: nn.Parameter(sincos_2d(dim, *encoder.grid(m)), encoder.train_positions) for m in CHANNELS}
        )

    def forward(
        self, latent: Tensor, masks: Masks, tables: Mapping[str, Tensor] | None = None, *, everywhere: bool = False
    ) -> dict[str, Tensor]:
        """latent: (B, K_audio + K_vision, D), the visible patches in the order of `masks`.

        tables: position tables for inputs of another length, default the decoder's own.
        Returns modality -> (B, H, patch * patch * C) at the hidden patches, in the order of `masks.hidden`;
        everywhere=True -> (B, N, ...) at all patches, in the order of the grid.
        """
        names = list(masks.order)
        places: Mapping[str, Tensor] | nn.ParameterDict = tables or self.positions
        where = {m: places[m] + self.modality[m] for m in names}  # (N, Dd)
        seen = torch.cat([where[m][masks.visible(m)] for m in names], 1)
        unseen = torch.cat([where[m][masks.hidden(m)] for m in names], 1)
        x = torch.cat([self.embed(latent) + seen, self.mask_token + unseen], 1)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.norm(self.blocks[-1](x, start=0 if everywhere else seen.shape[1]))
        hidden = [masks.order[m].shape[1] - masks.kept[m] for m in names]
        if not everywhere:
            return {m: self.predict[m](part) for m, part in zip(names, x.split(hidden, 1), strict=True)}
        parts = x.split([*(masks.kept[m] for m in names), *hidden], 1)
        out = {}
        for i, m in enumerate(names):
            back = masks.order[m].argsort(1)  # the inverse permutation
            full = torch.cat([parts[i], parts[len(names) + i]], 1)
            out[m] = self.predict[m](full.gather(1, back[..., None].expand_as(full)))
        return out
