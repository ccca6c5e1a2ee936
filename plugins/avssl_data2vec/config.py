"""Configurations of the data2vec plugin. Defaults are the Base models of the papers; no torch here."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from avssl.errors import check
from avssl.schema import config

CONV_LAYERS = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)  # (channels, kernel, stride): 50 Hz at 16 kHz
Norm = Literal["batch", "instance", "layer", "item", "frame", "across_items"]
Activation = Literal["gelu", "gelu_fast", "gelu_accurate", "relu", "swish", "tanh", "linear"]


# -- backbones, data2vec 1 -------------------------------------------------------------------------------------------
@config
class AudioConfig:
    """wav2vec-2.0-style encoder of a waveform (arXiv:2202.03555, Sec. 4.2)."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    ffn: int = 3072
    extractor: Literal["layer_norm", "default"] = "layer_norm"  # default = one group norm, after the first convolution
    conv_layers: tuple[tuple[int, int, int], ...] = CONV_LAYERS
    conv_bias: bool = False
    project: bool = True  # False: no projection, the last convolution must be `dim` wide (wav2vec 2.0 of equal widths)
    positions_depth: int = 5  # 0 = a single weight-normalised convolution (wav2vec 2.0)
    positions_width: int = 95  # kernel at depth 0; at depth n the kernels are max(3, width // n)
    positions_groups: int = 16
    # Layers of positions see what the one before made of the padding, as in the official code; False: they see zeros, and
    # an item is the same however far it is padded.
    positions_over_padding: bool = True
    norm_first: bool = False
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    feature_grad: float = 1.0  # the gradient into the convolutions is multiplied by this; 0 = they never train
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.0
    layerdrop: float = 0.05
    rate: int = 16000  # Hz, of the waveform that it expects; the extractor knows samples, not seconds

    def __post_init__(self) -> None:
        _check_heads(self.dim, self.heads)
        check(
            self.project or self.conv_layers[-1][0] == self.dim,
            f"without a projection the last convolution ({self.conv_layers[-1][0]}) must be dim ({self.dim}) wide",
            fix="set backbone.project=true",
        )


