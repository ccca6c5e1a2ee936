"""Images: random crops and colours in training, mixed with another image in fine-tuning, a central crop otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from avssl.batch import Batch, Stream
from avssl.data.clip import Clip, Frames, FramesRequest, Request, Row
from avssl.errors import DataError, check
from avssl.frontend import Frontend
from avssl_data2vec.frontends.configs import VisionFrontendConfig

_MIX = 102  # salt: whether an item is mixed changes no other of its draws


class VisionFrontend(Frontend):
    """vision.x (B, 3, size, size), normalised by mean and std."""

    modalities = frozenset({"vision"})
    config: VisionFrontendConfig
    mean: Tensor  # (3, 1, 1)
    std: Tensor

    def __init__(self, config: VisionFrontendConfig) -> None:
        super().__init__(config)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(config, name)).view(3, 1, 1), persistent=False)

    def plan(self, row: Row, rng: np.random.Generator | None) -> Request:
        """Another image is decoded too where images are mixed."""
        partners = int(rng is not None and (self.config.mixup > 0 or self.config.cutmix > 0))
        return Request({"vision": FramesRequest(count=1)}, partners)

    def item(self, clips: Sequence[Clip], rng: np.random.Generator | None) -> Batch:
        """vision.x (1, 3, S, S): uint8, or float 0..255 where images are erased or mixed."""
        clip = clips[0]
        if rng is None:
            pixels: np.ndarray = self._still(_picture(clip))
            target = clip.target
        else:
            pixels, target = self._augmented(clip, rng), clip.target
            if len(clips) > 1 and np.random.default_rng([clip.seed, _MIX]).random() < self.config.mix_probability:
                pixels, target = self._mixed(pixels, clips, rng)
        x = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]
        targets = None if target is None else Stream(torch.as_tensor(target)[None])
        return Batch((clip.id,), torch.tensor([clip.seed], dtype=torch.int64), {"vision": Stream(x)}, targets)

    def batch(self, batch: Batch) -> Batch:
        stream = batch.streams.get("vision")
        if stream is None:
            return batch
        return batch.with_streams(vision=Stream((stream.x.float() / 255 - self.mean) / self.std, stream.pad))

    def _still(self, image: Image.Image) -> np.ndarray:
        """The central crop: (S, S, 3) uint8."""
        size = self.config.size
        scale = size / self.config.eval_crop / min(image.size)
        wide, high = (max(size, round(n * scale)) for n in image.size)
        left, top = (wide - size) // 2, (high - size) // 2
        return np.asarray(
            image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
        )

    def _augmented(self, clip: Clip, rng: np.random.Generator) -> np.ndarray:
        c = self.config
        image = _picture(clip)
        image = image.resize(
            (c.size, c.size), Image.Resampling.BICUBIC, box=random_box(*image.size, c.scale, c.ratio, rng)
        )
        if rng.random() < c.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if c.rand_augment > 0:
            image = _rand_augment(image, c.rand_augment, c.rand_augment_std, rng)
        if c.jitter > 0:
            kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
            for i in rng.permutation(len(kinds)):
                image = kinds[i](image).enhance(rng.uniform(max(0.0, 1 - c.jitter), 1 + c.jitter))
        pixels = np.asarray(image)
        if c.erase > 0 or c.mixup > 0 or c.cutmix > 0:
            pixels = pixels.astype(np.float32)
            if rng.random() < c.erase:
                self._erase(pixels, rng)
        return pixels

    def _erase(self, pixels: np.ndarray, rng: np.random.Generator) -> None:
        """Replace a rectangle by noise that is standard normal after normalisation (arXiv:1708.04896), in place."""
        high, wide, _ = pixels.shape
        for _ in range(10):
            area, aspect = (
                rng.uniform(0.02, 1 / 3) * high * wide,
                math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3))),
            )
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < h < high and 0 < w < wide:
                top, left = int(rng.integers(high - h + 1)), int(rng.integers(wide - w + 1))
                noise = rng.standard_normal((h, w, 3)) * self.config.std + np.array(self.config.mean)
                pixels[top : top + h, left : left + w] = 255 * noise
                return

    def _mixed(self, pixels: np.ndarray, clips: Sequence[Clip], rng: np.random.Generator) -> tuple[np.ndarray, Any]:
        """Mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899), each half of the time when both are on."""
        c, first, second = self.config, clips[0], clips[1]
        for clip in clips[:2]:
            check(
                np.ndim(clip.target) == 1,
                f"{clip.id}: images are mixed, but the target is no vector over the classes",
                fix="--set data.target=multi_hot",
                error=DataError,
            )
        other = self._augmented(second, rng)
        cut = c.cutmix > 0 and (c.mixup == 0 or rng.random() < 0.5)
        alpha = c.cutmix if cut else c.mixup
        share = float(rng.beta(alpha, alpha))
        if cut:
            high, wide, _ = pixels.shape
            h, w = int(high * math.sqrt(1 - share)), int(wide * math.sqrt(1 - share))
            y, x = int(rng.integers(high)), int(rng.integers(wide))
            top, left = max(0, y - h // 2), max(0, x - w // 2)
            bottom, right = min(high, y + h // 2), min(wide, x + w // 2)
            pixels[top:bottom, left:right] = other[top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (high * wide)
        else:
            pixels = share * pixels + (1 - share) * other
        target = share * np.asarray(first.target) + (1 - share) * np.asarray(second.target)
        return pixels.astype(np.float32), target.astype(np.float32)


def random_box(
    wide: int, high: int, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a crop of random area and aspect; after ten misfits the largest that fits."""
    for _ in range(10):
        area = wide * high * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= wide and 0 < h <= high:
            left, top = int(rng.integers(wide - w + 1)), int(rng.integers(high - h + 1))
            return left, top, left + w, top + h
    w, h = min(wide, round(high * ratio[1])), min(high, round(wide / ratio[0]))
    left, top = (wide - w) // 2, (high - h) // 2
    return left, top, left + w, top + h


def _rand_augment(image: Image.Image, magnitude: float, std: float, rng: np.random.Generator) -> Image.Image:
    """Two random operations of torchvision's RandAugment (arXiv:1909.13719), of a magnitude that varies by item."""
    from torchvision.transforms.v2 import RandAugment

    level = int(np.clip(round(rng.normal(magnitude, std)), 0, 10))
    with torch.random.fork_rng(devices=[]):  # the operations draw from torch's global generator
        torch.manual_seed(int(rng.integers(2**31)))
        return RandAugment(num_ops=2, magnitude=level, num_magnitude_bins=11)(image)


def _picture(clip: Clip) -> Image.Image:
    frames: Frames = clip.parts["vision"]
    return Image.fromarray(frames.pixels[0])
