"""What the page says, without a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from PIL import Image

from avssl.data.manifest import read_rows
from avssl.errors import CheckpointError, UsageError
from avssl.model import read_tables
from avssl.report import write_report


class Page(HTMLParser):
    """The page taken apart: ids, addresses, open elements, the data."""

    VOID = ("img", "meta", "br", "hr", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.ids, self.addresses, self.stack, self.images = text, [], [], [], []
        self.feed(text)
        self.data = json.loads(
            re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text, re.S)[1]
        )

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        if "id" in values:
            self.ids.append(values["id"])
        self.addresses += [v for k, v in attributes if k in ("src", "href", "action", "poster", "srcset")]
        if name == "img":
            self.images.append(values)
        if name not in self.VOID:
            self.stack.append(name)

    def handle_endtag(self, name):
        assert self.stack and self.stack[-1] == name, f"</{name}> closes <{self.stack[-1:]}>"
        self.stack.pop()


@pytest.fixture(scope="module")
def made(run):
    summary = write_report(run, workers=0)
    return summary, Page(summary.path.read_text(encoding="utf-8"))


def test_the_page_asks_nothing_of_a_network(made):
    _, page = made
    assert all(a.startswith(("data:", "#")) for a in page.addresses), page.addresses
    style = re.search(r"<style>(.*?)</style>", page.text, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert "default-src &#x27;none&#x27;" in page.text


def test_the_page_is_well_formed_and_every_section_is_reachable(made):
    _, page = made
    assert page.stack == []
    assert len(page.ids) == len(set(page.ids))
    looked = {"retrieval", "similarity", "map", "classes", "reconstructions", "sounding"}
    wanted = looked | {"overview", "training", "recipe", "data", "machine"}
    assert wanted <= set(page.ids)
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert all(i.get("alt") is not None for i in page.images)


def test_the_clips_are_those_that_the_run_did_not_train_on(made, clips):
    summary, page = made
    held = {r.id for r in read_rows(clips) if r.split == "test"}
    assert {c["id"] for c in page.data["clips"]} == held
    assert summary.clips == len(held) == 16
    assert "the test split" in page.text


def test_every_clip_has_a_picture_and_a_sound_that_decode(made):
    _, page = made
    for clip in page.data["clips"]:
        for modality in ("vision", "audio"):
            picture = Image.open(io.BytesIO(base64.b64decode(clip[modality].partition(",")[2])))
            assert max(picture.size) <= 128
        samples, rate = soundfile.read(io.BytesIO(base64.b64decode(clip["sound"].partition(",")[2])))
        assert rate == 16000 and abs(len(samples) / rate - clip["seconds"]) < 0.2 and np.abs(samples).max() > 0.01


def test_hits_are_the_nearest_by_cosine_and_numbers_are_those_of_the_evaluation(made, run, clips):
    from avssl.embedding.encode import EmbedOptions, embed_rows
    from avssl.evaluation.labels import splits_of
    from avssl.model import open_model
    from avssl.registry import load

    summary, page = made
    model, rows = open_model(run), [r for r in read_rows(clips) if r.split == "test"]
    vectors = embed_rows(model, rows, EmbedOptions(views="one"))
    a, v = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors["audio"], vectors["vision"]))
    found = next(d for d in page.data["runs"][0]["directions"] if (d["from"], d["to"]) == ("audio", "vision"))
    order = np.argsort(-(a @ v.T), axis=1, kind="stable")
    ids = [c["id"] for c in page.data["clips"]]
    assert [rows[i].id for i in order[3][:8]] == [ids[i] for i in found["hits"][ids.index(rows[3].id)]]
    config = load("evaluation", "retrieval", "config")(views="one", bootstrap=0)
    report = load("evaluation", "retrieval")(model, splits_of(rows), config)
    numbers = summary.runs[run.name]
    shared = [k for k in report.metrics if k in numbers]
    assert len(shared) >= 12
    assert {k: numbers[k] for k in shared} == pytest.approx({k: report.metrics[k] for k in shared})


def test_clips_that_lack_a_modality_are_queries_and_answers_as_in_evaluate(run, clips, tmp_path):
    from dataclasses import replace

    from avssl.data.manifest import write_rows
    from avssl.evaluation.labels import splits_of
    from avssl.model import open_model
    from avssl.registry import load

    rows = [r for r in read_rows(clips) if r.split == "test"]
    for i, modality in enumerate(("audio", "audio", "audio", "vision", "vision")):  # silent videos, sounds alone
        rows[i] = replace(rows[i], parts={m: s for m, s in rows[i].parts.items() if m != modality})
    write_rows(rows, tmp_path / "some.jsonl")
    numbers = write_report(run, tmp_path / "page.html", data=tmp_path / "some.jsonl", workers=0).runs[run.name]
    config = load("evaluation", "retrieval", "config")(bootstrap=0)
    report = load("evaluation", "retrieval")(open_model(run), splits_of(rows), config)
    shared = [k for k in report.metrics if k in numbers]
    assert len(shared) >= 12 and report.n["retrieval.audio->vision.instance.gallery"] == 14
    assert {k: numbers[k] for k in shared} == pytest.approx({k: report.metrics[k] for k in shared})


def test_reconstructions_hide_what_the_mask_hid(made, run):
    _, page = made
    masked = [i for i in page.images if i.get("class") == "masked vision"]
    assert len(masked) == 6
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(masked[0]["src"].partition(",")[2]))))
    assert pixels.shape[-1] == 4
    hidden = read_tables(run)["loss"]["mask_ratio_vision"]
    assert (pixels[..., 3] == 0).mean() == pytest.approx(hidden, abs=0.07)  # whole patches, of 16


def test_curves_hold_every_logged_number(made, run):
    _, page = made
    panels = {p["key"]: p for p in page.data["panels"]}
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    train = [r for r in records if r["kind"] == "train"]
    assert {"loss", "lr", "clips_per_s", "data_wait", "spread.std", *(f"term.{t}" for t in train[0]["terms"])} <= set(
        panels
    )
    line = panels["loss"]["lines"][0]
    assert line["x"] == [r["update"] for r in train]
    assert line["y"] == pytest.approx([r["loss"] for r in train], rel=1e-5)


def test_names_with_markup_in_them_stay_text(run, clips, tmp_path):
    moved = tmp_path / "</script><b onclick=alert(1)>"
    shutil.copytree(clips / "test" / "bell", moved / "<img src=x onerror=alert(1)>")
    shutil.copytree(clips / "test" / "bird", moved / "b&w")
    summary = write_report(run, tmp_path / "page.html", data=moved, workers=0)
    page = Page(summary.path.read_text(encoding="utf-8"))
    assert {label for c in page.data["clips"] for label in c["labels"]} == {"<img src=x onerror=alert(1)>", "b&w"}
    assert not any(i.get("src") == "x" for i in page.images)
    assert "<b onclick" not in page.text


def test_several_runs_stand_side_by_side(run, other, tmp_path):
    summary = write_report(run, tmp_path / "both.html", compare=[other], workers=0)
    page = Page(summary.path.read_text(encoding="utf-8"))
    assert list(summary.runs) == ["first", "second"] == [r["name"] for r in page.data["runs"]]
    loss = next(p for p in page.data["panels"] if p["key"] == "loss")
    assert {line["run"] for line in loss["lines"]} == {0, 1}
    differs = page.text.partition("What differs")[2].partition("</details>")[0]
    assert "optim.lr" in differs and "0.0001" in differs and "backbone.dim" not in differs


def test_at_most_so_many_clips_evenly_over_the_classes(run, tmp_path):
    summary = write_report(run, tmp_path / "few.html", clips=8, workers=0)
    page = Page(summary.path.read_text(encoding="utf-8"))
    assert sorted(c["labels"][0] for c in page.data["clips"]) == sorted({c["labels"][0] for c in page.data["clips"]})
    assert summary.clips == 8


def test_no_clips_gives_curves_and_tables(run, tmp_path):
    page = Page(write_report(run, tmp_path / "none.html", clips=0).path.read_text(encoding="utf-8"))
    assert page.data["clips"] == [] and "training" in page.ids and "retrieval" not in page.ids


def test_an_unfinished_run_shows_its_curves_and_says_so(run, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(run, part)
    (part / "weights.safetensors").unlink()
    (part / "report.json").unlink()
    page = Page(write_report(part).path.read_text(encoding="utf-8"))
    assert "has no weights yet" in page.text and "training" in page.ids and "retrieval" not in page.ids


def test_a_run_that_has_logged_nothing_says_what_is_missing(run, tmp_path, capsys):
    from avssl.cli import main

    part = tmp_path / "part"
    shutil.copytree(run, part)
    for name in ("weights.safetensors", "report.json", "metrics.jsonl"):
        (part / name).unlink()
    with pytest.raises(SystemExit) as stop:
        main(["report", str(part)])
    out, err = capsys.readouterr()
    assert not stop.value.code and out == "", "no empty table"
    assert "report: part has logged no update yet: it has no curves." in err
    assert "report: part has no weights yet: its clips are shown when it is finished." in err
    page = Page((part / "report.html").read_text(encoding="utf-8"))
    assert "no update is logged yet" in page.text and "training" not in page.ids


def test_umap_stands_beside_pca_where_it_is_installed():
    pytest.importorskip("umap", reason="umap-learn is not installed (pip install 'avssl[umap]')")
    from avssl.report.plane import planes

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16)) * 4
    vectors = {"audio": np.concatenate([c + rng.normal(size=(20, 16)) for c in centres]).astype(np.float32)}
    present = {"audio": np.ones(60, bool)}
    once, again = (planes(vectors, present, frozenset({"audio"})) for _ in range(2))
    assert [p["method"] for p in once] == ["PCA", "UMAP"] and once == again
    at = np.stack([once[1]["x"], once[1]["y"]], 1)
    assert np.isfinite(at).all() and np.abs(at).max() <= 1.0001
    inside = np.mean([np.linalg.norm(at[i : i + 20] - at[i : i + 20].mean(0), axis=1).mean() for i in (0, 20, 40)])
    assert inside < 0.5 * np.linalg.norm(at - at.mean(0), axis=1).mean(), "clusters stay together"
    few = {"audio": vectors["audio"][:4]}
    assert [p["method"] for p in planes(few, {"audio": np.ones(4, bool)}, frozenset({"audio"}))] == ["PCA"]


def test_moved_media_are_named_and_the_page_is_still_written(run, clips, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(run, part)
    from dataclasses import replace

    from avssl.data.manifest import write_rows

    gone = [replace(r, parts=dict.fromkeys(r.parts, f"/nowhere/{r.id}.mp4")) for r in read_rows(clips)]
    write_rows(gone, part / "manifest.parquet")
    page = Page(write_report(part, workers=0).path.read_text(encoding="utf-8"))
    assert "None of the 16 clips could be read" in page.text and "/nowhere/test/bell/0000.mp4" in page.text


def test_bad_files_of_the_run_are_listed(run, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(run, part)
    (part / "bad_files.csv").write_text("id,path,what,reason\nx/1,/media/x1.mp4,bad,is empty (0 bytes)\n")
    page = Page(write_report(part, clips=0).path.read_text(encoding="utf-8"))
    assert "bad" in page.ids and "is empty (0 bytes)" in page.text


def test_evaluations_of_the_run_are_shown_with_interval_and_chance(run, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(run, part)
    (part / "evaluations").mkdir()
    found = {"task": "probe", "metrics": {"probe.audio.accuracy": 0.8125},
             "intervals": {"probe.audio.accuracy": [0.71, 0.92]},
             "chance": {"probe.audio.accuracy": 0.125}, "n": {"test": 16}, "protocol": {"split": "test"},
             "per_class": {"probe.audio": {"bell": {"n": 2, "f1": 0.5}, "bird": {"n": 2, "f1": 1.0}}}}  # fmt: skip
    (part / "evaluations" / "probe.json").write_text(json.dumps(found))
    text = write_report(part, clips=0).path.read_text(encoding="utf-8")
    section = text.partition('<section id="evaluations">')[2].partition("</section>")[0]
    for word in ("probe.audio.accuracy", "0.8125", "0.71 – 0.92", "0.125", "bell"):
        assert word in section


@pytest.mark.parametrize(("make", "error", "says"), [
    (lambda p: p / "none", CheckpointError, "no such run"),
    (lambda p: p, CheckpointError, "it is no run"),
])  # fmt: skip
def test_what_is_no_run_is_named(tmp_path, make, error, says):
    with pytest.raises(error, match=says):
        write_report(make(tmp_path))


def test_a_pipeline_is_answered_with_the_command_for_its_runs(run, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(run, tmp_path / "stages" / name)
    with pytest.raises(CheckpointError, match="holds 2 runs") as caught:
        write_report(tmp_path)
    assert caught.value.fix == f"avssl report {tmp_path}/stages/a --compare {tmp_path}/stages/b"


def test_a_run_compared_with_itself_and_an_impossible_output_are_refused(run, tmp_path):
    with pytest.raises(UsageError, match="given twice"):
        write_report(run, tmp_path / "x.html", compare=[run], clips=0)
    with pytest.raises(UsageError, match="not a file in an existing folder"):
        write_report(run, tmp_path / "no" / "x.html", clips=0)
