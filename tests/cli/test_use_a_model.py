"""evaluate, embed, search and predict as a user types them: output, exit codes, files, one line per error."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import toy

from avssl.embedding.files import read_index
from avssl.errors import nearest


@pytest.fixture
def avssl(toy_plugin, capsys):
    """Runs a command in this process; gives (exit code, stdout, stderr)."""
    import avssl.cli as cli

    def run(*arguments) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


def test_the_commands_import_no_torch(toy_plugin):
    code = (
        "import sys; from avssl.cli import embed, evaluate, inputs, predict, search; "
        "import avssl.evaluation.configs, avssl.evaluation.gates; "
        "print(*[m for m in ('torch', 'sklearn', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=toy.environment(toy_plugin), text=True, capture_output=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr


# -- evaluate ----------------------------------------------------------------------------------------------------------
def test_evaluate_prints_the_table_and_keeps_the_report_with_the_model(avssl, toy_path, toy_manifest):
    code, out, err = avssl("evaluate", "--model", toy_path, "--data", toy_manifest, "--task", "retrieval")
    report = json.loads((toy_path / "evaluations" / "retrieval.json").read_text())
    assert code == 0 and f"the report is {toy_path}/evaluations/retrieval.json" in err
    for name, value in report["metrics"].items():
        (line,) = [line for line in out.splitlines() if line.startswith(name + " ")]
        assert f"{value:.4f}" in line
    assert report["n"]["items"] == 10 and report["protocol"]["ties"] == "expected"


def test_json_is_the_report_and_the_log_goes_to_stderr(avssl, toy_path, toy_manifest, tmp_path):
    code, out, err = avssl(
        "evaluate",
        "--model",
        toy_path,
        "--data",
        toy_manifest,
        "--task",
        "knn",
        "--json",
        "--out",
        tmp_path / "r.json",
        "--set",
        "k=3",
        "--set",
        'streams=["audio"]',
        "--explain",
    )
    assert code == 0 and json.loads(out) == json.loads((tmp_path / "r.json").read_text())
    assert json.loads(out)["protocol"]["k"] == 3 and set(json.loads(out)["per_class"]) == {"knn.audio"}
    assert "knn.audio.map: unweighted mean over the classes of average precision" in err


def test_evaluate_says_how_far_it_is_and_what_chance_would_score(avssl, toy_path, toy_manifest, monkeypatch):
    monkeypatch.setattr("avssl.progress.SECONDS", 0.0)
    code, out, err = avssl(
        "evaluate",
        "--model",
        toy_path,
        "--data",
        toy_manifest,
        "--task",
        "knn",
        "--batch-size",
        4,
        "--precision",
        "bf16",
        "--json",
        "--out",
        toy_manifest.parent.parent / "bf16.json",
    )
    report = json.loads(out)
    assert code == 0 and "embedding 20/20  " in err and "embedding 10/10  " in err
    assert report["protocol"]["precision"] == "bf16"
    assert set(report["chance"]) == set(report["metrics"]), "every metric of a classifier has a chance level"


def test_a_half_precision_that_is_not_there_is_one_line(avssl, toy_path, toy_classifier, toy_manifest, tmp_path):
    for arguments in (
        ["evaluate", "--data", toy_manifest, "--task", "knn", "--model", toy_path],
        ["embed", toy_manifest, "--out", tmp_path / "x.npz", "--model", toy_path],
        ["predict", toy_manifest, "--model", toy_classifier],
    ):
        for precision, text in (("fp16", "fp16 needs a GPU"), ("half", "--precision half (fp32, bf16, fp16 or auto)")):
            code, out, err = avssl(*arguments, "--device", "cpu", "--precision", precision)
            assert (code, out) == (2, "") and text in err and err.count("\n") == 1, err


BELOW = "knn.audio.accuracy = 1.0000 < 1.1 (1 of 1 gated metrics failed)"
TYPO = "--fail-under knn.audio.acuracy: no such metric (did you mean 'knn.audio.accuracy'?)"
OTHER = "--fail-under probe.audio.accuracy: no such metric (did you mean 'knn.audio.accuracy'?)"
STREAM = "--fail-under knn.sound.accuracy: no such metric (did you mean 'knn.audio.accuracy'?)"
LOWER = "--fail-under knn.audio.mse: better when lower (--fail-over knn.audio.mse=VALUE)"
FORM = "--fail-under 'knn' is no NAME=VALUE (e.g. --fail-under \"retrieval.audio->vision.class.r@1=0.3\")"


@pytest.mark.parametrize(
    ("gate", "code", "error", "evaluated"),
    [
        ("knn.audio.accuracy=0.9", 0, "", True),
        ("knn.audio=0.0", 0, "", True),
        ("knn.audio.accuracy=1.1", 5, BELOW, True),
        ("knn.audio.top5=0.1", 2, None, True),  # known only when it is computed
        ("knn.audio.acuracy=0.1", 2, TYPO, False),
        ("probe.audio.accuracy=0.1", 2, OTHER, False),
        ("knn.sound.accuracy=0.1", 2, STREAM, False),
        ("knn.audio.mse=0.1", 2, LOWER, False),
        ("knn", 2, FORM, False),
    ],
)
def test_gates_decide_the_exit_code(avssl, toy_path, toy_manifest, tmp_path, gate, code, error, evaluated):
    """A gate that cannot be met is refused before the work; where only the work can tell, its results are there."""
    got, out, err = avssl(
        "evaluate",
        "--model",
        toy_path,
        "--data",
        toy_manifest,
        "--task",
        "knn",
        "--set",
        'streams=["audio"]',
        "--out",
        tmp_path / "r.json",
        "--fail-under",
        gate,
    )
    assert got == code and (tmp_path / "r.json").exists() == evaluated and ("knn.audio.accuracy " in out) == evaluated
    if evaluated:
        names = list(json.loads((tmp_path / "r.json").read_text())["metrics"])
    if error is None:
        error = f"--fail-under knn.audio.top5: no such metric ({nearest('knn.audio.top5', set(names))})"
    last = err.splitlines()[-1]
    assert last == (f"error: {error}" if error else f"gates passed: {', '.join(checked(names, gate))}")


@pytest.mark.parametrize(
    ("gate", "code", "error"),
    [
        ("retrieval=30", 0, "gates passed: "),
        (
            "retrieval.audio->vision.class.median_rank=0.5",
            5,
            "error: retrieval.audio->vision.class.median_rank = 4.0000 > 0.5",
        ),
        ("retrieval.audio->vision.class.mrr=1", 2, "error: --fail-over retrieval.audio->vision.class.mrr: better when"),
        ("retrieval", 2, "error: --fail-over 'retrieval' is no NAME=VALUE (e.g. --fail-over \"speech.wer=0.1\")"),
    ],
)
def test_bounds_from_above_decide_the_exit_code(avssl, toy_path, toy_manifest, tmp_path, gate, code, error):
    options = ("--task", "retrieval", "--set", 'levels=["class"]', "--set", "bootstrap=0", "--out", tmp_path / "r.json")
    arguments = ("--model", toy_path, "--data", toy_manifest, *options)
    got, _, err = avssl("evaluate", *arguments, "--fail-under", "retrieval=0", "--fail-over", gate)
    last = err.splitlines()[-1]
    assert got == code and last.startswith(error), err
    if code == 0:
        assert "audio->vision.class.median_rank" in last and "vision->audio.class.median_rank" in last


def checked(names, gate):
    name = gate.partition("=")[0]
    return [n for n in names if n == name] or [n for n in names if n.startswith(name)]


def test_training_rows_may_come_from_elsewhere(avssl, toy_path, toy_manifest, tmp_path):
    lines = [json.loads(x) for x in toy_manifest.read_text().splitlines()]
    for name, chosen in (("train", lines[:20]), ("test", lines[20:])):
        text = "".join(
            json.dumps(
                {
                    k: v if k not in ("audio", "vision") else str(toy_manifest.parent / v)
                    for k, v in x.items()
                    if k not in ("split", "fold")
                }
            )
            + "\n"
            for x in chosen
        )
        (tmp_path / f"{name}.jsonl").write_text(text)
    code, out, _ = avssl(
        "evaluate",
        "--model",
        toy_path,
        "--data",
        tmp_path / "test.jsonl",
        "--train",
        tmp_path / "train.jsonl",
        "--task",
        "knn",
        "--json",
    )
    assert code == 0 and json.loads(out)["n"] == {"train": 20, "test": 10}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--task", "retreival"], 2, "error: no evaluation is called 'retreival' (did you mean 'retrieval'?"),
        (["--task", "knn", "--set", "neighbors=3"], 2, "error: unknown key --set.neighbors"),
        (["--task", "knn", "--split", "tset"], 3, "error: the data have no 'tset' split (did you mean 'test'?)"),
        (["--task", "classification"], 4, "has no classification head (fine-tune it (`avssl finetune`), or evaluate"),
    ],
)
def test_mistakes_are_one_line_and_a_code(avssl, toy_path, toy_manifest, arguments, code, text):
    got, out, err = avssl("evaluate", "--model", toy_path, "--data", toy_manifest, *arguments)
    assert (got, out) == (code, "") and text in err and err.count("\n") == 1


def test_a_missing_model_or_data_is_one_line_and_a_code(avssl, toy_path, toy_manifest, tmp_path):
    for arguments, code, text in (
        (["--model", tmp_path / "none", "--data", toy_manifest], 4, "no such model"),
        (["--model", toy_path, "--data", tmp_path / "none"], 3, "no such file or folder"),
        (["--model", tmp_path, "--data", toy_manifest], 4, str(tmp_path)),
    ):
        got, out, err = avssl("evaluate", "--task", "knn", *arguments)
        assert (got, out) == (code, "") and text in err and err.count("\n") == 1, err


# -- embed and search --------------------------------------------------------------------------------------------------
def test_embed_then_search_by_id_file_and_page(avssl, toy_path, toy_manifest, tmp_path):
    index = tmp_path / "x.parquet"
    code, out, err = avssl("embed", toy_manifest.parent, "--model", toy_path, "--out", index, "--normalize", "--json")
    assert (
        code == 0
        and json.loads(out)["rows"] == 30
        and json.loads(out)["streams"] == {"audio": 16, "vision": 16, "joint": 16}
    )
    assert f"30 clips in {index} (audio 16-dimensional, vision 16-dimensional, joint 16-dimensional)" in err
    assert f"next: `avssl search {index} QUERY`" in err
    code, out, _ = avssl("search", index, "0003", "--from", "audio", "--to", "vision", "--top", 4, "--json")
    (answer,) = json.loads(out)
    assert code == 0 and (answer["stream"], answer["among"], len(answer["hits"])) == ("audio", "vision", 4)
    code, out, err = avssl("search", index, toy_manifest.parent / "0005.wav", "--html", tmp_path / "x.html")
    assert code == 0 and out.splitlines()[0] == "audio -> audio" and out.splitlines()[2].split()[:2] == ["1", "0005"]
    assert (tmp_path / "x.html").is_file() and f"open {tmp_path / 'x.html'}" in err


def test_embed_refuses_what_no_file_holds_before_it_opens_the_model(avssl, toy_manifest, tmp_path):
    empty = tmp_path / "model"
    empty.mkdir()
    code, _, err = avssl("embed", toy_manifest, "--model", empty, "--out", tmp_path / "x.npz", "--views", "each")
    assert (code, err.strip()) == (2, "error: --views each (all or one)")
    _, out, _ = avssl("embed", "--help")
    assert "each: all of them" not in " ".join(out.split())


def test_embed_names_each_bad_file_and_goes_on(avssl, toy_path, tmp_path):
    toy.write_media(tmp_path / "media", items=3)
    (tmp_path / "media" / "manifest.jsonl").unlink()
    (tmp_path / "media" / "damaged.wav").write_bytes(b"RIFF....WAVE")
    out = tmp_path / "x.npz"
    code, _, err = avssl("embed", tmp_path / "media", "--model", toy_path, "--out", out)
    assert code == 0 and "3 clips in" in err and f"1 clip could not be embedded: {tmp_path / 'bad_files.csv'}" in err
    with (tmp_path / "bad_files.csv").open(newline="") as file:
        assert [line["id"] for line in csv.DictReader(file)] == ["damaged"]
    assert read_index(out).ids == ["0000", "0001", "0002"]
    got, _, err = avssl(
        "embed", tmp_path / "media", "--model", toy_path, "--out", tmp_path / "y.npz", "--on-bad", "fail"
    )
    assert got == 3 and "damaged.wav" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--out", "x.csv"], "what format is .csv"),
        (["--out", "x.npz", "--stream", "sound"], "no 'sound' stream"),
        (["--out", "x.npz", "--layer", "0"], "an inner layer has no pooling"),
        (["--out", "x.npz", "--pooling", "median"], "pooling"),
        (["--out", "x.npz", "--device", "cuda:99"], "cuda"),
    ],
)
def test_embed_options_that_cannot_be_served_exit_with_2(
    avssl,
    toy_path,
    toy_manifest,
    tmp_path,
    monkeypatch,
    arguments,
    text,
):
    monkeypatch.chdir(tmp_path)
    got, out, err = avssl("embed", toy_manifest, "--model", toy_path, *arguments)
    assert (got, out) == (2, "") and text in err and err.count("\n") == 1, err


def test_folders_with_equal_names_are_kept_apart(avssl, toy_path, tmp_path):
    for name in "ab":
        toy.write_media(tmp_path / name, items=2)
        (tmp_path / name / "manifest.jsonl").unlink()
    code, _, _ = avssl("embed", tmp_path / "a", tmp_path / "b", "--model", toy_path, "--out", tmp_path / "x.npz")
    assert code == 0 and read_index(tmp_path / "x.npz").ids == [f"{tmp_path}/{f}/000{n}" for f in "ab" for n in (0, 1)]
    got, _, err = avssl("embed", tmp_path / "a", tmp_path / "a", "--model", toy_path, "--out", tmp_path / "y.npz")
    assert got == 3 and "is given twice" in err


# -- predict -----------------------------------------------------------------------------------------------------------
def test_predict_gives_labels_with_scores(avssl, toy_classifier, toy_manifest, tmp_path):
    code, out, _ = avssl(
        "predict", toy_manifest, "--model", toy_classifier, "--json", "--out", tmp_path / "p.csv", "--top", 3
    )
    found = json.loads(out)
    assert (found["precision"], found["views"]) == ("fp32", "all")
    assert code == 0 and len(found["predictions"]) == 30 and found["classes"] == ["class 0", "class 1", "class 2"]
    for record in found["predictions"]:
        scores = [x["score"] for x in record["labels"]]
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
        assert record["label"] == record["labels"][0]["label"]
    _, strict, _ = avssl("predict", toy_manifest, "--model", toy_classifier, "--json", "--threshold", 0.99)
    assert {r["label"] for r in json.loads(strict)["predictions"]} == {None}
    with (tmp_path / "p.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 90 and lines[0]["id"] == "0000" and lines[0]["rank"] == "1"
    assert lines[0]["label"] == found["predictions"][0]["labels"][0]["label"]


def test_predict_of_a_single_file_and_of_a_damaged_one(avssl, toy_classifier, toy_manifest, tmp_path):
    code, out, _ = avssl("predict", toy_manifest.parent / "0001.wav", "--model", toy_classifier)
    assert code == 0 and len(out.splitlines()) == 2
    (tmp_path / "x.wav").write_bytes(b"nothing")
    code, out, err = avssl("predict", tmp_path / "x.wav", "--model", toy_classifier)
    assert (code, out) == (3, "") and "no item could be read" in err and err.count("x.wav") == 1


def test_several_labels_are_those_above_the_threshold(toy_plugin, toy_manifest, avssl, tmp_path):
    model = toy.make_model(tmp_path / "m", ["a", "b", "c"], kind="multi_hot")
    for threshold in (0.0, 1.0):
        code, out, _ = avssl("predict", toy_manifest, "--model", model, "--json", "--threshold", threshold)
        sizes = {len(r["labels"]) for r in json.loads(out)["predictions"]}
        assert code == 0 and sizes == ({3} if threshold == 0 else {0})


def test_classifiers_of_one_class_each_say_one_while_their_targets_are_vectors(
    toy_plugin, toy_manifest, avssl, tmp_path
):
    model = toy.make_model(tmp_path / "m", ["class 0", "class 1", "class 2"], kind="multi_hot")
    (model / "assets" / "targets.json").write_text(
        json.dumps({"kind": "multi_hot", "classes": ["class 0", "class 1", "class 2"], "exclusive": True})
    )
    code, out, _ = avssl("predict", toy_manifest, "--model", model, "--json")
    for record in json.loads(out)["predictions"]:
        assert record["label"] and sum(x["score"] for x in record["labels"]) == pytest.approx(1)
    gate = ("--fail-under", "classification.accuracy=0")
    code, out, err = avssl(
        "evaluate", "--model", model, "--data", toy_manifest, "--task", "classification", "--set", "bootstrap=0", *gate
    )
    assert code == 0 and "classification.mcc" in out, err
    code, out, _ = avssl("classify", toy_manifest.parent / "0000.wav", "--model", model, "--top", 3, "--json")
    assert code == 0 and sum(json.loads(out.splitlines()[0])["labels"].values()) == pytest.approx(1, abs=1e-3)


def test_predict_without_a_head_is_a_checkpoint_error(avssl, toy_path, toy_manifest):
    code, out, err = avssl("predict", toy_manifest, "--model", toy_path)
    assert (code, out) == (4, "") and "has no head that predicts (fine-tune it first" in err
