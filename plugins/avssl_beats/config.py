"""Configuration of BEATs; imports no torch. Defaults are the released base model's (microsoft/unilm, beats/)."""

from __future__ import annotations

from typing import Literal

from avssl.errors import check
from avssl.schema import config

Padding = Literal["official", "exact", "centre"]  # see avssl_beats.padding
MEAN, STD = 15.41663, 6.55582  # of the log-mel energies of AudioSet; every released model was trained with them


@config
class BeatsConfig:
    """A patch transformer with gated relative position bias."""

    dim: int = 768
    depth: int = 12
    heads: int = 12  # the released files and code; the paper's text says 8 (section 4.2)
    ffn: int = 3072
    patch: int = 16  # frames and mel bins of a square patch
    patch_dim: int = 512  # width of the patch convolution; a projection follows when it is not `dim`
    patch_bias: bool = False
    activation: Literal["gelu", "gelu_accurate", "gelu_fast", "relu", "tanh", "linear", "glu"] = "gelu"
    pre_norm: bool = False
    deep_norm: bool = True  # residual x (2 depth)^1/4, initial weights x (8 depth)^-1/4; only without pre_norm
    position_kernel: int = 128  # taps of the convolution over the patch sequence that tells positions
    position_groups: int = 16
    relative_bias: bool = True
    buckets: int = 320
    max_distance: int = 800  # the released files; the official class default is 1280
    gated: bool = True  # the query gates the relative bias
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.0
    layer_drop: float = 0.0
    gradient_decay: float = 1.0  # factor of the gradient at the input of every layer; no learning-rate decay
    padding: Padding = "exact"  # frames -> patches; released files were trained with "official"
    kept_positions: Literal["sequence", "grid"] = "sequence"  # of patches that are kept: index among the kept, or place
    mask_token: bool = False  # hidden patches become a learned vector instead of zeros

    def __post_init__(self) -> None:
        check(
            self.dim % self.heads == 0,
            f"backbone.dim {self.dim} is no multiple of backbone.heads {self.heads}",
            fix="change one of them",
        )
        check(
            self.dim % self.position_groups == 0,
            f"backbone.dim {self.dim} is no multiple of backbone.position_groups {self.position_groups}",
            fix="change one of them",
        )
        check(
            not (self.deep_norm and self.pre_norm),
            "deep_norm belongs to post-norm layers",
            fix="set backbone.deep_norm=false or backbone.pre_norm=false",
        )
        exact = self.buckets // 4  # distances with their own bucket; max_distance below it is odd, but has numbers
        check(
            not self.relative_bias or (exact > 0 and self.max_distance > 0 and self.max_distance != exact),
            f"backbone.buckets {self.buckets} with max_distance {self.max_distance} leave no scale for far distances",
            fix=f"give at least 4 buckets and a max_distance above {exact}",
        )


@config
class BeatsFrontendConfig:
    """Waveform at 16 kHz to log-mel energies normalised to mean 0 and standard deviation 0.5."""

    rate: int = 16000
    mels: int = 128
    mean: float = MEAN
    std: float = STD
    seconds: float = 10.0  # longest excerpt: random in training, the first at evaluation; 0 = the whole clip
    window: float | None = None  # at evaluation, cut a longer recording into windows of so many seconds
    padding: Padding = "exact"  # samples -> frames
    roll: float | None = None  # in training, rotate the sound by a random multiple of so many seconds; 0 = any
    mixup: float = 0.0  # in training, probability of mixing the waveform (and target) with another item's
    mixup_alpha: float = 0.8  # share of the item ~ Beta(alpha, alpha)
    time_warp: int = 0  # SpecAugment, in training: largest shift of a random frame, in frames
    time_mask: float = 0.0  # width of a masked stretch of frames: up to this share of the clip
    time_masks: int = 1
    mel_mask: int = 0  # width of a masked band: up to so many mel bins
    mel_masks: int = 1

    def __post_init__(self) -> None:
        check(self.seconds >= 0, f"frontend.seconds is {self.seconds}", fix="give a length, or 0 for whole clips")
        check(self.window is None or self.window > 0, f"frontend.window is {self.window}", fix="give a positive length")
        check(self.std > 0, f"frontend.std is {self.std}", fix="give the standard deviation of the log-mel energies")
        check(0 <= self.mixup <= 1, f"frontend.mixup is {self.mixup}", fix="give a probability")
        check(0 <= self.time_mask < 1, f"frontend.time_mask is {self.time_mask}", fix="give a share below 1")


