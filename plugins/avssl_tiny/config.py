"""Sizes, front-end numbers and objectives. The paper's numbers are not public: defaults are choices, named as such."""

from __future__ import annotations

from typing import Literal

from avssl import config
from avssl.errors import check


@config
class TinyConfig:
    """The encoder. Defaults: 6,658 parameters with a head for 50 classes."""

    features: int = 64  # numbers per frame: mel bands, coefficients, spectrum bins, samples of a segment
    dim: int = 16
    layers: int = 2
    heads: int = 2
    ff: int = 32
    stack: int = 1  # consecutive frames that make one token (4: "mel patches")
    stem: tuple[int, ...] = ()  # channels of 3x3 convolutions of stride 2 before the tokens, e.g. 8 and 16
    stem_bins: int = 4  # bands of frequency that the stem's last channels are averaged to
    positions: Literal["sine", "learned"] = "sine"
    max_tokens: int = 219  # learned positions: rows of the table, class token included
    position_base: float = 10000.0
    pooler: Literal["tanh_dense_of_cls", "cls", "mean"] = "tanh_dense_of_cls"  # "mean": no class token
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    post_norm: bool = True  # BERT's order; False: LayerNorm before each branch, none at the end
    layer_norm_eps: float = 1e-12
    dropout: float = 0.0  # 0.1 from 40,000 parameters up: the smallest underfit
    input_norm: bool = False  # standardise each input feature by statistics gathered over the training batches

    def __post_init__(self) -> None:
        check(
            self.dim % self.heads == 0,
            f"backbone.dim {self.dim} is not divisible by backbone.heads {self.heads}",
            fix=f"--set backbone.heads={next(h for h in range(min(self.heads, self.dim), 0, -1) if self.dim % h == 0)}",
        )
        check(
            self.positions == "learned" or self.dim % 2 == 0,
            f"backbone.dim {self.dim} is odd",
            fix="sine positions need an even width",
        )
        for name in ("features", "dim", "layers", "heads", "ff", "stack", "stem_bins"):
            check(getattr(self, name) > 0, f"backbone.{name} is {getattr(self, name)}", fix="give at least 1")
        check(all(c > 0 for c in self.stem), f"backbone.stem is {list(self.stem)}", fix="e.g. [8, 16]")
        bands = self.maps(1)[-1][1]
        check(
            not self.stem or bands % self.stem_bins == 0,
            f"the stem leaves {bands} bands, which {self.stem_bins} bins do not divide",
            fix=f"--set backbone.stem_bins={next(n for n in range(self.stem_bins, 0, -1) if bands % n == 0)}",
        )

    @property
    def frames_per_token(self) -> int:
        return self.stack * 2 ** len(self.stem)

    @property
    def token_features(self) -> int:
        """Numbers that are projected to a token."""
        return self.stack * (self.stem_bins * self.stem[-1] if self.stem else self.features)

    def maps(self, frames: int) -> list[tuple[int, int, int]]:
        """(frames, bands, channels) of what enters the stem and of what each of its layers gives."""
        out = [(frames, self.features, 1)]
        for channels in self.stem:
            frames, bands, _ = out[-1]
            out.append((-(-frames // 2), -(-bands // 2), channels))
        return out


PRESETS: dict[str, dict[str, object]] = {
    "tiny-6k": {},
    "tiny-6k-40mels": {"features": 40},
    "tiny-6k-no-pooler": {"pooler": "cls"},
    "tiny-6k-one-layer": {"layers": 1, "ff": 64},
    "tiny-6k-three-layers": {"layers": 3, "ff": 16},
    "tiny-6k-learned-positions": {"positions": "learned"},
    "tiny-6k-stem": {"stem": (8, 16), "stem_bins": 2, "ff": 24, "pooler": "mean"},
    "small-40k": {"dim": 48, "heads": 4, "ff": 96},
    "medium-250k": {"features": 128, "dim": 96, "layers": 3, "heads": 4, "ff": 192},
    "bert-tiny": {"features": 128, "dim": 128, "ff": 512},
    "mini": {"features": 128, "dim": 128, "layers": 4, "heads": 4, "ff": 512},
    "bert-small": {"features": 128, "dim": 512, "layers": 4, "heads": 8, "ff": 2048},
    "bert-base": {"features": 128, "dim": 768, "layers": 12, "heads": 12, "ff": 3072},
}


@config
class TinyCnnConfig:
    """3x3 convolutions over MFCC, then dense layers: 4.0 million parameters with ten classes.

    2.4 of them lie in the dense layers, a choice for the sake of its training time: `widths = [96, 192, 384, 800]` and
    `dense = [512]` make the same number with nine tenths in the convolutions, at four times the multiply-accumulates.
    """

    features: int = 40
    widths: tuple[int, ...] = (64, 128, 256, 512)  # each: convolution, BatchNorm, ReLU, 2x2 max-pooling
    dense: tuple[int, ...] = (1536, 1056)  # after global average pooling
    dropout: float = 0.3  # before each dense layer
    input_norm: bool = True  # per coefficient, statistics of the training batches

    @property
    def dim(self) -> int:
        return (self.dense or self.widths)[-1]

    def __post_init__(self) -> None:
        check(len(self.widths) > 0, "backbone.widths is empty", fix="give at least one block")
        check(
            self.features >= 2 ** len(self.widths),
            f"{self.features} features cannot be halved {len(self.widths)} times",
            fix="use fewer blocks or more coefficients",
        )


@config
class SoundConfig:
    """Waveform to frames, and the augmentations of training. Every augmentation is off by default."""

    kind: Literal["mel", "mfcc", "spectrogram", "raw"] = "mel"
    rate: int = 16000  # Hz
    seconds: float = 5.0  # clips are cut or zero-padded to this; 0 = their own length
    n_fft: int = 512
    hop: int = 256
    n_mels: int = 64  # mel, and the filters below mfcc (128 there)
    low: float = 0.0  # Hz
    high: float = 0.0  # Hz; 0 = half the rate
    mel_scale: Literal["slaney", "htk"] = "slaney"
    mel_norm: Literal["slaney", "none"] = "slaney"
    power: float = 2.0
    floor: float = 1e-10  # before 10 log10
    center: bool = True  # frames centred on multiples of the hop, edges reflected
    coefficients: int = 40  # mfcc
    segment: int = 400  # raw: samples of one token
    standardise: Literal["clip", "coefficient", "fixed", "none"] = "clip"  # clip: all bins together; coefficient: each
    eps: float = 1e-5  # added to the standard deviation
    mean: tuple[float, ...] = ()  # "fixed": one number or one per feature
    std: tuple[float, ...] = ()
    # augmentations, in training only
    shift: float = 0.0  # circular shift in time, up to this share of the clip
    gain_db: float = 0.0  # +- dB
    equaliser_db: float = 0.0  # standard deviation of four gains along the mel scale, lines between them
    noise_snr: tuple[float, float] | None = None  # Gaussian noise at a signal-to-noise ratio in this range, dB
    noise_probability: float = 0.5
    pitch: float = 0.0  # +- semitones (slow)
    stretch: float = 0.0  # tempo 1-x ... 1+x (slow)
    time_masks: int = 0
    time_mask_share: float = 0.2  # of the frames, all masks together
    frequency_masks: int = 0
    frequency_mask_bins: int = 8  # widest mask
    mixup: float = 0.0  # alpha of the Beta distribution (arXiv:1710.09412)

    @property
    def features(self) -> int:
        """Numbers per frame."""
        return {"mel": self.n_mels, "mfcc": self.coefficients, "spectrogram": self.n_fft // 2 + 1, "raw": self.segment}[
            self.kind
        ]

    def __post_init__(self) -> None:
        check(
            self.hop > 0 and self.n_fft > 1,
            f"frontend: n_fft {self.n_fft} and hop {self.hop} must be positive",
            fix="e.g. 512 and 256",
        )
        top = self.high or self.rate / 2
        check(
            0 <= self.low < top <= self.rate / 2,
            f"frontend: a mel bank from {self.low} to {top} Hz does not fit {self.rate} Hz",
            fix="lower the upper edge or raise the rate",
        )
        check(
            self.kind != "mfcc" or self.coefficients <= self.n_mels,
            f"frontend.coefficients {self.coefficients} exceeds frontend.n_mels {self.n_mels}",
            fix="--set frontend.n_mels=128",
        )
        self._check_numbers()
        check(not self.mixup or self.seconds > 0, "mixup needs clips of one length", fix="set frontend.seconds")
        if self.standardise == "fixed":
            for name in ("mean", "std"):
                check(
                    len(getattr(self, name)) in (1, self.features),
                    f"frontend.{name} has {len(getattr(self, name))} numbers",
                    fix=f"give 1 or {self.features}",
                )

    def _check_numbers(self) -> None:
        """Each within what the code that reads it can do."""
        for name in ("seconds", "shift", "gain_db", "equaliser_db", "pitch", "mixup", "eps", "low", "high"):
            check(getattr(self, name) >= 0, f"frontend.{name} is {getattr(self, name)}", fix="give 0 or more")
        for name in ("time_masks", "frequency_masks", "frequency_mask_bins"):
            check(getattr(self, name) >= 0, f"frontend.{name} is {getattr(self, name)}", fix="give 0 or more")
        for name in ("rate", "n_mels", "coefficients", "segment", "floor", "power"):
            check(getattr(self, name) > 0, f"frontend.{name} is {getattr(self, name)}", fix="give more than 0")
        for name in ("time_mask_share", "noise_probability"):
            check(
                0 <= getattr(self, name) <= 1, f"frontend.{name} is {getattr(self, name)}", fix="give a share, 0 to 1"
            )
        check(0 <= self.stretch < 1, f"frontend.stretch is {self.stretch}", fix="give 0 or more, less than 1")
        low, high = self.noise_snr or (0.0, 0.0)
        check(low <= high, f"frontend.noise_snr is [{low}, {high}]", fix="give the lower ratio first")


@config
class MfccConfig(SoundConfig):
    """What the CNN reads by default: 40 coefficients of 128 bands, left for the backbone to standardise."""

    kind: Literal["mel", "mfcc", "spectrogram", "raw"] = "mfcc"
    n_fft: int = 1024
    hop: int = 512
    n_mels: int = 128
    standardise: Literal["clip", "coefficient", "fixed", "none"] = "none"


@config
class ClassifyConfig:
    """A linear head and cross-entropy."""

    classes: int = 0  # 0 = as many as the training labels have
    label_smoothing: float = 0.0
    dropout: float = 0.0


@config
class MaskedConfig:
    """Masked frame modelling [C]: spans of 10 frames, 15 % of all, replaced by a learned vector, L1."""

    ratio: float = 0.15
    span: int = 10  # frames

    def __post_init__(self) -> None:
        check(0 < self.ratio < 1, f"loss.ratio is {self.ratio}", fix="give a share between 0 and 1")
        check(self.span > 0, f"loss.span is {self.span}", fix="give at least 1")


@config
class DistillConfig:
    """Hinton et al., arXiv:1503.02531: temperature^2 * KL(teacher || student) and cross-entropy with the labels."""

    teacher: str = ""  # a run or imported model directory with a classification head
    teacher_format: str = ""  # for a published checkpoint file
    classes: int = 0
    temperature: float = 3.0
    weight: float = 0.7  # of the imitation; the labels have the rest
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check(self.temperature > 0, f"loss.temperature is {self.temperature}", fix="2 to 4 is usual")
        check(0 <= self.weight <= 1, f"loss.weight is {self.weight}", fix="give a share between 0 and 1")


@config
class DistillEmbeddingConfig:
    """1 - cosine between a linear map of the student's pooled output and the teacher's embedding."""

    teacher: str = ""
    teacher_format: str = ""
    stream: str = "audio"  # pooled stream of the teacher
