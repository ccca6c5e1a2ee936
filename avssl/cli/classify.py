"""classify: labels with times for files, folders and live sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from avssl.cli.listing import AsJson
from avssl.errors import DataError, check


def classify(
    inputs: Annotated[
        list[str], Argument(metavar="PATH...", help="Files, folders or manifests; - is raw PCM from standard input.")
    ],
    model: Annotated[Path, Option(help="A fine-tuned run or model directory.")],
    window: Annotated[
        float | None, Option(help="Seconds that are heard at once; default: the model's clip length.")
    ] = None,
    hop: Annotated[float | None, Option(help="Seconds between two windows; default: half a window.")] = None,
    top: Annotated[int, Option(help="Labels per window.")] = 1,
    threshold: Annotated[float, Option(help="Leave out labels with a lower score.")] = 0.0,
    rate: Annotated[int, Option(help="Of raw PCM, in Hz.")] = 16000,
    channels: Annotated[int, Option(help="Of raw PCM.")] = 1,
    encoding: Annotated[str, Option(help="Of raw PCM: s16le or f32le.")] = "s16le",
    device: Annotated[str, Option(help="auto, cpu, cuda or mps.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Print what is heard and when: one line for each window, as soon as it is known (--json: JSON lines)."""
    import json
    import sys

    from avssl.cli.inputs import need_model, opened, rows_of
    from avssl.cli.output import say

    check(0 <= threshold <= 1, f"--threshold {threshold}", fix="give a score from 0 to 1")
    live = "-" in inputs
    check(not live or len(inputs) == 1, "standard input cannot be combined with files", fix="classify one or the other")
    need_model(model)
    rows = [] if live else rows_of(inputs, ["audio"])
    from avssl.classify import Classifier, Heard

    classifier = Classifier(opened(model, "", device), window, hop, top=top, threshold=threshold)

    def show(heard: Heard) -> None:
        if as_json:
            print(json.dumps({"id": heard.id, "start": round(heard.start, 3), "end": round(heard.end, 3),
                              "labels": {name: round(score, 4) for name, score in heard.labels}}, ensure_ascii=False),
                  flush=live)  # fmt: skip
        elif heard.labels:
            labels = "  ".join(f"{name} {score:.2f}" for name, score in heard.labels)
            print(f"{'' if live else heard.id + '  '}{heard.start:.2f}-{heard.end:.2f} s  {labels}", flush=live)

    if live:
        windows = 0
        for heard in classifier.stream(sys.stdin.buffer, rate, channels=channels, encoding=encoding):  # type: ignore[arg-type]
            show(heard)
            windows += 1
        if not windows:
            raise DataError(
                "standard input gave no sound",
                fix="pipe raw PCM into it, e.g. from ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -",
            )
        return
    bad = 0
    for row in rows:
        try:
            for heard in classifier.row(row):
                show(heard)
        except DataError as error:
            bad += 1
            say(f"left out: {error}")
    if bad:
        raise DataError(f"{bad} of {len(rows)} items could not be read", fix="they are named above")