@config
class ClassifyConfig:
    """Fine-tuning with the authors' head: a linear layer on every patch, then the mean over the clip."""

    classes: int = 0  # outputs; 0 = as many as the training labels have
    dropout: float = 0.1  # before the head
    loss: Literal["auto", "cross_entropy", "bce"] = "auto"  # auto: index -> cross_entropy, multi_hot -> bce
    label_smoothing: float = 0.0


@config
class PredictorConfig:
    """The label predictor: transformer layers like the encoder's, over all patches."""

    depth: int = 3  # not in the paper; as in the public re-implementation
    dim: int | None = None  # None = the encoder's
    heads: int | None = None
    ffn: int | None = None
    fill: Literal["zeros", "token"] = "zeros"  # at hidden places: zeros (paper section 3.3.2) or a learned vector
    dropout: float = 0.1


@config
class RandomTokenizerConfig:
    """A frozen random projection and a frozen random codebook (paper section 3.2.1)."""

    codes: int = 1024
    code_dim: int = 256
    normalise: Literal["none", "l2", "layer_norm", "patch_l2", "chain"] = "l2"  # see avssl_beats.random_tokenizer
    seed: int = 0


@config
class _Masked:
    """What both pretraining objectives share."""

    mask_ratio: float = 0.75
    mask_count: Literal["floor", "round"] = "floor"  # int(ratio n) are hidden; or round-half-even((1-ratio) n) are kept
    label_smoothing: float = 0.0
    predictor: PredictorConfig = PredictorConfig()
    min_usage: float = 0.05  # warn when the labels' perplexity falls below this share of the codebook

    def __post_init__(self) -> None:
        check(0 < self.mask_ratio < 1, f"loss.mask_ratio is {self.mask_ratio}", fix="give a share between 0 and 1")


@config
class BeatsRandomConfig(_Masked):
    """Iteration 1: predict the labels of a random projection."""

    tokenizer: RandomTokenizerConfig = RandomTokenizerConfig()
    min_usage: float = 0.01  # natural sound uses few codes of a random projection; below this something is wrong


@config
class BeatsLossConfig(_Masked):
    """Iterations 2, 3, ...: predict the labels of a trained tokenizer."""

    tokenizer: str = ""  # run directory, imported model or official file; "" = none: the model can be used, not trained
    statistics: tuple[float, float] = (MEAN, STD)  # this run's front-end; a tokenizer of other statistics is refused


@config
class EstimatorConfig:
    """The estimator that predicts the teacher from the codes; thrown away after training (paper section 3.2.2)."""

    depth: int = 3
    dim: int | None = None  # None = the encoder's
    heads: int | None = None
    ffn: int | None = None
    dropout: float = 0.1


@config
class TokenizerConfig:
    """Train a tokenizer by distilling a teacher through a codebook (paper section 3.2.2)."""

    teacher: str = ""  # run directory, imported model or official file; "" = none: labels can be made, not learned
    target: Literal["features", "logits"] = "features"  # the teacher's last layer, or a fine-tuned teacher's logits
    pooling: Literal["clip", "patch"] = "clip"  # of logits: one vector per clip or per patch; the paper has no formula
    standardise: bool = False  # each dimension of the target to mean 0 and deviation 1, by running statistics
    statistics: tuple[float, float] = (MEAN, STD)
    codes: int = 1024
    code_dim: int = 256
    decay: float = 0.99  # of the codebook's moving average
    beta: float = 1.0  # weight of the commitment term
    scaling: Literal["mean", "paper"] = "mean"  # commitment averaged over elements (released code) or summed per vector
    padded_take_part: bool = False  # padded patches move the codebook and commit, as in the released quantizer
    kmeans_iterations: int = 10
    min_usage: float = 0.05
    estimator: EstimatorConfig = EstimatorConfig()
