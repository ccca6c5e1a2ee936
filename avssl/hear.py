"""The HEAR 2021 interface (hearbenchmark.com/hear-api.html) for any model that reads sound.

    model = avssl.hear.load_model("runs/base")
    embeddings = avssl.hear.get_scene_embeddings(audio, model)                # (n_sounds, size)
    embeddings, times = avssl.hear.get_timestamp_embeddings(audio, model)     # (n_sounds, n_times, size), ms

`audio` is (n_sounds, n_samples) float in [-1, 1] at `model.sample_rate`. Results are float32 torch tensors on the
model's device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avssl.data.clip import Clip, Waveform
from avssl.embedding.encode import EmbedOptions, Encoder, embed_clips
from avssl.errors import DataError, UsageError, check
from avssl.model import Model, open_model
from avssl.registry import registry

HOP = 0.05  # seconds between time stamps: what the HEAR tasks ask for at most
WINDOW = 1.0  # seconds of sound around a time stamp, where tokens have no time
BATCH = 32


class HearModel(nn.Module):
    """A model behind the HEAR attributes. Raises UsageError for one that does not work on sound alone."""

    def __init__(self, model: Model, batch_size: int = BATCH) -> None:
        super().__init__()
        check(
            "audio" in model.backbone.modalities,
            f"{model.path} reads no sound",
            fix=f"it reads {', '.join(sorted(model.backbone.modalities))}",
        )
        entry = registry().get("backbone", model.recipe["backbone"]["name"])
        others = sorted(entry.modalities - entry.optional - {"audio"})
        check(
            not others,
            f"{model.path} reads sound only together with {', '.join(others)}",
            fix="HEAR has sound alone: choose another model",
        )
        self.model, self.batch_size = model, batch_size
        self.backbone = model.backbone  # registered: `.to(device)` and `.parameters()` work as for any module
        self.frontend = model.frontend
        size = int(model.backbone.widths()["audio"])
        self.sample_rate: int = rate_of(model)
        self.scene_embedding_size: int = size
        self.timestamp_embedding_size: int = size

    def forward(self, audio: Tensor) -> Tensor:
        """Scene embeddings."""
        return get_scene_embeddings(audio, self)


def load_model(model_file_path: str | Path = "", *, format: str = "", device: str = "cpu", **options: Any) -> HearModel:
    """A run directory, an imported model or (with `format`) a published checkpoint, in evaluation mode."""
    check(bool(str(model_file_path)), "load_model needs the path of a model", fix="load_model('runs/base')")
    return HearModel(open_model(model_file_path, format, device, **options)).eval()


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """(n_sounds, scene_embedding_size): the pooled audio stream; the mean over the views of a long sound."""
    clips = [_clip(str(n), wave, model.sample_rate) for n, wave in enumerate(_waves(audio))]
    vectors = embed_clips(Encoder(model.model, EmbedOptions(streams=("audio",))), clips, model.batch_size)
    return torch.from_numpy(vectors["audio"]).to(model.model.device)


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """((n_sounds, n_times, timestamp_embedding_size), (n_sounds, n_times) milliseconds).

    One vector every 50 ms, centred on its time stamp: of windows of one second around it, the sound continued by
    silence at its ends. Slower than reading a model's own time tokens, and the same for every model.
    """
    waves = _waves(audio)
    rate = model.sample_rate
    window, hop = int(WINDOW * rate), HOP * rate
    count = max(1, int(np.ceil(waves.shape[1] / hop)))
    centres = np.round((np.arange(count) + 0.5) * hop).astype(int)  # in samples
    encoder = Encoder(model.model, EmbedOptions(streams=("audio",)))
    padded = np.pad(waves, ((0, 0), (window // 2, window)))
    clips = [_clip(f"{n}@{s}", wave[s : s + window], rate) for n, wave in enumerate(padded) for s in centres]
    vectors = embed_clips(encoder, clips, model.batch_size)["audio"]
    times = np.tile(centres / rate * 1000.0, (len(waves), 1)).astype(np.float32)
    embeddings = torch.from_numpy(vectors.reshape(len(waves), count, model.timestamp_embedding_size))
    device = model.model.device
    return embeddings.to(device), torch.from_numpy(times).to(device)


def rate_of(model: Model) -> int:
    """The frontend's own rate; 16 kHz when it takes any and resamples."""
    for owner in (model.frontend, model.frontend.config):
        for name in ("sample_rate", "rate"):
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 16_000


def _waves(audio: Tensor) -> np.ndarray:
    array = audio.detach().cpu().float().numpy() if isinstance(audio, Tensor) else np.asarray(audio, dtype=np.float32)
    check(
        array.ndim == 2 and array.shape[1] > 0, f"audio of shape {tuple(array.shape)}", fix="give (n_sounds, n_samples)"
    )
    if not np.isfinite(array).all():
        raise DataError("the sound has values that are not finite", fix="clean it first")
    if np.abs(array).max(initial=0.0) > 32.0:
        raise UsageError("the sound is not scaled to [-1, 1]", fix="divide integer samples by 32768")
    return array


def _clip(id: str, wave: np.ndarray, rate: int) -> Clip:
    return Clip(id=id, parts={"audio": Waveform(np.ascontiguousarray(wave[None]), rate)})
