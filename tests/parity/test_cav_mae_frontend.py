"""CAV-MAE's front end against the authors' numbers: wav and jpg to tensors, labels, mixup, augmentation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from avssl.batch import Batch
from avssl.data.clip import Clip, Frames, Row, Waveform
from avssl.data.decode import decode_audio, decode_frames
from avssl_cav_mae.config import CavMaeFrontendConfig
from avssl_cav_mae.frontend import Augment, CavMaeFrontend, existing, soft_targets
from parity.harness import Case, cases


class Mixing:
    """A generator whose Beta draw is the case's."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def beta(self, a: float, b: float) -> float:
        return self.weight


def frontend_of(case: Case, **changes: Any) -> CavMaeFrontend:
    front, image, labels = (case.spec["config"][k] for k in ("front_end", "image", "labels"))
    assert (front["window"], front["frame_length_ms"], front["frame_shift_ms"]) == ("hanning", 25.0, 10.0)
    assert (front["preemphasis"], front["low_freq"], front["high_freq"]) == (0.97, 20.0, 0.0)
    assert front["std_multiplier"] == front["waveform_scale"] == 1.0 and front["pad_value_before_normalising"] == 0.0
    config = CavMaeFrontendConfig(
        rate=front["sample_rate"],
        mel_bins=front["num_mel_bins"],
        frames=front["target_length"],
        mean=front["mean"],
        std=front["std"],
        image_size=image["im_res"],
        image_mean=tuple(image["mean"]),
        image_std=tuple(image["std"]),
        label_smoothing=labels["label_smooth"],
    )
    return CavMaeFrontend(dataclasses.replace(config, **changes)).eval()


def path(case: Case, name: str) -> str:
    return str(case.folder / name)


def sound(case: Case, name: str) -> Waveform:
    return decode_audio(path(case, name))


def picture(case: Case, name: str) -> Frames:
    """The stored decoded pixels where there are any: JPEG decoders differ by a step."""
    stored = [i for i in case.spec["inputs"] if i.get("role") == "decoded_pixels" and i.get("file") == name]
    if stored:
        return Frames(case.io[stored[0]["tensor"]].numpy()[None])
    return decode_frames(path(case, name))


def run(frontend: CavMaeFrontend, parts: list[dict[str, Any]], weight: float = 1.0) -> Batch:
    clips = [Clip(id=str(i), parts=p) for i, p in enumerate(parts)]
    return frontend.item(clips, Mixing(weight) if len(clips) > 1 else None)


@pytest.mark.parametrize("case", cases("cav_mae", "frontend"))
def test_the_front_end_gives_the_official_tensors(case: Case):
    for record in case.outputs("fbank"):
        frontend = frontend_of(case, frames=record["target_length"])
        names = [record["file"], *filter(None, [record.get("partner_file")])]
        batch = run(frontend, [{"audio": sound(case, n)} for n in names], record.get("mixup_lambda", 1.0))
        if "augment" in record:
            steps = ["zero_bands_in_raw", "normalise", "add_uniform_times_scale_over_10", "roll_time"]
            assert record["augment"] == steps
            t = {k: case.io[v] for k, v in record["augment_tensors"].items()}
            draw = Augment(
                freq_band=t["freq_band"][None],
                time_band=t["time_band"][None],
                roll=t["roll"][None],
                noise=(t["uniform"].double() * t["scale"] / 10).float()[None],
            )
            got = frontend.augmented(frontend.log_mel(batch.streams["audio"]), draw)
        elif record["normalise"]:
            got = frontend(batch).streams["audio"].x
        else:
            got = frontend.log_mel(batch.streams["audio"])
        case.check(record["tensor"], got[0][: record.get("keep_first_frames")])

    for record in case.outputs("image"):
        names = [record["file"], *filter(None, [record.get("partner_file")])]
        frontend = frontend_of(case, image_size=record["im_res"], mixup=float(len(names) > 1))
        batch = run(frontend, [{"vision": picture(case, n)} for n in names], record.get("mixup_lambda", 1.0))
        case.check(record["tensor"], frontend(batch).streams["vision"].x[0])

    classes = case.spec["config"]["labels"]["classes"]
    for record in case.outputs("labels"):
        hot = [
            np.array([c in names for c in classes], dtype=np.float32)
            for names in (record["labels"], record.get("partner_labels"))
            if names
        ]
        case.check(record["tensor"], soft_targets(hot, record.get("mixup_lambda", 1.0), record["label_smooth"]))
    case.check_complete()


@pytest.mark.parametrize("case", cases("cav_mae", "frontend"))
def test_a_missing_frame_falls_back_as_officially(case: Case, tmp_path):
    rule = case.call["frame_fallback"]
    files = []
    for i in range(rule["frame_count"]):
        files.append(str(tmp_path / f"frame_{i}.jpg"))
        if i in rule["frames_available"]:
            (tmp_path / f"frame_{i}.jpg").touch()
    assert existing(files, rule["frame_requested"]) == rule["frame_loaded"]
    request = frontend_of(case).plan(Row("a", {"vision": tuple(files)}), None)
    assert request.parts["vision"].indices == (rule["frame_loaded"],)  # evaluation asks for the middle of ten


@pytest.mark.parametrize("case", cases("cav_mae", "frontend"))
def test_decoded_pixels_are_nearly_the_stored_ones(case: Case):
    for record in (i for i in case.spec["inputs"] if i.get("role") == "decoded_pixels"):
        ours = decode_frames(path(case, record["file"])).pixels[0].astype(int)
        theirs = case.io[record["tensor"]].numpy().astype(int)
        assert ours.shape == theirs.shape and np.abs(ours - theirs).mean() < 1


@pytest.mark.parametrize("case", cases("cav_mae", "frontend"))
def test_a_batch_of_unequal_sounds_is_the_items_one_by_one(case: Case):
    frontend = frontend_of(case)
    names = [i["file"] for i in case.spec["inputs"] if i.get("role") == "wav"]
    items = [run(frontend, [{"audio": sound(case, n)}]) for n in names]
    together = frontend(Batch.cat(items)).streams["audio"].x
    for row, one in zip(together, items, strict=True):
        torch.testing.assert_close(row, frontend(one).streams["audio"].x[0], atol=2e-5, rtol=1e-5)
