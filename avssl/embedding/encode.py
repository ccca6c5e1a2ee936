"""Clips to vectors: a pure function of the files, the model and the options.

Every item is computed in its frontend's views (ten frames of a video, the windows of a long recording, or the windows
asked for here) and the views are averaged. Items are batched with others of exactly their shapes, so neighbours, batch
size and workers change a vector by no more than the rounding of a matrix product (`BOUND`), and the same call twice by
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from avssl.data.bad import BadFiles
from avssl.data.clip import Clip, Row
from avssl.data.kinds import natural
from avssl.embedding.rows import cut, probed
from avssl.errors import DataError, UsageError, check, nearest
from avssl.progress import Step, beyond, steps
from avssl.schema import config, structure
from avssl.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from avssl.backbone import Features
    from avssl.batch import Batch
    from avssl.data.clip import Limits
    from avssl.frontend import Frontend
    from avssl.model import Model

BOUND = 1e-5  # largest change of a float32 vector, relative to its length, over batch sizes, neighbours and workers
# the same of a vector in bf16 or fp16 against fp32; measured: 0.005 for small models, 0.015 for a 12-layer one
HALF_BOUND = 0.05
ROWS = 256  # rows that are finished together: the unit of resuming and of sharing a job


@config
class EmbedOptions:
    """What a vector is. Stored with every index, so that a query is embedded like the index was."""

    streams: tuple[str, ...] = ()  # pooled streams; () = all that the model gives
    layer: int | None = None  # output of this transformer block (0 = first, -1 = last) instead of the final features
    pooling: Literal["model", "mean", "cls", "max"] = "model"  # of tokens; "model" = the backbone's own
    normalize: bool = False  # to length one, after averaging
    sequence: bool = False  # the tokens themselves, (N, D) per clip, instead of one vector
    # the frontend's views, averaged; "one" = its single evaluation view; "each" = all, not averaged: (V, D) per clip
    views: Literal["all", "one", "each"] = "all"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # of the backbone: half is faster and less exact (`HALF_BOUND`)
    window: float | None = None  # seconds: cut every recording into windows of this length ...
    hop: float | None = None  # ... every so many seconds (default: side by side); the last one ends with the recording

    def __post_init__(self) -> None:
        check(self.window is None or self.window > 0, f"window is {self.window}", fix="give seconds above 0")
        check(
            self.hop is None or (self.window is not None and 0 < self.hop <= self.window),
            f"hop is {self.hop} with window {self.window}",
            fix="give --window, and a hop between 0 and it",
        )
        check(
            not (self.sequence and self.pooling != "model"),
            f"pooling {self.pooling!r} of a sequence",
            fix="leave out --pooling or --sequence",
        )
        check(not (self.sequence and self.views == "each"), "a sequence is of one view", fix="views=one")
        check(
            not (self.layer is not None and self.pooling == "model" and not self.sequence),
            "an inner layer has no pooling of the model",
            fix="add --pooling mean (or cls, max)",
        )

    @property
    def several(self) -> bool:
        """Whether a clip gives several rows instead of one vector."""
        return self.sequence or self.views == "each"


@dataclass(repr=False)
class Vectors:
    """Embeddings of rows, in their order; rows that could not be read are left out.

    values: stream -> (N, D) float32, nan where an item lacks the stream; with `sequence` or views "each" a list of N
    (T, D) arrays.
    """

    ids: list[str]
    indices: list[int]  # positions among the rows that were given
    values: dict[str, Any] = field(default_factory=dict)
    present: dict[str, np.ndarray] = field(default_factory=dict)  # stream -> (N,) bool

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        def size(stream: str, values: Any) -> str:
            lacking = len(self) - int(self.present[stream].sum())
            shape = f"{len(values)} sequences" if isinstance(values, list) else " x ".join(map(str, values.shape))
            return f"{stream} {shape}" + (f" ({lacking} lack it)" if lacking else "")

        streams = "; ".join(size(s, v) for s, v in self.values.items()) or "no streams"
        return f"<Vectors of {counted(len(self), 'item')}: {streams}>"

    def __getitem__(self, stream: str) -> Any:
        try:
            return self.values[stream]
        except KeyError:
            raise UsageError(f"no {stream!r} stream was embedded", fix=nearest(stream, set(self.values))) from None


class Encoder:
    """A model and options that fit it: batches to arrays. Raises UsageError for options that the model cannot serve."""

    def __init__(self, model: Model, options: EmbedOptions) -> None:
        self.model, self.options = model, options
        self.between: Callable[[], None] = lambda: None  # called before each batch: where a job may be stopped
        widths = model.backbone.widths()
        for stream in options.streams:
            check(stream in widths, f"the model gives no {stream!r} stream", fix=nearest(stream, set(widths)))
        self.streams = options.streams or tuple(widths)
        self.widths = {s: widths[s] for s in self.streams}
        self.modalities = needed_modalities(model, self.streams)
        model.autocast(options.precision)  # one that the device lacks is an error now
        if options.layer is not None:
            depth = len(model.backbone.blocks)
            check(
                -depth <= options.layer < depth,
                f"layer {options.layer} of {depth}",
                fix=f"give -{depth} to {depth - 1}" if depth else "this backbone has no layers to choose from",
            )

    def __call__(self, batch: Batch) -> dict[str, list[np.ndarray]]:
        """stream -> one float32 array per item, (D,) or, as a sequence, (N, D). `batch` as a loader made it."""
        import torch

        self.between()
        model, layered = self.model, self.options.layer is not None
        with torch.inference_mode():
            prepared = model.frontend(batch.to(model.device))
            with model.autocast(self.options.precision):
                features = model.backbone(prepared, only=self.streams, layers="blocks" if layered else None)
            given = features.layers if layered else features.tokens if self._reads_tokens else features.pooled
            out = {s: self._pool(features, s, prepared) for s in self.streams if s in given}
        if not out:
            raise DataError(
                f"{batch.ids[0]}: the model gives no {' or '.join(self.streams)} for items with "
                f"{', '.join(batch.streams)}",
                fix="choose another --stream, or items that have it",
            )
        for stream, arrays in out.items():
            for id, array in zip(batch.ids, arrays, strict=True):
                check(
                    bool(np.isfinite(array).all()),
                    f"{id}: its {stream} embedding is not finite",
                    error=DataError,
                    fix="--precision fp32 or bf16"
                    if self.options.precision == "fp16"
                    else "the weights or the input are damaged",
                )
        return out

    @property
    def _reads_tokens(self) -> bool:
        return self.options.sequence or self.options.pooling != "model"

    def _pool(self, features: Features, stream: str, batch: Batch) -> list[np.ndarray]:
        if self.options.layer is not None:
            tokens = features.layers[stream][self.options.layer]
        elif self._reads_tokens:
            tokens = features.tokens[stream]
        else:
            return list(_numpy(features.pooled[stream]))  # (D,) each
        grid = features.grid.get(stream)
        if grid is None and self.options.pooling == "cls":
            grid = self.model.backbone.grid(batch).get(stream)
        prefix = grid.prefix if grid is not None else 0
        if self.options.pooling == "cls":
            check(prefix > 0, f"the {stream} stream has no class token", fix="use --pooling mean")
            return list(_numpy(tokens[:, 0]))
        pad = features.pad.get(stream)
        keep = [slice(None)] * len(tokens) if pad is None else list(~pad)
        each = [t[k] for t, k in zip(tokens, keep, strict=True)]  # (N, D), padding left out
        if self.options.sequence:
            return [_numpy(t) for t in each]
        each = [t[prefix:].float() for t in each]
        return [_numpy(t.mean(0) if self.options.pooling == "mean" else t.amax(0)) for t in each]


def needed_modalities(model: Model, streams: Sequence[str]) -> frozenset[str]:
    """What to decode for some streams: a modality's own, or everything for a fused one."""
    reads = model.backbone.modalities
    return frozenset(streams) if set(streams) <= reads else frozenset(reads)