@config
class VisionConfig:
    """BEiT-style encoder of an image (arXiv:2202.03555, Sec. 4.1)."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    ffn: int = 3072
    image_size: int = 224
    patch: int = 16
    channels: int = 3
    positions: Literal["shared_relative", "relative", "both", "none"] = "shared_relative"  # relative: one per block
    absolute_positions: bool = False
    layer_scale: float = 1e-4  # 1e-5 for Large; 0 = no layer scale
    qkv_bias: bool = True  # of queries and values; the key has none
    norm_eps: float = 1e-6
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0  # of the last block, growing linearly from 0
    pooled_norm: bool = True  # False: pool the patches before the last norm, as the published fine-tuning does

    def __post_init__(self) -> None:
        _check_heads(self.dim, self.heads)
        _check_patches(self.image_size, self.patch)


@config
class TextConfig:
    """RoBERTa-style encoder of token ids (arXiv:2202.03555, Sec. 4.3)."""

    dim: int = 768
    depth: int = 12
    heads: int = 12
    ffn: int = 3072
    vocabulary: int = 50265
    max_tokens: int = 512
    pad: int = 1
    mask: int = 50264  # the id that hides a token
    specials: int = 4  # ids below this (bos, pad, eos, unk) are never drawn as random replacements
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    embedding_norm: bool = True
    scale_embedding: bool = False
    norm_first: bool = False
    activation: Activation = "gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    layerdrop: float = 0.0

    def __post_init__(self) -> None:
        _check_heads(self.dim, self.heads)
        check(
            0 <= self.mask < self.vocabulary,
            f"the mask id {self.mask} is outside the vocabulary ({self.vocabulary})",
            fix="set backbone.mask to the id of <mask>",
        )


# -- backbones, data2vec 2.0 -----------------------------------------------------------------------------------------
@config
class AlibiConfig:
    """Attention biases that fall linearly with distance (arXiv:2108.12409; symmetric here)."""

    use: bool = False
    scale: float = 1.0  # initial multiplier, clamped at 0 from below
    learned_scale: bool = False
    per_head: bool = False
    per_layer: bool = False
    distance: Literal["manhattan", "euclidean"] = "manhattan"  # images


@config
class Multi2Config:
    """What the three encoders of data2vec 2.0 share (arXiv:2212.07525)."""

    dim: int = 768
    depth: int = 12  # shared blocks; the prenet comes before them
    prenet_depth: int = 0
    heads: int = 12
    mlp_ratio: float = 4.0
    norm_first: bool = False
    mend_norm_first: bool = False  # the published pre-norm block loses the residual of the attention; True keeps it
    norm_eps: float = 1e-5
    norm_affine: bool = True
    extra_tokens: int = 0
    extra_tokens_zero: bool = True  # the first starts at 0, the others at N(0, 1)
    alibi: AlibiConfig = AlibiConfig()
    mae_init: bool = False  # Xavier instead of N(0, 0.02)
    local_grad: float = 1.0  # the gradient into the local encoder is multiplied by this; 0 = it never trains
    hidden_noise: float = 0.0  # of tokens that fine-tuning hides: they become N(0, this); 0 = zeros
    dropout: float = 0.1  # after attention
    mlp_dropout: float = 0.1  # after the MLP
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.0
    prenet_dropout: float = 0.0
    layerdrop: float = 0.0
    prenet_layerdrop: float = 0.0
    drop_path: tuple[float, float] = (0.0, 0.0)  # of the first and of the last shared block
    prenet_drop_path: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_heads(self.dim, self.heads)


@config
class Audio2Config(Multi2Config):
    """Waveform encoder of data2vec 2.0."""

    extractor: Literal["layer_norm", "default"] = "layer_norm"
    conv_layers: tuple[tuple[int, int, int], ...] = CONV_LAYERS
    positions_depth: int = 5
    positions_width: int = 95
    positions_groups: int = 16
    positions_norm: bool = False  # a LayerNorm before the positional convolutions
    positions_over_padding: bool = True  # as in AudioConfig
    alibi: AlibiConfig = AlibiConfig(use=True, learned_scale=True, per_head=True)
    layerdrop: float = 0.05
    prenet_dropout: float = 0.1
    prenet_layerdrop: float = 0.05
    rate: int = 16000


@config
class Vision2Config(Multi2Config):
    """Image encoder of data2vec 2.0."""

    depth: int = 10
    prenet_depth: int = 2
    image_size: int = 224
    patch: int = 16
    channels: int = 3
    patch_dim: int | None = None  # width of the patch embedding, when a Linear to `dim` follows it
    fixed_positions: bool = True  # sin-cos
    norm_eps: float = 1e-6
    extra_tokens: int = 1
    extra_tokens_zero: bool = False
    dropout: float = 0.0
    mlp_dropout: float = 0.0
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        Multi2Config.__post_init__(self)
        _check_patches(self.image_size, self.patch)


@config
class Text2Config(Multi2Config):
    """Token encoder of data2vec 2.0."""

    vocabulary: int = 50265
    max_tokens: int = 512
    pad: int = 1
    mask: int = 50264
    specials: int = 4
    positions: Literal["learned", "sinusoidal", "none"] = "learned"
    embedding_norm: bool = True
    scale_embedding: bool = False
    embedding_dropout: float = 0.1


# -- masks -----------------------------------------------------------------------------------------------------------
@config
class SpanConfig:
    """Spans of time (arXiv:2006.11477): about probability * frames / length starts, each hiding `length` frames."""

    probability: float = 0.65
    length: int = 10
    selection: Literal["static", "uniform", "normal", "poisson"] = "static"  # of the lengths
    other: float = 0.0  # least length (uniform), standard deviation (normal)
    min_spans: int = 1
    same_count: bool = True  # equal counts over the batch: longer items lose random single frames
    add: bool = False  # with same_count: shorter items gain single frames instead
    dropout: float = 0.0  # share of the hidden frames that is shown again
    overlap: bool = True
    min_space: int = 1  # frames between spans that may not overlap


@config
class BlockConfig:
    """Rectangles of patches (BEiT, arXiv:2106.08254, Algorithm 1)."""

    count: float = 120  # hidden patches; below 1 a share of the grid
    min_patches: int = 16  # of a rectangle
    max_patches: int | None = None
    min_aspect: float = 0.3
    dropout: float = 0.0  # share of the hidden patches that is shown again, each at random


@config
class TokenConfig:
    """Corrupted tokens (BERT), singly or in spans."""

    probability: float = 0.15
    span: int = 1
    span_std: float = 0.0
    unchanged: float = 0.1  # share of the chosen tokens that stays as it is
    random: float = 0.1  # share that becomes a random token


@config
class Mask2Config:
    """Masks of data2vec 2.0, several per item; exactly int(tokens * probability) are hidden, or kept when inverse."""

    clones: int = 8
    kind: Literal["blocks", "random", "spans"] = "blocks"  # spans: the sampler of data2vec 1, drawn inside the model
    probability: float = 0.5
    adjust: float = 0.05
    length: int = 5
    inverse: bool = False  # the blocks are kept and the rest is hidden
    dropout: float = 0.0
    add: bool = False  # kind "spans": equalise by adding
    over_padding: bool = False  # padding is hidden, kept and scored like any token, as in the official code


# -- losses ----------------------------------------------------------------------------------------------------------
@config
class TargetConfig:
    """What the student regresses: a mean over the teacher's inner layers."""

    layers: Literal["ffn", "blocks"] = "ffn"  # outputs of the feed-forward parts, or of the blocks
    top_k: int = 8
    indices: tuple[int, ...] = ()  # these layers instead of the last top_k
    per_layer: tuple[Norm, ...] = ("instance",)  # in this order
    mean: tuple[Norm, ...] = ()
    count_padding: bool = True  # in statistics over tokens, as the official code does; False for unequal lengths


