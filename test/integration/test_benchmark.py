"""The benchmarks from their command lines, on the small model."""

import importlib.util
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from small import INSTRUCTION, NAMED_TAU, make_tokenizer, run_script

from self_ensemble.system.errors import UserError

FOLDER = Path(__file__).parents[2] / "benchmark"


def load(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quality, throughput = load("quality"), load("throughput")
batches, kill, self_consistency = load("batches"), load("kill"), load("self_consistency")
scale = load("scale")


@pytest.fixture
def common(small):
    return (
        *("--dataset", small.questions, "--model", small.folder, "--instruction", INSTRUCTION),
        *("--max-new-tokens", 4),
    )


def test_quality_takes_flags_in_both_spellings():
    flags = ["--num_paraphrases", "3,4", "--max_samples", "5", "--chat_template", "--dtype=float32"]
    args = quality.parse_args([flag.replace("_", "-") for flag in flags])
    assert args == quality.parse_args(flags)
    assert args.num_paraphrases == (3, 4)
    assert args.shared == flags[2:]


def test_quality_scores_every_method(common, tmp_path, capsys):
    assert run_script(quality, *common, "--num-paraphrases", 2, "--output-dir", tmp_path) == 0
    table = capsys.readouterr().out
    names = {path.stem for path in tmp_path.rglob("*.feather")}
    assert len(names) == len(quality.LOGIT_METHODS) + len(quality.ATTENTION_METHODS)
    for name in names:
        assert name in table


def test_self_consistency_beside_fusion(common, tmp_path, capsys):
    """Each method's score and rows; what draws is drawn once a seed and temperature."""
    argv = ["--num-paraphrases", 3, "--seeds", "0,4", "--temperatures", "0.7,1.5"]
    assert run_script(self_consistency, *common, *argv, "--output-dir", tmp_path) == 0
    scores, rows = capsys.readouterr().out.split("\na question")
    draws = {f"self_consistency-t{t}{seed}-3" for t in ("0.7", "1.5") for seed in ("", "-seed4")}
    names, fused = (
        {path.stem for path in tmp_path.rglob("*.feather")},
        f"flex_attention{NAMED_TAU}-3",
    )
    assert names == draws | {"origin-1", "vote-3", "avg-3", fused}
    assert "self_consistency-t0.7-3 (baseline)" in scores
    counted = {line.split()[0]: float(line.split()[1]) for line in rows.splitlines()[1:]}
    assert counted.keys() == names and all(name in scores for name in names)
    for name in draws:  # three rows for a while, against the one of a fused question
        assert 2 * counted[fused] <= counted[name] <= 3 * 4


@pytest.mark.parametrize("chat", [False, True])
def test_throughput(small, common, tmp_path, capsys, chat):
    given = [*common, "--num_paraphrases", 2, "--stock_batches", "3,14"]
    if chat:
        small.model.save_pretrained(tmp_path)
        tokenizer = make_tokenizer()
        tokenizer.chat_template = "{{ messages[0]['content'] }} =>"
        tokenizer.save_pretrained(tmp_path)
        given += ["--model", tmp_path, "--chat_template"]
    assert run_script(throughput, *given) == 0
    out, err = capsys.readouterr()
    named = r"(attention fusion|avg|generate\(\), batches of (?:3|14) prompts)"
    order = re.findall(rf"^{named}: [0-9.]+ questions/s$", err, re.MULTILINE)
    ours, sizes = ["attention fusion", "avg"], (3, 14, 3, 14)
    stock = [[f"generate(), batches of {size} prompts", *ours] for size in sizes]
    assert order == sum(stock, ours)
    assert re.findall(rf"^{named} +[0-9.]+ ", out, re.MULTILINE) == list(dict.fromkeys(order))


def test_throughput_of_answers_of_unlike_lengths(common, capsys):
    given = ["--num_paraphrases", 2, "--stock_batches", 5, "--unlike", "2,9"]
    assert run_script(throughput, *common, *given) == 0
    out = capsys.readouterr().out
    shares = dict(re.findall(r"^(.+): ([0-9.]+)% of the decoded rows were of use$", out, re.M))
    assert list(shares) == ["attention fusion", "avg"]
    assert all(40 < float(share) <= 100 for share in shares.values())


@pytest.mark.parametrize("lengths", ["5", "9,2", "0,3", "2,2"])
def test_throughput_refuses_lengths_that_are_none(common, capsys, lengths):
    assert run_script(throughput, *common, "--unlike", lengths) == 2
    assert capsys.readouterr().err.startswith("error: --unlike: ")


def test_throughput_prompts_are_the_chat_templates(small, common, capsys):
    """The small model has no chat template, so that honouring the flag is an error."""
    assert run_script(throughput, *common, "--num_paraphrases", 2, "--chat_template") == 2
    assert capsys.readouterr().err.startswith("error: --chat_template: the tokenizer")


@pytest.mark.parametrize("sizes", ["0", "8,0"])
def test_a_batch_of_nothing_is_told_in_one_line(common, capsys, sizes):
    assert run_script(throughput, *common, "--stock_batches", sizes) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --stock_batches: ") and error.count("\n") == 1
    assert "no prompts" in error


def test_batches_do_not_matter_here(common, capsys):
    assert run_script(batches, *common, "--num_paraphrases", 2) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[2] for row in rows] == ["0"] * 6


