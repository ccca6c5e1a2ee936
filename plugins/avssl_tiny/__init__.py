"""Tiny Transformers for sound on edge devices (Elliott et al., arXiv:2103.12157), and the CNN they compete with."""

from __future__ import annotations

from avssl import BackboneEntry, FormatEntry, LossEntry, RecipeEntry, hookimpl, recipes_in


@hookimpl
def avssl_backbones() -> list[BackboneEntry]:
    return [
        BackboneEntry(
            name="tiny",
            summary="BERT-style encoder over frames, patches or raw segments, from 6,000 parameters",
            cls="avssl_tiny.backbone:Tiny",
            config="avssl_tiny.config:TinyConfig",
            example="avssl_tiny.examples:encoder",
            sizes="avssl_tiny.cost:rows",
            modalities=frozenset({"audio"}),
            supports=frozenset({"hide", "keep", "layers:blocks", "layers:ffn"}),
            frontend="avssl_tiny.frontend:SoundFrontend",
            frontend_config="avssl_tiny.config:SoundConfig",
        ),
        BackboneEntry(
            name="tiny_cnn",
            summary="The 4-million-parameter MFCC CNN that tiny Transformers are measured against",
            cls="avssl_tiny.cnn:TinyCnn",
            config="avssl_tiny.config:TinyCnnConfig",
            example="avssl_tiny.examples:cnn",
            sizes="avssl_tiny.cost:cnn_rows",
            modalities=frozenset({"audio"}),
            frontend="avssl_tiny.frontend:SoundFrontend",
            frontend_config="avssl_tiny.config:MfccConfig",
        ),
    ]


@hookimpl
def avssl_losses() -> list[LossEntry]:
    both = frozenset({"tiny", "tiny_cnn"})
    return [
        LossEntry(
            name="tiny_classify",
            summary="Cross-entropy of a linear head; takes mixed (soft) targets",
            cls="avssl_tiny.loss:Classify",
            config="avssl_tiny.config:ClassifyConfig",
            backbones=both,
            supervised=True,
        ),
        LossEntry(
            name="tiny_masked",
            summary="Masked-frame pretraining: L1 on hidden spans of the standardised input",
            cls="avssl_tiny.masked:MaskedFrames",
            config="avssl_tiny.config:MaskedConfig",
            backbones=frozenset({"tiny"}),
        ),
        LossEntry(
            name="distill",
            summary="Cross-entropy plus imitation of a larger model's logits",
            cls="avssl_tiny.distill:Distill",
            config="avssl_tiny.config:DistillConfig",
            backbones=both,
            supervised=True,
            frontend="avssl_tiny.distill:TaughtFrontend",
            example="avssl_tiny.examples:taught",
            frontend_config="avssl_tiny.config:SoundConfig",
        ),
        LossEntry(
            name="distill_embedding",
            summary="Imitation of a larger model's embedding; needs no labels",
            cls="avssl_tiny.distill:DistillEmbedding",
            config="avssl_tiny.config:DistillEmbeddingConfig",
            backbones=both,
            frontend="avssl_tiny.distill:TaughtFrontend",
            example="avssl_tiny.examples:taught",
            frontend_config="avssl_tiny.config:SoundConfig",
        ),
    ]


@hookimpl
def avssl_formats() -> list[FormatEntry]:
    return [
        FormatEntry(
            name="tiny",
            summary="Plain state dict or safetensors with BERT names, and a JSON of its sizes",
            read="avssl_tiny.checkpoint:read",
            write="avssl_tiny.checkpoint:write",
            detect="avssl_tiny.checkpoint:detect",
            system="tiny",
        )
    ]


@hookimpl
def avssl_recipes() -> list[RecipeEntry]:
    return recipes_in("avssl_tiny")
