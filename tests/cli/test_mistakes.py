"""What a typing mistake gives: one line, exit code 2 (or that of what is missing), and no wait for torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from avssl.cli import main


@pytest.fixture
def avssl(capsys):
    """Runs a command in this process; gives (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.mark.parametrize(("arguments", "message"), [
    (["pretrain"], "avssl pretrain: missing argument 'RECIPE' (see avssl pretrain --help)"),
    (["embed", "x", "--model", "m"], "avssl embed: missing option '--out' (see avssl embed --help)"),
    (["pretrain", "x", "--dta", "y"], "avssl pretrain: no such option: --dta (did you mean '--data'? See avssl pretrain --help)"),
    (["--nonsense"], "avssl: no such option: --nonsense (see avssl --help)"),
    (["data", "scn"], "avssl data: no such command 'scn'. Did you mean 'scan'? (see avssl data --help)"),
    (["search", "a", "b", "c"], "avssl search: got unexpected extra argument(s) (c) (see avssl search --help)"),
    (["evaluate", "--task"], "avssl evaluate: option '--task' requires an argument (see avssl evaluate --help)"),
    (["bench", "x", "--workers", "-3"],
     "avssl bench: invalid value for '--workers': Input should be greater than or equal to 0 (see avssl bench --help)"),
    (["report", "x", "--workers=-3"],
     "avssl report: invalid value for '--workers': Input should be greater than or equal to 0 (see avssl report --help)"),
    (["predict", "x", "--model", "m", "--threshold", "nan"], "--threshold nan (give a score from 0 to 1)"),
    (["classify", "x", "--model", "m", "--threshold", "nan"], "--threshold nan (give a score from 0 to 1)"),
    (["data", "split", "x", "--out"], "avssl data split: option '--out' requires an argument (see avssl data split --help)"),
])  # fmt: skip
def test_usage_errors_are_one_line(avssl, arguments, message):
    assert avssl(*arguments) == (2, "", f"error: {message}\n")


def test_a_value_of_the_wrong_type_is_named_with_its_option(avssl):
    code, out, err = avssl("embed", "x", "--model", "m", "--out", "o.npz", "--batch-size", "few")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: avssl embed: invalid value for '--batch-size': ")


@pytest.mark.parametrize("arguments", [[], ["data"], ["debug"]])
def test_no_command_at_all_gives_the_help(avssl, arguments):
    code, out, err = avssl(*arguments)
    assert code == 2 and "Usage: avssl" in out + err and "--help" in out + err


@pytest.mark.parametrize(("arguments", "message"), [
    (["list", "--set", "a=1"], "recipes list takes no --set (avssl recipes show NAME takes it)"),
    (["schema", "cav_mae/tiny"], "recipes schema takes no cav_mae/tiny (avssl recipes show cav_mae/tiny takes it)"),
    (["list", "cav_mae/tiny", "--source"],
     "recipes list takes no cav_mae/tiny and no --source (avssl recipes show cav_mae/tiny takes it)"),
    (["show", "cav_mae/tiny", "--source", "--set", "optim.lr=1"],
     "--source shows the file as it stands, without --set (give one of the two)"),
    (["shw"], "recipes shw: no such action (list, show NAME or schema)"),
])  # fmt: skip
def test_recipes_ignores_nothing_that_is_typed(avssl, arguments, message):
    assert avssl("recipes", *arguments) == (2, "", f"error: {message}\n")


MISTAKES = [
    (["pretrain", "cav_mae/tyni", "--data", ".", "--out", "new"], 2, "did you mean 'cav_mae/tiny'?; see `avssl recipes`"),
    (["pretrain", "cav_mae/tiny", "--data", ".", "--out", "new", "--set", "loss.name=cavmae"], 2,
     "no loss is called 'cavmae'"),
    (["pretrain", "cav_mae/tiny", "--data", ".", "--out", "new", "--set", "optim.rate=1"], 2, "unknown key optim.rate"),
    (["pretrain", "cav_mae/tiny", "--data", "none", "--out", "new"], 3, "none: no such file or folder"),
    (["pretrain", "cav_mae/tiny", "--data", ".", "--out", "."], 2, "--out . exists already"),
    (["pretrain", "cav_mae/tiny", "--data", ".", "--out", "new", "--init", "none"], 4, "none: no such model"),
    (["finetune", "cav_mae/tiny-finetune-audio", "--data", "none", "--out", "new"], 3, "none: no such file or folder"),
    (["evaluate", "--model", "none", "--data", ".", "--task", "knn"], 4, "none: no such model"),
    (["evaluate", "--model", ".", "--data", ".", "--task", "kn"], 2, "did you mean 'knn'?"),
    (["embed", ".", "--model", "none", "--out", "x.npz"], 4, "none: no such model"),
    (["predict", ".", "--model", "none"], 4, "none: no such model"),
    (["report", "none"], 4, "none: no such run"),
    (["export", "none", "--out", "new"], 4, "none: no such model"),
    (["import", "none", "--out", "new"], 4, "none: no such file or folder"),
    (["bench", "nope"], 2, "no recipe is called 'nope'"),
    (["reproduce", "nope", "--data", ".", "--out", "new"], 2, "no recipe is called 'nope'"),
]  # fmt: skip


def test_what_needs_no_torch_is_said_before_it_loads(tmp_path):
    """In one process of its own: what one command loads is loaded for those after it."""
    (tmp_path / "something").touch()
    script = (
        "import json, sys; from avssl.cli import main\n"
        "for line in sys.stdin:\n"
        "    try: main(json.loads(line))\n"
        "    except SystemExit as end: print(end.code, 'torch' in sys.modules)"
    )
    typed = "\n".join(json.dumps(arguments) for arguments, _, _ in MISTAKES)
    done = subprocess.run([sys.executable, "-c", script], input=typed, cwd=tmp_path, capture_output=True, text=True)
    answers = zip(done.stdout.splitlines(), done.stderr.splitlines(), strict=True)
    for (arguments, code, message), (ended, said) in zip(MISTAKES, answers, strict=True):
        assert ended == f"{code} False", (arguments, said)
        assert said.startswith("error: ") and message in said, (arguments, said)


def test_python_m_avssl_is_the_command():
    done = subprocess.run([sys.executable, "-m", "avssl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("avssl ")


def test_options_of_a_checkpoint_without_one_are_refused(avssl, tmp_path):
    code, _, err = avssl(
        "pretrain", "cav_mae/tiny", "--data", tmp_path, "--out", tmp_path / "new", "--option", "heads=4"
    )
    assert code == 2 and "describe a model, and none is given" in err
    code, _, err = avssl("embed", tmp_path, "--model", tmp_path, "--out", tmp_path / "x.npz", "--option", "heads")
    assert code != 0 and err.count("\n") == 1