def embed_rows(
    model: Model,
    rows: Sequence[Row],
    options: EmbedOptions | None = None,
    *,
    batch_size: int = 32,
    workers: int = 0,
    on_bad: str = "skip",
    bad: BadFiles | None = None,
    limits: Limits | None = None,
    mixed: bool = False,
) -> Vectors:
    """Embed manifest rows. bad: collects what could not be read; mixed: batch items of unequal lengths and pad them."""
    encoder = Encoder(model, options or EmbedOptions())
    bad = bad if bad is not None else BadFiles()
    parts = []
    with steps("embedding", len(rows)) as step:
        for i in range(0, len(rows), ROWS):
            parts.append(
                encode_rows(
                    encoder,
                    rows[i : i + ROWS],
                    batch_size=batch_size,
                    workers=workers,
                    on_bad=on_bad,
                    bad=bad,
                    limits=limits,
                    mixed=mixed,
                    step=beyond(step, i),
                )
            )
    out = Vectors([], [])
    for number, part in enumerate(parts):
        out.ids += part.ids
        out.indices += [number * ROWS + i for i in part.indices]
    for stream in encoder.streams:
        if encoder.options.several:
            out.values[stream] = [v for p in parts for v in p.values[stream]]
        else:
            out.values[stream] = np.concatenate([p.values[stream] for p in parts]) if parts else np.zeros((0, 0))
        out.present[stream] = np.concatenate([p.present[stream] for p in parts]) if parts else np.zeros(0, bool)
    return out


