"""CAV-MAE: contrastive audio-visual masked autoencoder (Gong et al., ICLR 2023, arXiv:2210.07839)."""

from __future__ import annotations

from avssl import BackboneEntry, FormatEntry, LayoutEntry, LossEntry, RecipeEntry, hookimpl, recipes_in


@hookimpl
def avssl_backbones() -> list[BackboneEntry]:
    return [
        BackboneEntry(
            name="cav_mae",
            summary="Contrastive audio-visual masked autoencoder: two streams and shared blocks",
            cls="avssl_cav_mae.backbone:CavMae",
            config="avssl_cav_mae.config:CavMaeConfig",
            frontend="avssl_cav_mae.frontend:CavMaeFrontend",
            frontend_config="avssl_cav_mae.config:CavMaeFrontendConfig",
            modalities=frozenset({"audio", "vision"}),
            optional=frozenset({"audio", "vision"}),
            supports=frozenset({"hide", "keep", "layers:blocks", "layers:ffn", "joint"}),
            example="avssl_cav_mae.example:backbone",
        )
    ]


@hookimpl
def avssl_losses() -> list[LossEntry]:
    return [
        LossEntry(
            name="cav_mae",
            summary="Masked reconstruction of sound and picture, and contrast between them",
            cls="avssl_cav_mae.loss:CavMaeLoss",
            config="avssl_cav_mae.config:CavMaeLossConfig",
            backbones=frozenset({"cav_mae"}),
            modalities=frozenset({"audio", "vision"}),
            min_modalities=2,
            example="avssl_cav_mae.example:loss",
        ),
        LossEntry(
            name="cav_mae_clip",
            summary="Labels from all pictures and sounds of a clip, by self-attention over them",
            cls="avssl_cav_mae.clip:ClipClassify",
            config="avssl_cav_mae.config:CavMaeClipConfig",
            backbones=frozenset({"cav_mae"}),
            supervised=True,
            example="avssl_cav_mae.example:clip",
        ),
    ]


@hookimpl
def avssl_formats() -> list[FormatEntry]:
    return [
        FormatEntry(
            name="cav_mae",
            summary="Official CAV-MAE .pth, pretrained or fine-tuned, also sound alone; CAV-MAE Sync",
            read="avssl_cav_mae.checkpoint:read",
            write="avssl_cav_mae.checkpoint:write",
            detect="avssl_cav_mae.checkpoint:detect",
            system="cav_mae",
        ),
        FormatEntry(
            name="mae",
            summary="ImageNet-MAE .pth (with its decoder) as initial CAV-MAE weights",
            read="avssl_cav_mae.adapt:read",
            detect="avssl_cav_mae.adapt:detect",
            system="cav_mae",
        ),
    ]


@hookimpl
def avssl_layouts() -> list[LayoutEntry]:
    return [
        LayoutEntry(
            name="cav_mae_json",
            summary="CAV-MAE's json of clips with folders frame_0, frame_1 ... of pictures",
            detect="avssl_cav_mae.layout:detect",
            read="avssl_cav_mae.layout:read",
        )
    ]


@hookimpl
def avssl_recipes() -> list[RecipeEntry]:
    return list(recipes_in(__name__))
