"""The core's own plugin: generic modalities, layouts, losses and protocols, through the same hooks as a stranger's."""

from __future__ import annotations

from avssl.entries import EvaluationEntry, LayoutEntry, LossEntry, ModalityEntry
from avssl.hookspecs import hookimpl

AUDIO = (
    ".wav",
    ".flac",
    ".mp3",
    ".ogg",
    ".oga",
    ".opus",
    ".m4a",
    ".aac",
    ".aif",
    ".aiff",
    ".wma",
    ".caf",
    ".au",
    ".mka",
)
VIDEO = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ts", ".m4v", ".flv", ".ogv", ".wmv", ".3gp")
IMAGE = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")


@hookimpl
def avssl_modalities() -> list[ModalityEntry]:
    """Sound, pictures, text."""
    return [
        ModalityEntry(
            name="audio",
            summary="Sound: audio files and the sound tracks of videos",
            suffixes=AUDIO + VIDEO,
            columns=("audio", "wav", "filename", "path", "file"),
            decode="avssl.data.decode:decode_audio",
            probe="avssl.data.decode:probe",
            sample="avssl.builtin.samples:audio",
        ),
        ModalityEntry(
            name="vision",
            summary="Pictures: videos, images, folders of frames",
            suffixes=VIDEO + IMAGE,
            columns=("vision", "video", "image", "video_path", "path", "file"),
            decode="avssl.data.decode:decode_frames",
            probe="avssl.data.decode:probe",
            sample="avssl.builtin.samples:vision",
        ),
        ModalityEntry(
            name="text",
            summary="Captions and sentences, in a manifest column or .txt files",
            suffixes=(".txt",),
            columns=("text", "caption"),
            decode="avssl.data.decode:decode_text",
            inline=True,
            sample="avssl.builtin.samples:text",
        ),
    ]


@hookimpl
def avssl_losses() -> list[LossEntry]:
    """Objectives for any backbone."""
    return [
        LossEntry(
            name="classify",
            summary="Fine-tuning: a linear head on pooled features (cross-entropy or BCE)",
            cls="avssl.builtin.classify:Classify",
            config="avssl.builtin.configs:ClassifyConfig",
            supervised=True,
        ),
        LossEntry(
            name="contrastive",
            summary="InfoNCE between any two modalities, both directions",
            cls="avssl.builtin.contrastive:Contrastive",
            config="avssl.builtin.configs:ContrastiveConfig",
            min_modalities=2,
        ),
    ]


@hookimpl
def avssl_evaluations() -> list[EvaluationEntry]:
    """Protocols for any model."""

    def entry(name: str, summary: str, module: str, config: str) -> EvaluationEntry:
        return EvaluationEntry(
            name=name,
            summary=summary,
            cls=f"avssl.evaluation.{module}:{name}",
            config=f"avssl.evaluation.configs:{config}",
            names=f"avssl.evaluation.names:{name}",
        )

    return [
        entry(
            "retrieval",
            "Nearest clips between any two modalities: R@1/5/10, median rank, instance and class level",
            "retrieval",
            "RetrievalConfig",
        ),
        entry(
            "probe",
            "Logistic regression on frozen features, fitted on the training split",
            "probe",
            "ProbeConfig",
        ),
        entry("knn", "Weighted nearest neighbours on frozen features", "knn", "KnnConfig"),
        entry(
            "kfold",
            "Probe or neighbours over the folds of the data, mean and standard deviation",
            "kfold",
            "KfoldConfig",
        ),
        entry(
            "classification",
            "The fine-tuned head: accuracy, mAP, AUC, d-prime, F1, confusion",
            "classification",
            "ClassificationConfig",
        ),
    ]


@hookimpl
def avssl_layouts() -> list[LayoutEntry]:
    """Public data sets as their authors arrange them."""
    layouts = "avssl.data.layouts"
    return [
        LayoutEntry(
            name="esc50",
            summary="ESC-50 and ESC-10: metadata CSV and audio folder",
            detect=f"{layouts}:detect_esc50",
            read=f"{layouts}:read_esc50",
        ),
        LayoutEntry(
            name="audioset",
            summary="AudioSet: a *_segments.csv beside the clips",
            detect=f"{layouts}:detect_audioset",
            read=f"{layouts}:read_audioset",
        ),
        LayoutEntry(
            name="vggsound",
            summary="VGGSound: vggsound.csv beside the clips",
            detect=f"{layouts}:detect_vggsound",
            read=f"{layouts}:read_vggsound",
        ),
    ]