def test_batches_that_matter_are_told_with_their_margins(common, capsys, monkeypatch):
    """A second batch that answers otherwise, as rounding may make it."""
    real, calls = batches.answer_tokens, []

    def answer_tokens(engine, request, batch_size):
        calls.append(batch_size)
        answers = real(engine, request, batch_size)
        if batch_size == batches.BATCH:
            answers[3] = (*answers[3][:-1], -1)
        return answers

    monkeypatch.setattr(batches, "answer_tokens", answer_tokens)
    assert run_script(batches, *common, "--num_paraphrases", 2) == 0
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[2] for row in rows] == ["1", "0", "0"] * 2
    assert all(float(row[4]) == float(row[5]) > 0 for row in rows if row[2] == "1")


@pytest.mark.slow  # test_resume.py kills at every file operation, without new interpreters
def test_killed_twice_and_started_again():
    """Once a new interpreter, once at a file operation; more of it: python benchmark/kill.py"""
    command = [sys.executable, FOLDER / "kill.py", "--runs", "2", "--questions", "12"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    for row in ("| cold | 1 | 1 |", "| file | 1 | 1 |", "| all | 2 | 2 |"):
        assert row in ended.stdout
    assert int(re.search(r"(\d+) kills: ", ended.stdout)[1]) >= 2


@pytest.mark.parametrize(
    ("flags", "in_a_process_of_its_own"),
    [(("--part_rows", 20), "again"), (("--method", "per_prompt"), None)],
)
def test_scale_measures_every_phase(flags, in_a_process_of_its_own, capsys, monkeypatch):
    """And the run that goes on from a journal ends in the same bytes, or it would fail."""
    started = scale.child

    def child(args, argv, output, kept):
        if output.name == in_a_process_of_its_own:
            return started(args, argv, output, kept)
        return scale.measured_run([*argv, "--output_dir", str(output)], args.method, kept)

    monkeypatch.setattr(scale, "child", child)
    assert run_script(scale, "--questions", 50, *flags) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [row.split(" | ")[1:] for row in lines if row.startswith("| 50 |")]
    assert [row[0] for row in rows] == ["read", "plan", "journal", "write", "restart"]
    assert all(float(row[3].strip(" |").replace(",", "")) > 100 for row in rows)  # MB, with torch


def test_scale_compares_the_two_runs(tmp_path):
    for name, content in (("first", "1,2"), ("again", "1,3")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.csv").write_text(content)
    with pytest.raises(UserError, match=r"a\.csv of the run that went on differs"):
        scale.check_same(tmp_path / "first", tmp_path / "again")


def child(code):
    said = tempfile.TemporaryFile()  # noqa: SIM115, closed by `wait`
    process = subprocess.Popen([sys.executable, "-c", code], stderr=said)
    process.returncode = 0  # it is `wait` that waits
    return kill.Child(process.pid, said)


def test_a_run_that_ends_otherwise_is_noticed(tmp_path, monkeypatch):
    case = kill.Case(kill.generate, (), 12)

    def started(case, folder, told):
        (folder / "a.csv").write_bytes(b"1,2\n")
        return child("")

    monkeypatch.setattr(kill, "start_warm", started)
    normal = kill.Undisturbed({"a.csv": b"1,2\n"}, cold_seconds=1, seconds=1, operations=1)
    assert kill.kill_and_finish(case, "file", normal, random.Random(2)) == []
    other = replace(normal, files={"a.csv": b"1,3\n"})
    with pytest.raises(AssertionError, match="not as undisturbed"):
        kill.kill_and_finish(case, "file", other, random.Random(2))


def test_a_run_that_fails_is_told_with_what_it_said():
    with pytest.raises(UserError, match=r"ended with status 1, where .*\n.*\n.*\nValueError: why"):
        kill.wait(child("raise ValueError('why')"))