def encode_rows(
    encoder: Encoder,
    rows: Sequence[Row],
    *,
    batch_size: int,
    workers: int,
    on_bad: str,
    bad: BadFiles,
    limits: Limits | None = None,
    mixed: bool = False,
    step: Step = lambda done: None,
) -> Vectors:
    """One block of rows; what each gets depends on nothing outside the block. step: told how many rows are begun."""
    from avssl.data.loader import evaluation_batches

    options = encoder.options
    known = set(bad.items)
    owners, windows = cut(probed(rows, encoder.modalities, workers), options.window, options.hop)
    seen: dict[int, list[tuple[int, str, dict[str, np.ndarray]]]] = {}
    for indices, views, batch in evaluation_batches(
        windows,
        encoder.model.frontend,
        batch_size=batch_size,
        workers=workers,
        modalities=encoder.modalities,
        views=options.views != "one" and not options.sequence,
        limits=limits,
        on_bad=on_bad,
        bad=bad,
        mixed=mixed,
    ):
        arrays = encoder(batch)
        for position, (index, view) in enumerate(zip(indices, views, strict=True)):
            one = {stream: values[position] for stream, values in arrays.items()}
            seen.setdefault(owners[index], []).append((index, view, one))
        step(len(seen))
    failed = {id for id, _ in set(bad.items) - known}
    indices = [i for i in sorted(seen) if rows[i].id not in failed]  # a row with a bad window is bad
    place = (lambda s: (s[0], natural(s[1]))) if options.views == "each" else (lambda s: s[:2])
    each = [[one for _, _, one in sorted(seen[i], key=place)] for i in indices]
    return _vectors(encoder, [rows[i].id for i in indices], indices, each)


def embed_inputs(
    model: Model,
    inputs: Any,
    *,
    rate: int = 16000,
    modality: str = "",
    batch_size: int = 32,
    workers: int = 0,
    on_bad: str = "fail",
    **options: Any,
) -> Vectors:
    """Embeddings of what Python has at hand.

    inputs: a path, rows, or a list of: paths of files and folders; float arrays, sound (L,) or (C, L) at `rate` Hz;
    uint8 arrays, a picture (H, W, 3) or frames (K, H, W, 3). modality="text": the strings are texts, not paths.
    options: fields of `EmbedOptions`. Unreadable files raise DataError unless on_bad="skip".
    """
    given = {k: v for k, v in options.items() if v is not None}
    encoder = Encoder(model, structure(EmbedOptions, given))
    inputs = [inputs] if isinstance(inputs, (str, Path, Row, np.ndarray)) else list(inputs)
    check(bool(inputs), "nothing to embed", fix="give paths, rows or arrays")
    if all(isinstance(i, Row) for i in inputs):
        return embed_rows(model, inputs, encoder.options, batch_size=batch_size, workers=workers, on_bad=on_bad)
    if modality == "text" or any(isinstance(i, np.ndarray) for i in inputs):
        return embed_clips(encoder, [_clip(i, n, rate) for n, i in enumerate(inputs)], batch_size)
    from avssl.data.manifest import read_rows

    rows = [row for path in inputs for row in read_rows(path)]
    return embed_rows(model, rows, encoder.options, batch_size=batch_size, workers=workers, on_bad=on_bad)


def embed_clips(encoder: Encoder, clips: Sequence[Clip], batch_size: int = 32) -> Vectors:
    """Embed decoded clips, in the views that a file of their contents would have; no manifest, no workers."""
    from avssl.batch import Batch

    options, frontend = encoder.options, encoder.model.frontend
    check(options.window is None, "arrays are not cut into windows", fix="cut them yourself, or give files")
    made: list[Batch] = []
    owners: list[int] = []
    groups: dict[tuple, list[int]] = {}
    for number, clip in enumerate(clips):
        for view in seen_by(frontend, clip, options.views != "one" and not options.sequence):
            item = frontend.item([view], None)
            key = tuple((name, *stream.x.shape[1:]) for name, stream in sorted(item.streams.items()))
            groups.setdefault(key, []).append(len(made))
            made.append(item)
            owners.append(number)
    found: list[dict[str, np.ndarray]] = [{} for _ in made]
    for members in groups.values():
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            arrays = encoder(Batch.cat([made[n] for n in chosen], frontend.pad_values))
            for position, n in enumerate(chosen):
                found[n] = {stream: values[position] for stream, values in arrays.items()}
    each: list[list[dict[str, np.ndarray]]] = [[] for _ in clips]
    for owner, one in zip(owners, found, strict=True):
        each[owner].append(one)
    return _vectors(encoder, [c.id for c in clips], list(range(len(clips))), each)


