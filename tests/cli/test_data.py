"""avssl data: results on stdout, exit codes, one line for an error, and no torch until it is needed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
from media_files import tone, write_image, write_sound, write_video

from avssl.cli import main
from avssl.data.manifest import read_rows


@pytest.fixture
def folder(tmp_path):
    for n in range(4):
        write_sound(tmp_path / "in" / ("cat" if n % 2 else "dog") / f"{n}.wav", tone(0.2, hertz=200.0 + 50 * n))
    write_video(tmp_path / "in" / "dog" / "film.mp4", 5, sound=tone(0.5))
    write_image(tmp_path / "in" / "cat" / "bad.jpg").write_bytes(b"\xff\xd8\xff junk")
    return tmp_path


def avssl(capsys, *arguments: object) -> tuple[int, str, str]:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as end:
        main(["data", *map(str, arguments)])
    out = capsys.readouterr()
    return int(end.value.code or 0), out.out, out.err


def test_scan_writes_a_manifest_and_the_list_of_bad_files(folder, capsys):
    code, out, _ = avssl(capsys, "scan", folder / "in", "--out", folder / "m.csv", "--json", "--workers", 0)
    found = json.loads(out)
    assert code == 0 and found["items"] == 5 and found["bad"] == 1
    assert (found["looked_at"], found["left_out"], found["partly_usable"]) == (6, 1, 0)
    assert found["modalities"] == {"audio": 4, "audio+vision": 1} and found["labels"] == {"cat": 2, "dog": 3}
    assert [b["id"] for b in found["bad_files"]] == ["cat/bad"]
    rows = read_rows(folder / "m.csv")
    assert len(rows) == 5 and all(r.duration for r in rows)
    with (folder / "bad_files.csv").open(newline="") as file:
        (bad,) = csv.DictReader(file)
    assert bad["id"] == "cat/bad" and bad["reason"].startswith(f"{folder}/in/cat/bad.jpg: the image cannot be")
    code, out, _ = avssl(capsys, "scan", folder / "m.csv", "--depth", "headers")
    assert code == 0 and "audio: 4, audio+vision: 1" in out and "left out" not in out
    _, out, _ = avssl(capsys, "scan", folder / "in")
    assert "5 usable, 1 left out, 6 looked at" in out and "1 problem in 6 items" in out


def test_split_check_and_show_follow_each_other(folder, capsys):
    avssl(capsys, "scan", folder / "in", "--out", folder / "m.parquet")
    code, out, _ = avssl(
        capsys,
        "split",
        folder / "m.parquet",
        "--out",
        folder / "s.parquet",
        "--share",
        "train=0.6",
        "--share",
        "test=0.4",
        "--json",
    )
    assert code == 0 and json.loads(out)["items"] == {"test": 2, "train": 3}
    assert avssl(capsys, "check", folder / "s.parquet")[0] == 0
    code, out, _ = avssl(capsys, "show", folder / "s.parquet", "-n", 2, "--json")
    assert code == 0 and len(json.loads(out)["rows"]) == 2 and json.loads(out)["splits"] == {"test": 2, "train": 3}
    code, out, _ = avssl(capsys, "split", folder / "m.parquet", "--out", folder / "f.csv", "--folds", 2, "--json")
    assert json.loads(out)["items"] in ({"1": 3, "2": 2}, {"1": 2, "2": 3})


def test_split_counts_items_and_the_groups_that_stay_together(folder, capsys):
    rows = [f"{folder}/in/{'cat' if n % 2 else 'dog'}/{n}.wav,{n // 2}" for n in range(4)]
    (folder / "m.csv").write_text("path,group\n" + "\n".join(rows) + "\n")
    code, out, err = avssl(
        capsys,
        "split",
        folder / "m.csv",
        "--out",
        folder / "s.csv",
        "--share",
        "a=0.5",
        "--share",
        "b=0.5",
        "--no-content",
    )
    assert code == 0 and [line.split() for line in out.splitlines()] == [
        ["split", "items", "share", "groups"],
        ["a", "2", "0.500", "1"],
        ["b", "2", "0.500", "1"],
    ]
    assert "4 items in 2 groups: what shares a group, a file or its content stays together" in err
    code, _, err = avssl(capsys, "split", folder / "m.csv", "--out", folder / "s.csv", "--no-content")
    assert code == 3 and "4 items in 2 groups cannot fill 3 splits" in err


def test_check_ends_with_3_when_results_would_be_spoilt(folder, capsys):
    (folder / "m.csv").write_text("path,split\nin/cat/1.wav,train\nin/cat/1.wav,test\nin/cat/bad.jpg,test\n")
    code, out, _ = avssl(capsys, "check", folder / "m.csv", "--json")
    found = json.loads(out)
    assert code == 3 and {p["kind"] for p in found["problems"] if p["grave"]} == {"shared file", "unreadable"}
    code, out, _ = avssl(capsys, "check", folder / "m.csv")
    assert code == 3 and "2 grave problems" in out


def test_prepare_gives_a_manifest_that_is_read_back(folder, capsys):
    code, out, err = avssl(capsys, "prepare", folder / "in", "--out", folder / "p", "--frames", 2)
    assert code == 0 and out.strip() == str(folder / "p" / "manifest.parquet") and "5 items prepared" in err
    assert len(read_rows(folder / "p")) == 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("scan", "none"), 3, "error: none: no such file or folder (check the path)"),
        (("scan", ".", "--depth", "deep"), 2, "error: --depth deep: no such depth (known: full, headers, sample)"),
        (
            ("scan", "in", "--out", "m.txt"),
            2,
            "error: m.txt: manifests are .csv, .jsonl or .parquet (change the suffix)",
        ),
        (
            ("split", "in", "--out", "m.csv", "--share", "x"),
            2,
            "error: --share 'x' is no NAME=SHARE (e.g. --share train=0.8)",
        ),
        (
            ("split", "in", "--out", "m.csv", "--share", "a=1", "--folds", "2"),
            2,
            "error: --share and --folds exclude each other (give one of the two)",
        ),
        (("prepare", "in", "--out", "p", "--format", "mp3"), 2, "error: format 'mp3' is not known (flac or wav)"),
        (
            ("prepare", "in", "--out", "p", "--workers", "-1"),
            2,
            "error: avssl data prepare: invalid value for '--workers': Input should be greater than or equal to 0 "
            "(see avssl data prepare --help)",
        ),
        (
            ("split", "in", "--out", "m.csv", "--folds", "0"),
            2,
            "error: avssl data split: invalid value for '--folds': Input should be greater than or equal to 2 "
            "(see avssl data split --help)",
        ),
        (
            ("show", "in", "-n", "-3"),
            2,
            "error: avssl data show: invalid value for '-n' / '--count': Input should be greater than or equal to 0 "
            "(see avssl data show --help)",
        ),
    ],
)
def test_errors_are_one_line_with_a_documented_code(folder, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(folder)
    found, out, err = avssl(capsys, *arguments)
    assert (found, err.strip(), out) == (code, message, "")


def test_nothing_usable_ends_with_3_after_the_list(folder, capsys):
    code, out, err = avssl(capsys, "scan", folder / "in" / "cat" / "bad.jpg")
    assert code == 3 and "the image cannot be" in out and "none of its items can be used" in err


def test_stats_gives_the_constants_of_the_frontend(shared_data, capsys):
    code, out, err = avssl(
        capsys, "stats", "cav_mae/tiny", "--data", shared_data / "esc10", "--limit", 4, "--json", "--workers", 0
    )
    found = json.loads(out)
    assert code == 0, err
    assert -12 < found["mean"] < 0 and 1 < found["std"] < 9 and found["items"] == 4
    again = avssl(
        capsys,
        "stats",
        "cav_mae/tiny",
        "--data",
        shared_data / "esc10",
        "--limit",
        4,
        "--json",
        "--workers",
        0,
        "--set",
        "frontend.mean=3.0",
        "--set",
        "frontend.std=2.0",
    )
    assert json.loads(again[1]) == found, "the constants of the recipe must not matter"


def test_tokenizer_learns_tokens_and_says_what_a_recipe_needs(tmp_path, capsys):
    from tokenizers import Tokenizer

    (tmp_path / "in").mkdir()
    for n in range(4):
        (tmp_path / "in" / f"{n}.txt").write_text("the cat sat on the mat, the cat sat down\n" * 5)
    out = tmp_path / "tokenizer.json"
    code, said, err = avssl(capsys, "tokenizer", tmp_path / "in", "--out", out, "--size", 270)
    found = Tokenizer.from_file(str(out))
    assert code == 0 and found.get_vocab_size() == 270
    assert [found.token_to_id(t) for t in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 269]
    assert len(found.encode("the cat").ids) < len("the cat")
    assert said == f"--set 'frontend.tokenizer={out}' --set backbone.vocabulary=270 --set backbone.mask=269\n"
    assert err == "270 tokens of 4 texts\n"
    _, said, _ = avssl(capsys, "tokenizer", tmp_path / "in", "--out", tmp_path / "b.json", "--size", 5000, "--json")
    few = json.loads(said)  # few texts give fewer tokens than were asked for
    assert few["tokens"] == Tokenizer.from_file(str(tmp_path / "b.json")).get_vocab_size() < 400
    for arguments, code, message in (
        (("--out", out), 2, f"{out} exists already (choose another name)"),
        (("--out", tmp_path / "x/t.json"), 2,
         f"{tmp_path}/x/t.json: the folder {tmp_path}/x does not exist (mkdir -p {tmp_path}/x)"),
        (("--out", tmp_path / "t.json", "--size", 261), 2,
         "a byte-level vocabulary of 261 has no room for merges (give at least 300)"),
    ):  # fmt: skip
        ended, _, err = avssl(capsys, "tokenizer", tmp_path / "in", *arguments)
        assert (ended, err) == (code, f"error: {message}\n")
    (tmp_path / "in" / "4.txt").write_bytes(b"\xff")
    ended, _, err = avssl(capsys, "tokenizer", tmp_path / "in", "--out", tmp_path / "t.json")
    assert ended == 3 and err.startswith(f"error: {tmp_path}/in/4.txt: line 1 is not UTF-8")
    assert not (tmp_path / "t.json").exists()


def test_show_imports_no_torch(folder):
    code = (
        f"import sys; sys.argv = ['avssl', 'data', 'show', {str(folder / 'in')!r}]\n"
        "import avssl.cli\ntry: avssl.cli.main()\nexcept SystemExit as e: assert not e.code\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
