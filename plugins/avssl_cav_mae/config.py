"""Configs of CAV-MAE. No torch here: listings and recipes read this file."""

from __future__ import annotations

from typing import Literal

from avssl.errors import check
from avssl.schema import config

MaskMode = Literal["unstructured", "time", "frequency", "time_frequency"]


@config
class CavMaeConfig:
    """The encoder. Defaults are the base model (Gong et al., ICLR 2023, Sec. 4.1): 164.5 M parameters."""

    modalities: tuple[Literal["audio", "vision"], ...] = ("audio", "vision")  # one alone: official CAVMAEFTAudio
    image_size: int = 224  # pixels, square
    audio_frames: int = 1024  # spectrogram frames that the position table covers; shorter inputs use its beginning
    mel_bins: int = 128
    patch: int = 16
    dim: int = 768
    depth: int = 11  # blocks of each modality
    shared_depth: int = 1  # blocks that both share; officially 12 - depth
    heads: int = 12
    mlp_ratio: float = 4.0
    train_positions: bool = False  # official tr_pos: fixed in pretraining, trained in fine-tuning
    # CAV-MAE Sync (Araujo et al., CVPR 2025)
    cls_tokens: bool = False  # a learned token per modality carries the contrast, patches the reconstruction
    registers: int = 0  # learned tokens per modality, dropped after the modality's blocks
    keep_registers: bool = False  # drop them after the shared blocks instead
    contrast_depth: int = 0  # blocks per modality between the shared blocks and the contrast
    chain_shared: bool = True  # False: Sync's features, where each of several shared blocks gets the first's input
    # Official files carry modality norms in every block, though only shared ones use them. True keeps them, still, so
    # that a file whose unused norms are not 1 and 0 comes out as it went in.
    spare_norms: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "audio_frames", "mel_bins"):
            check(
                getattr(self, name) % self.patch == 0 and getattr(self, name) > 0,
                f"backbone.{name} is {getattr(self, name)}",
                fix=f"use a multiple of the patch, {self.patch}",
            )
        check(
            self.dim % self.heads == 0,
            f"backbone.dim {self.dim} does not divide into {self.heads} heads",
            fix="choose heads that divide dim",
        )
        check(self.dim % 4 == 0, f"backbone.dim is {self.dim}", fix="use a multiple of 4, as sine-cosine tables need")
        check(self.depth >= 0 and self.shared_depth >= 1, "backbone.shared_depth is below 1", fix="use at least 1")
        check(
            0 < len(self.modalities) == len(set(self.modalities)),
            f"backbone.modalities is {self.modalities}",
            fix='["audio", "vision"], or one of them',
        )

    def grid(self, modality: str) -> tuple[int, int]:
        """(rows, columns) of a modality's patches: mel x time, or y x x."""
        high, wide = (self.mel_bins, self.audio_frames) if modality == "audio" else (self.image_size, self.image_size)
        return high // self.patch, wide // self.patch


@config
class CavMaeLossConfig:
    """Masked reconstruction plus contrast (paper, Eq. 1-7). Weight 0 switches a part off: contrast_weight = 0 is
    AV-MAE, reconstruction_weight = 0 is contrastive learning on masked input (CAV)."""

    mask_ratio_audio: float = 0.75
    mask_ratio_vision: float = 0.75
    mask_mode: MaskMode = "unstructured"  # of the audio; pictures are always unstructured
    mask_ratio_range: tuple[float, float] | None = None  # Sync: draw both ratios anew for each batch; (0.6, 0.9) there
    contrast_weight: float = 0.01  # lambda_c
    reconstruction_weight: float = 1.0  # the scripts'; the official argparse default is 3.0
    temperature: float = 0.05  # fixed
    bidirectional: bool = False  # False: each picture looks for its sound; True: the mean of both directions
    norm_pixels: bool = True  # regress patches normalised by their own mean and variance; False for inpainting
    chain_shared: bool = False  # contrastive passes of several shared blocks; officially each gets the first's input
    contrast_on: Literal["auto", "mean", "cls", "both"] = "auto"  # auto: cls tokens where the backbone has them
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_mlp_ratio: float = 4.0
    spare_norms: bool = False  # as in the backbone's config, for the decoder's blocks

    def __post_init__(self) -> None:
        for name in ("mask_ratio_audio", "mask_ratio_vision"):
            check(0 <= getattr(self, name) < 1, f"loss.{name} is {getattr(self, name)}", fix="use a share below 1")
        if self.mask_ratio_range is not None:
            low, high = self.mask_ratio_range
            check(0 <= low <= high < 1, f"loss.mask_ratio_range is {self.mask_ratio_range}", fix="e.g. [0.6, 0.9]")
        check(self.temperature > 0, f"loss.temperature is {self.temperature}", fix="give a positive number, e.g. 0.05")
        check(
            self.contrast_weight > 0 or self.reconstruction_weight > 0,
            "both weights of the loss are 0",
            fix="--set loss.contrast_weight=0.01",
        )
        check(
            min(self.contrast_weight, self.reconstruction_weight) >= 0,
            "a weight of the loss is negative",
            fix="use 0 to switch a part off",
        )
        check(
            self.decoder_depth > 0 or self.reconstruction_weight == 0,
            "a reconstruction needs a decoder",
            fix="--set loss.decoder_depth=8, or loss.reconstruction_weight=0",
        )
        check(
            self.decoder_dim % self.decoder_heads == 0 and self.decoder_dim % 4 == 0,
            f"loss.decoder_dim {self.decoder_dim} does not divide into {self.decoder_heads} heads and by 4",
            fix="choose decoder_heads that divide decoder_dim",
        )