def seen_by(frontend: Frontend, clip: Clip, all_views: bool) -> list[Clip]:
    """The clips that the frontend's views would decode, cut from one that is decoded whole."""
    wave, frames = clip.parts.get("audio"), clip.parts.get("vision")
    count = len(frames.pixels) if frames is not None else 0
    parts: dict[str, Any] = {m: "" for m in clip.parts} | ({"vision": ("",) * count} if count > 1 else {})
    row = Row(id=clip.id, parts=parts, duration=None if wave is None else wave.samples.shape[1] / wave.rate)
    requests = frontend.views(row) if all_views else [frontend.plan(row, None)]
    out = []
    for request in requests:
        cut_parts = {m: _requested(part, request.parts[m]) for m, part in clip.parts.items() if m in request.parts}
        out.append(replace(clip, parts=cut_parts, row=row, view=request.view))
    return out


def _requested(part: Any, wish: Any) -> Any:
    """What a decoder would give of a part for a request."""
    from avssl.data.clip import AudioRequest, Frames, FramesRequest, Waveform
    from avssl.data.image import pick

    if isinstance(part, Waveform) and isinstance(wish, AudioRequest):
        first = round(wish.start * part.rate)
        last = None if wish.seconds is None else first + round(wish.seconds * part.rate)
        return part if first == 0 and last is None else Waveform(part.samples[:, first:last], part.rate, wish.start)
    if isinstance(part, Frames) and isinstance(wish, FramesRequest):
        total = len(part.pixels)
        chosen = [min(i, total - 1) for i in wish.indices] or pick(wish.count, total)
        return Frames(part.pixels[chosen])
    return part


def _vectors(
    encoder: Encoder, ids: list[str], indices: list[int], each: Sequence[Sequence[Mapping[str, np.ndarray]]]
) -> Vectors:
    """One `Vectors` from the arrays of each item's views and windows, in their order."""
    out = Vectors(ids, indices)
    for stream in encoder.streams:
        joined = [_join([one[stream] for one in views if stream in one], encoder.options) for views in each]
        empty = np.full(encoder.widths[stream], np.nan, np.float32)
        out.present[stream] = np.array([j is not None for j in joined], dtype=bool)
        if encoder.options.several:
            out.values[stream] = [empty[None][:0] if j is None else j for j in joined]
        else:
            out.values[stream] = np.stack([empty if j is None else j for j in joined]) if joined else empty[None][:0]
    return out


def _join(arrays: list[np.ndarray], options: EmbedOptions) -> np.ndarray | None:
    """One array of the views and windows of an item: their mean, one row each, or their sequences end to end."""
    if not arrays:
        return None
    if options.several:
        out = np.concatenate(arrays) if options.sequence else np.stack(arrays)
    else:
        out = arrays[0] if len(arrays) == 1 else np.stack(arrays).mean(0, dtype=np.float64).astype(np.float32)
    if options.normalize:
        norm = np.linalg.norm(out.astype(np.float64), axis=-1, keepdims=True)
        out = (out / np.where(norm > 0, norm, 1.0)).astype(np.float32)
    return out


def _clip(value: Any, number: int, rate: int) -> Clip:
    from avssl.data.clip import Frames, Waveform

    parts: Mapping[str, Any]
    if isinstance(value, str):
        return Clip(id=f"{number}", parts={"text": value})
    array = np.asarray(value)
    if array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3:
        parts = {"vision": Frames(array if array.ndim == 4 else array[None])}
    elif array.dtype.kind == "f" and array.ndim in (1, 2) and array.size and np.isfinite(array).all():
        parts = {"audio": Waveform(np.atleast_2d(array).astype(np.float32), rate)}
    else:
        raise DataError(
            f"input {number}: an array of {array.dtype} {array.shape} is neither sound nor a picture",
            fix="give finite floats (L,) or (C, L), or uint8 (H, W, 3) or (K, H, W, 3)",
        )
    return Clip(id=f"{number}", parts=parts)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
