"""Configurations of the data2vec frontends; no torch here."""

from __future__ import annotations

from typing import Literal

from avssl.schema import config


@config
class AudioFrontendConfig:
    """Waveforms as the models of wav2vec 2.0 and data2vec read them."""

    rate: int = 16000  # Hz; everything is resampled to it
    normalise: bool = True  # zero mean and unit variance over each decoded clip
    seconds: float | None = None  # longest clip in training, a random crop; None = whole files
    eval_seconds: float | None = None  # longest clip otherwise, its beginning; None = whole files
    min_seconds: float = 0.025  # shorter clips are bad items; one frame of the models needs 400 samples at 16 kHz
    crop: Literal["none", "shortest"] = "none"  # shortest: in training, all items are cropped to the batch's shortest
    mixup: float | None = None  # in training, mix another clip in; the own one's share is uniform between this and 1


@config
class VisionFrontendConfig:
    """Images, augmented in training."""

    size: int = 224  # pixels per side
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet's; (0.5, 0.5, 0.5) = Inception's
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    scale: tuple[float, float] = (0.08, 1.0)  # share of the area of a random crop
    ratio: tuple[float, float] = (3 / 4, 4 / 3)  # aspect of a random crop
    flip: float = 0.5  # probability of a horizontal flip
    jitter: float = 0.0  # strength of brightness, contrast and saturation changes
    rand_augment: float = 0.0  # magnitude of two random operations (RandAugment); 0 = none
    rand_augment_std: float = 0.5  # standard deviation of that magnitude
    erase: float = 0.0  # probability that a rectangle is replaced by noise
    mixup: float = 0.0  # alpha of the Beta distribution; 0 = no mixing of two images
    cutmix: float = 0.0  # alpha, when a rectangle of another image is pasted instead
    mix_probability: float = 1.0  # that an image is mixed at all, by mixup or cutmix
    eval_crop: float = 0.875  # the short side is size / eval_crop before the central crop


@config
class TextFrontendConfig:
    """Token ids of a tokenizer."""

    # "bytes" (UTF-8 bytes, nothing to train), a tokenizer.json of the `tokenizers` library, or a folder with it, with
    # encoder.json, vocab.bpe and dict.txt (fairseq's), or with vocab.json and merges.txt (Hugging Face's)
    tokenizer: str = "bytes"
    max_tokens: int = 512  # with the two tokens at the ends
    pad: int = 1
    pairs: bool = False  # a tab in a text parts two sentences (natural language inference and the like)
    lines: bool = False  # in training, start a crop of a long text at the beginning of a line