@config
class TeacherConfig:
    """The exponential moving average: tau(n) goes linearly from `start` to `end` over `anneal` updates."""

    start: float = 0.999
    end: float = 0.9999
    anneal: int = 30000
    delay: int = 0  # 1: the first averaging uses tau(0) (data2vec_vision), 0: tau(1) (fairseq)
    own_local: bool = True  # False: the teacher reads the student's local features (waveform extractor, embeddings)
    copied: tuple[str, ...] = ()  # globs of parameters that are the student's own instead of averaged
    average_head: bool = False  # keep an average of the head too: nothing reads it, the official file holds it


@config
class GuardConfig:
    """When a run has collapsed: mean standard deviation of targets and predictions, after some updates."""

    min_target_std: float = 0.1
    min_prediction_std: float = 0.01
    after: int = 5000  # updates


@config
class Data2VecConfig:
    """The objective of data2vec 1, for any backbone that can hide tokens and show its layers (arXiv:2202.03555)."""

    modalities: tuple[str, ...] = ()  # streams to predict; empty = all the backbone's
    targets: TargetConfig = TargetConfig()
    teacher: TeacherConfig = TeacherConfig()
    beta: float = 0.0  # of smooth L1; 0 = squared error
    absolute: bool = False  # at beta 0: the absolute error instead of the squared one
    scale: float | None = None  # None = 1/sqrt(dim)
    reduction: Literal["sum", "mean"] = "sum"  # over the dimensions of a token; tokens are always averaged
    head_layers: int = 1
    variance_weight: float = 0.0  # of mean(relu(margin - std)) over the predictions' dimensions
    variance_margin: float = 0.5
    spans: SpanConfig = SpanConfig()  # for streams that lie in time
    blocks: BlockConfig = BlockConfig()  # for streams that lie in a plane
    tokens: TokenConfig = TokenConfig()  # for text
    # channels of waveform frames that are set to 0, after the hidden frames or before (channels_first)
    channels: SpanConfig = SpanConfig(probability=0.0, length=64, min_spans=0)
    channels_first: bool = False
    guard: GuardConfig = GuardConfig()