@config
class CavMaeFrontendConfig:
    """From sound to log-mel and from frames to a picture. The statistics are the authors', measured on AudioSet and
    used unchanged for every data set of the paper (src/run_cavmae_pretrain.py)."""

    modalities: tuple[Literal["audio", "vision"], ...] = ("audio", "vision")  # what to read of each item
    rate: int = 16000  # Hz; sound is resampled to it
    mel_bins: int = 128
    frames: int = 1024  # spectrogram frames: longer sound is cut, shorter padded with 0 before normalisation
    mean: float = -5.081
    std: float = 4.4849
    crop: Literal["random", "start"] = "random"  # training, of sound longer than the window; evaluation: from the start
    image_size: int = 224
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    pictures: int = 10  # frames per clip to choose from, at i/pictures of the window
    picture: int | None = None  # the frame of a single evaluation view; None = the middle one, pictures // 2
    ensemble: bool = True  # evaluation averages predictions over all `pictures`; False: the single view
    # Sync: frames of the whole clip; the window of `frames` is laid around the chosen picture. A recording that is more
    # than a tenth shorter counts with its own length, so that sound and picture stay together. 0 = off
    span: int = 0
    together: bool = False  # Sync's fine-tuning: all `pictures` of a clip, each with its window of sound, are one item
    # Augmentation, in training only
    noise: bool = False  # + U[0,1) * U[0,1) / 10 on the normalised spectrogram, then a random roll in time
    freq_mask: int = 0  # SpecAug: up to this many bins ...
    time_mask: int = 0  # ... and frames are set to 0 before normalisation
    mixup: float = 0.0  # share of items that are mixed with another one
    mixup_beta: float = 10.0  # lambda ~ Beta(mixup_beta, mixup_beta)
    label_smoothing: float = 0.0  # multi-hot targets: floor s/C, positives 1 - s

    def __post_init__(self) -> None:
        check(len(self.modalities) > 0, "frontend.modalities is empty", fix='e.g. ["audio", "vision"]')
        check(self.frames > 0 and self.rate > 0, "frontend.frames and rate must be positive", fix="e.g. 1024 and 16000")
        check(self.std > 0, f"frontend.std is {self.std}", fix="give a positive number; `avssl data stats` measures it")
        check(self.pictures > 0, f"frontend.pictures is {self.pictures}", fix="use at least 1")
        check(
            self.picture is None or 0 <= self.picture < self.pictures,
            f"frontend.picture is {self.picture}",
            fix=f"use 0 to {self.pictures - 1}",
        )
        check(
            0 <= self.mixup <= 1 and 0 <= self.label_smoothing < 1,
            "frontend.mixup or label_smoothing is no share",
            fix="use 0 to 1",
        )
        check(
            self.span == 0 or self.span >= self.frames,
            f"frontend.span {self.span} is below frames {self.frames}",
            fix="the span is the whole clip, e.g. 1024",
        )
        check(
            not (self.together and self.noise),
            "frontend.noise rolls sound in time, away from its pictures",
            fix="--set frontend.noise=false, or frontend.together=false",
        )


@config
class CavMaeClipConfig:
    """Supervised fine-tuning on all pictures of a clip at once (Sync: frontend.together; official CAVMAEFT with
    aggregate="self_attention_cls", whose class has the defaults below)."""

    classes: int = 0  # outputs; 0 = as many as the training labels have
    streams: tuple[Literal["audio", "vision"], ...] = ("audio", "vision")  # features set side by side, or one alone
    aggregate: Literal["attention", "mean"] = "attention"  # of the pictures: blocks behind a class token, or their mean
    depth: int = 2
    heads: int = 0  # 0 = as many as the encoder
    mlp_ratio: float = 4.0
    loss: Literal["auto", "cross_entropy", "bce", "mse"] = "auto"  # as in the loss `classify`
    label_smoothing: float = 0.0  # cross_entropy
    spare_norms: bool = False  # as in the backbone's config, for the head's blocks

    def __post_init__(self) -> None:
        check(
            0 < len(self.streams) == len(set(self.streams)),
            f"loss.streams is {self.streams}",
            fix='["audio", "vision"], or one of them',
        )
        check(self.depth > 0 and self.heads >= 0, "loss.depth and loss.heads are counts", fix="e.g. 2 and 12")
