"""The objective: reconstruct what is hidden, and tell which sound belongs to which picture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from avssl.batch import Batch, generators
from avssl.errors import UsageError, check
from avssl.loss import Loss, LossOutput, Term
from avssl.nn.positions import resize_grid
from avssl_cav_mae.backbone import MODALITIES, CavMae
from avssl_cav_mae.config import CavMaeLossConfig
from avssl_cav_mae.decoder import Decoder
from avssl_cav_mae.masks import Masks, draw_masks
from avssl_cav_mae.patches import normalised, patches, planes, unpatch


class CavMaeLoss(Loss[CavMae]):
    """lambda_mae * (mse_audio + mse_vision) over hidden patches + lambda_c * InfoNCE (paper, Sec. 2.3, Eq. 1-7).

    Both work on the visible patches alone: the joint pass feeds the decoder, the two single passes the contrast.
    """

    config: CavMaeLossConfig
    contrastive = True  # type: ignore[misc]

    def __init__(self, backbone: CavMae, config: CavMaeLossConfig) -> None:
        super().__init__(backbone, config)
        check(
            len(backbone.modalities) == len(MODALITIES),
            f"the objective compares sound and picture, the backbone reads {' and '.join(backbone.modalities)} alone",
            fix='--set \'backbone.modalities=["audio", "vision"]\'',
        )
        has_cls = backbone.config.cls_tokens
        check(
            has_cls or config.contrast_on in ("auto", "mean"),
            f"loss.contrast_on = {config.contrast_on!r} needs cls tokens",
            fix="--set backbone.cls_tokens=true",
        )
        self.contrast_on = ("cls" if has_cls else "mean") if config.contrast_on == "auto" else config.contrast_on
        self.decoder = Decoder(config, backbone.config) if config.decoder_depth else None
        self.contrastive = config.contrast_weight > 0  # else there is nothing to gather
        if self.decoder is not None and config.reconstruction_weight == 0:
            self.decoder.requires_grad_(False)  # it is kept for its checkpoint, but no gradient will come

    def sample(self, batch: Batch) -> Masks:
        c = self.config
        grids = {m: (g.shape[0], g.shape[1]) for m, g in self.backbone.grid(batch).items()}
        for m in MODALITIES:
            batch.need(m)
        ratios = {"audio": c.mask_ratio_audio, "vision": c.mask_ratio_vision}
        if c.mask_ratio_range is not None:
            # One ratio for all items, or they would keep different numbers of patches: the first item's seed decides.
            low, high = c.mask_ratio_range
            generator = next(iter(generators(batch.seeds[:1], salt=2)))
            ratios = {m: low + (high - low) * torch.rand((), generator=generator).item() for m in MODALITIES}
        return draw_masks(batch.seeds, grids, ratios, {"audio": c.mask_mode, "vision": "unstructured"})

    def counts(self, batch: Batch, draw: Masks) -> dict[str, int]:
        if not self.config.reconstruction_weight:
            return {}
        return {f"reconstruct_{m}": len(batch) * draw.hidden(m).shape[1] for m in MODALITIES}

    def local(self, batch: Batch, draw: Masks) -> tuple[LossOutput, dict[str, Tensor]]:
        draw = _on(draw, batch)
        stacked = self.encode(batch, draw)
        out = LossOutput({})
        if self.config.reconstruction_weight:
            out = self.reconstruction(batch, draw, self.backbone.fuse(stacked))
        representations: dict[str, Tensor] = {}
        if self.config.contrast_weight:
            for m, x in stacked.items():
                tokens, cls = self.backbone.single(m, x, chained=self.config.chain_shared)
                if self.contrast_on in ("mean", "both"):
                    representations[f"{m}.mean"] = tokens.mean(1).float()
                if self.contrast_on in ("cls", "both"):
                    assert cls is not None
                    representations[f"{m}.cls"] = cls.float()
        return out, representations

    def joint(self, representations: Mapping[str, Tensor]) -> LossOutput:
        kinds = [k for k in ("mean", "cls") if f"audio.{k}" in representations]
        if not kinds:
            return LossOutput({})
        results = [
            info_nce(
                representations[f"audio.{k}"],
                representations[f"vision.{k}"],
                self.config.temperature,
                self.config.bidirectional,
            )
            for k in kinds
        ]
        loss, correct = (torch.stack(part).mean() for part in zip(*results, strict=True))
        n = len(representations[f"audio.{kinds[0]}"])
        return LossOutput(
            {"contrast": Term(self.config.contrast_weight, loss, n)}, {"contrast_accuracy": (correct.detach(), n)}
        )

    # -- the parts --------------------------------------------------------------------------------------------------
    def encode(self, batch: Batch, draw: Masks) -> dict[str, Tensor]:
        """modality -> its visible patches after its own blocks."""
        return {m: self.backbone.stack(m, self.backbone.embed(batch, m, draw.visible(m))) for m in MODALITIES}

    def reconstruction(self, batch: Batch, draw: Masks, latent: Tensor) -> LossOutput:
        """Mean squared error per hidden patch, summed; the count is the number of hidden patches."""
        terms = {}
        for m, guess in self.predict(batch, draw, latent).items():
            target = patches(planes(batch, m), self.backbone.config.patch, draw.hidden(m))  # (B, H, p*p*C)
            if self.config.norm_pixels:
                target = normalised(target.float())[0]
            error = (guess.float() - target).square().mean(-1).sum()
            terms[f"reconstruct_{m}"] = Term(self.config.reconstruction_weight, error, guess.shape[0] * guess.shape[1])
        return LossOutput(terms)

    def predict(self, batch: Batch, draw: Masks, latent: Tensor, everywhere: bool = False) -> dict[str, Tensor]:
        """The decoder's values; see `Decoder.forward`."""
        if self.decoder is None:
            raise UsageError("this model has no decoder", fix="pretrain with loss.decoder_depth above 0")
        tables = {}
        for m, grid in self.backbone.grid(batch).items():  # a shorter sound lies on the table's beginning
            rows, columns = grid.shape
            tables[m] = resize_grid(self.decoder.positions[m], self.backbone.config.grid(m), (rows, columns))
        return self.decoder(latent, draw, tables, everywhere=everywhere)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, draw: Masks) -> dict[str, dict[str, Tensor]]:
        """Inpainting: hidden patches from the prediction, visible ones from the input.

        audio (B, T, F), vision (B, 3, H, W), in the frontend's normalised units; "masked" has 0 at hidden patches. A
        model that was trained on normalised pixels predicts shapes only: they get the true patch's mean and deviation.
        """
        draw = _on(draw, batch)
        guesses = self.predict(batch, draw, self.backbone.fuse(self.encode(batch, draw)), everywhere=True)
        out = {}
        for m, guess in guesses.items():
            own = patches(planes(batch, m), self.backbone.config.patch)  # (B, N, p*p*C)
            if self.config.norm_pixels:
                _, mean, std = normalised(own.float())
                guess = guess * std + mean
            out[m] = {
                "original": batch.streams[m].x,
                "masked": self.paste(batch, m, draw, torch.zeros_like(own)),
                "reconstructed": self.paste(batch, m, draw, guess),
            }
        return out

    def paste(self, batch: Batch, modality: str, draw: Masks, guess: Tensor) -> Tensor:
        """The input with `guess` (B, N, p*p*C) at the hidden patches, in the input's shape."""
        x, patch = planes(batch, modality), self.backbone.config.patch
        hidden = draw.mask(modality).bool()[..., None]
        mixed = torch.where(hidden, guess.to(x.dtype), patches(x, patch))
        full = unpatch(mixed, (x.shape[2] // patch, x.shape[3] // patch), patch)
        return full[:, 0].transpose(1, 2) if modality == "audio" else full


def info_nce(audio: Tensor, vision: Tensor, temperature: float, bidirectional: bool) -> tuple[Tensor, Tensor]:
    """audio, vision: (B, D), row i of one belongs to row i of the other. Returns the summed loss and hits.

    Each picture looks for its sound: softmax over sounds; bidirectional: the mean with each sound looking for its
    picture (official forward_contrastive).
    """
    with torch.autocast(audio.device.type, enabled=False):  # a temperature of 0.05 magnifies the rounding of bf16
        audio, vision = F.normalize(audio.float(), dim=-1), F.normalize(vision.float(), dim=-1)
        logits = vision @ audio.T / temperature  # (B, B), rows are pictures
    truth = torch.arange(len(logits), device=logits.device)
    views = (logits, logits.T) if bidirectional else (logits,)
    losses = torch.stack([F.cross_entropy(view, truth, reduction="sum") for view in views])
    hits = torch.stack([(view.argmax(1) == truth).sum().float() for view in views])
    return losses.mean(), hits.mean()


def _on(draw: Masks, batch: Batch) -> Masks:
    """The draw where the batch is."""
    device = batch.need("audio").x.device
    return Masks({m: o.to(device, non_blocking=True) for m, o in draw.order.items()}, draw.kept)


__all__ = ["CavMaeLoss", "info_nce"]