@config
class DecoderConfig:
    """Convolutional decoder of data2vec 2.0."""

    dim: int = 384
    groups: int = 16
    kernel: int = 7
    layers: int = 4
    residual: bool = True
    projection_layers: int = 1
    projection_ratio: float = 2.0
    input_dropout: float = 0.1
    add_positions: Literal["none", "masked", "all", "both"] = "none"  # both: those of hidden places twice


@config
class Data2Vec2Config:
    """The objective of data2vec 2.0 (arXiv:2212.07525)."""

    targets: TargetConfig = TargetConfig()
    teacher: TeacherConfig = TeacherConfig(end=0.99999, anneal=75000, own_local=False)
    mask: Mask2Config = Mask2Config()
    decoder: DecoderConfig = DecoderConfig()
    shared_decoder: DecoderConfig | None = None  # a second one, over the tokens in a row, that predicts the same
    noise_std: float = 0.01  # of the mask tokens
    beta: float = 0.0
    scale: float | None = None
    weight: float = 1.0  # of the regression
    class_weight: float = 0.0  # of the class token's regression to the mean target
    reconstruction_weight: float = 0.0  # of the hidden patches' own pixels, normalised patch by patch (images)
    guard: GuardConfig = field(default_factory=GuardConfig)


def _check_heads(dim: int, heads: int) -> None:
    check(dim % heads == 0, f"backbone.dim {dim} is not divisible by backbone.heads {heads}", fix="choose a divisor")


def _check_patches(size: int, patch: int) -> None:
    check(
        size % patch == 0,
        f"backbone.image_size {size} is no multiple of backbone.patch {patch}",
        fix=f"use {size // patch * patch}",
    )


# -- fine-tuning -----------------------------------------------------------------------------------------------------
@config
class CtcConfig:
    """Speech recognition by connectionist temporal classification (Graves et al., 2006)."""

    classes: int = 0  # symbols, with the blank; 0 = as many as the training labels have
    blank: int = 0
    final_dropout: float = 0.0
    spans: SpanConfig = SpanConfig(probability=0.0)  # frames that are hidden in training; probability 0 = none
    channels: SpanConfig = SpanConfig(probability=0.0, length=64, min_spans=0)  # channels that are set to 0
    channels_first: bool = False


@config
class AudioClassifyConfig:
    """Tagging of sounds: classes from every frame, pooled to those of the clip."""

    classes: int = 0  # 0 = as many as the training labels have
    # lin_softmax: probabilities weighted by themselves; average: of logits; average_before: of features
    pooling: Literal["lin_softmax", "average_sigmoid", "average", "average_before", "max"] = "lin_softmax"
    final_dropout: float = 0.0
    spans: SpanConfig = SpanConfig(probability=0.0)  # frames that are hidden in training
    channels: SpanConfig = SpanConfig(probability=0.0, length=64, min_spans=0)  # channels that are set to 0
    channels_first: bool = False


@config
class TextClassifyConfig:
    """RoBERTa's head on the first token: dropout, linear, tanh, dropout, linear."""

    classes: int = 0  # 0 = as many as the training labels have
    regression: bool = False  # one number, squared error (STS-B)
    dropout: float = 0.1


@config
class ImageClassifyConfig:
    """BEiT's head on pooled patches: LayerNorm, linear with a small start."""

    classes: int = 0  # 0 = as many as the training labels have
    class_token: bool = False  # read the class token, behind the backbone's last norm, instead of the pooled patches
    norm: bool = True  # False: no LayerNorm in the head
    label_smoothing: float = 0.1
    initial_scale: float = 0.001  # of the linear layer's initial weights
    norm_eps: float = 1e-6
