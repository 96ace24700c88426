"""Paraphrasing from the command line to its files, on the demo model, whose output is poor."""

import csv
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from small import run_script, write_jsonl
from tiny import TinyTokenizer, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from writing import error_of

import paraphrase
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.data import DatasetOptions, Record, load_dataset, prompt_template
from self_ensemble.data.result_files import read_manifest
from self_ensemble.experiment.config import ParaphraseRunConfig, PromptConfig, QuestionConfig
from self_ensemble.experiment.journal import Journal
from self_ensemble.experiment.questions import read_questions
from self_ensemble.generation import batching, loading, sampling
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.forward import Forward
from self_ensemble.generation.request import Request
from self_ensemble.generation.sampling import Sampling
from self_ensemble.generation.stopping import NeverStop
from self_ensemble.generation.streams import logit_streams
from self_ensemble.paraphrasing import candidates, prompts, quality_filter
from self_ensemble.paraphrasing.candidates import Candidates
from self_ensemble.paraphrasing.rejections import Rejection
from self_ensemble.system.bundled import DEMO_MODEL
from self_ensemble.system.lock import held

pytestmark = pytest.mark.usefixtures("models_kept")

ROOT = Path(__file__).parents[2]
LIMIT = 7
NUM = 3
QUESTIONS = [
    {"uuid": "u0", "question": "What is the capital of Peru?", "answers": ["Lima"]},
    {"uuid": "u1", "paraphrases": ["Mali is governed from [MASK].", "x"], "answers": ["Bamako"]},
    {
        "uuid": "u2",
        "question": "who wrote faust and the sorrows of werther?",
        "answers": ["Goethe"],
    },
    {"uuid": "u3", "question": "Who?", "answers": ["no one"], "relation": "any"},
    {"uuid": "ü4", "question": "The ox has [MASK] “legs”.", "answers": ["4", "four"]},
    {"uuid": "u5", "question": "Which language is spoken in Lima, Peru?", "answers": ["Spanish"]},
]


@pytest.fixture(autouse=True, scope="module")
def one_filling():
    """A pass has several batches, of which a stopped run has made some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "FILLINGS", 1)
        yield


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("questions") / "own.jsonl", QUESTIONS)


def arguments(questions, folder, *more) -> list[str]:
    place = () if "--output" in more else ("--output_dir", str(folder))
    return [
        *("--dataset", str(questions), *place, "--batch_size", "4"),
        *("--num_paraphrases", str(NUM), "--temperature", "1.5", "--max_new_tokens", str(LIMIT)),
        *map(str, more),
    ]


def made(questions, folder, *more) -> Path:
    """The stem of what a command line made."""
    return paraphrase.main(paraphrase.parse_args(arguments(questions, folder, *more)))


def lines(stem) -> list[dict]:
    text = stem.with_name(stem.name + ".jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def drawn(stem) -> dict[str, list[str]]:
    return {line["uuid"]: line["paraphrases"] for line in lines(stem)}


def contents(stem) -> dict[str, bytes]:
    """Of the two files that must come out the same, however often a run was killed."""
    return {end: stem.with_name(stem.name + end).read_bytes() for end in (".jsonl", "_report.csv")}


@pytest.fixture(scope="module")
def plain(questions, tmp_path_factory):
    """The stem of an undisturbed run."""
    return made(questions, tmp_path_factory.mktemp("plain"))


# ---- drawing a token -------------------------------------------------------------------------


def slow_pick(logits, number, temperature, top_p) -> int:
    """One row, token by token."""
    weights = [math.exp(logit / temperature) for logit in logits]
    chances = [weight / sum(weights) for weight in weights]
    kept, mass = set(), 0.0
    for token in sorted(range(len(chances)), key=lambda t: -chances[t]):
        if mass < top_p:
            kept.add(token)
        mass += chances[token]
    total = sum(chances[token] for token in kept)
    passed = 0.0
    for token in range(len(chances)):
        passed += chances[token] / total if token in kept else 0.0
        if passed > number:
            return token
    raise AssertionError


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_pick_against_plain_arithmetic(temperature, top_p, monkeypatch):
    monkeypatch.setattr(sampling, "CPU_CHANCES", 7 * 12)  # does not divide the rows
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(100, 12, generator=generator)
    numbers = torch.rand(100, generator=generator, dtype=torch.float64)
    got = sampling.pick(logits, numbers, temperature, top_p).tolist()
    rows = zip(logits.tolist(), numbers.tolist(), strict=True)
    assert got == [slow_pick(*row, temperature, top_p) for row in rows]


def test_pick_draws_by_probability():
    """Numbers evenly spread over [0, 1) draw each token as often as it is likely."""
    chances = torch.tensor([0.1, 0.0, 0.45, 0.2, 0.25])
    numbers = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    for top_p, expected in [(1.0, [100, 0, 450, 200, 250]), (0.69, [0, 0, 643, 0, 357])]:
        got = sampling.pick(chances.log().expand(1000, -1), numbers, 1.0, top_p)
        assert got.bincount(minlength=5).tolist() == expected


def test_pick_never_takes_a_token_without_probability():
    logits = torch.tensor([[-math.inf, 1.0, -math.inf, 0.0, -math.inf]])
    for number in (0.0, 1 - 2**-48):
        numbers = torch.tensor([number], dtype=torch.float64)
        assert sampling.pick(logits, numbers, 1.0, 1.0) in (1, 3)
    # The decode loop sees that its log-probability is no number.
    for top_p in (1.0, 0.9):
        token = sampling.pick(logits * math.nan, torch.tensor([0.5]).double(), 1.0, top_p)
        assert 0 <= token < logits.shape[1]


def test_every_argument_changes_the_number():
    base = (0, "u1", 2, 3)
    others = [(1, "u1", 2, 3), (0, "u", 12, 3), (0, "u1", 3, 2), (0, "u1", 23, 0), (0, "u12", 3, 3)]
    values = [sampling.uniform(*args) for args in [base, *others]]
    assert len(set(values)) == len(values)
    assert sampling.uniform(*base) == values[0]
    many = [sampling.uniform(0, "u", 0, step) for step in range(2000)]
    assert min(many) >= 0 and max(many) < 1
    assert abs(sum(many) / 2000 - 0.5) < 0.02 and abs(sum(x > 0.9 for x in many) - 200) < 40


# ---- drawing paraphrases ---------------------------------------------------------------------


def test_draws_are_those_of_stock_forwards(plain):
    """Token by token from whole prompts, alone, without a cache, by plain arithmetic."""
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    for row, (uuid, attempt) in [(QUESTIONS[0], ("u0", 0)), (QUESTIONS[1], ("u1", 2))]:
        question = row.get("question") or row["paraphrases"][0]
        prompt = prompt_template(
            *prompts.PROMPTS["sentences" if "[MASK]" in question else "questions"]
        )
        ids = tokenizer(prompt.render(question))["input_ids"]
        text, tokens = "", []
        while len(tokens) < LIMIT and "\n" not in text.lstrip():
            with torch.no_grad():
                logits = model(torch.tensor([ids + tokens])).logits[0, -1].double().tolist()
            number = sampling.uniform(0, uuid, attempt, len(tokens))
            token = slow_pick(logits, number, 1.5, 0.95)
            if token == tokenizer.eos_token_id:
                break
            tokens.append(token)
            text = tokenizer.decode(tokens, skip_special_tokens=True)
        assert drawn(plain)[uuid][attempt] == (text.strip().split("\n") or [""])[0].strip()


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2"])
def test_streams_of_other_models_are_sampled_like_stock(architecture):
    model = tiny_model(architecture)
    prefix, tail = (5, 9, 11), (7, 8)
    segments = [(20, 21, 22, 23), (30,), (40, 41), (50, 51, 52, 53, 54, 55)]
    draws = [(f"u{i}", i) for i in range(len(segments))]
    with FlexAttentionWrapper(model, "eager") as wrapper:
        request = Request(
            prefix,
            [logit_streams(SplitQuestion((s,), tail), len(prefix)) for s in segments],
            max_new_tokens=5,
            stop=NeverStop(),
            sampling=Sampling(temperature=1.0, top_p=0.8, seed=3, keys=draws),
        )
        batches = Engine(model, TinyTokenizer(), wrapper).generate(request, batch_size=3)
        got = {index: answer.token_ids for batch in batches for index, answer in batch}
    for index, segment in enumerate(segments):
        tokens = []
        for step in range(5):
            ids = torch.tensor([[*prefix, *segment, *tail, *tokens]])
            with torch.no_grad():
                logits = model(ids).logits[0, -1].double().tolist()
            number = sampling.uniform(3, *draws[index], step)
            tokens.append(slow_pick(logits, number, 1.0, 0.8))
        assert got[index] == tuple(tokens)


def test_neither_batch_nor_order_changes_a_draw(plain, questions, tmp_path):
    assert len({text for texts in drawn(plain).values() for text in texts}) > 10
    assert drawn(made(questions, tmp_path / "alone", "--batch_size", 1)) == drawn(plain)
    mixed = QUESTIONS[::-1]
    shuffled = write_jsonl(tmp_path / "mixed.jsonl", mixed)
    other = made(shuffled, tmp_path, "--batch_size", 64)
    assert list(drawn(other)) == [row["uuid"] for row in mixed]
    assert drawn(other) == drawn(plain)


def test_a_seed_changes_every_question(plain, questions, tmp_path):
    other = drawn(made(questions, tmp_path, "--seed", 1))
    assert all(other[uuid] != texts for uuid, texts in drawn(plain).items())


def test_a_batch_that_ran_out_of_memory_is_drawn_the_same(plain, questions, tmp_path, monkeypatch):
    fused, calls = Forward.fused, []

    def failing(self, ids, positions):
        calls.append(len(ids))
        if len(calls) == 4:  # some steps into the first batch
            raise torch.OutOfMemoryError
        return fused(self, ids, positions)

    monkeypatch.setattr(Forward, "fused", failing)
    stem = made(questions, tmp_path)
    assert read_manifest(stem)["counts"]["out_of_memory"] == 1
    assert contents(stem) == contents(plain)


def test_the_files_of_a_run(plain, questions):
    rows = lines(plain)
    assert [row["uuid"] for row in rows] == [row["uuid"] for row in QUESTIONS]
    for row, given in zip(rows, QUESTIONS, strict=True):
        assert row["question"] == given.get("question", given.get("paraphrases", [None])[0])
        assert row["answers"] == given["answers"] and row.get("relation") == given.get("relation")
        assert len(row["paraphrases"]) == NUM
    manifest = read_manifest(plain)
    assert manifest["num_questions"] == 6 and manifest["draws"] == 6 * NUM
    assert manifest["short"] == {} and manifest["seconds"] > 0
    assert manifest["identity"]["sampling"] == {"temperature": 1.5, "top_p": 0.95, "seed": 0}
    assert {path.name for path in plain.parent.iterdir()} == {
        *("paraphrases.jsonl", "paraphrases.json", "paraphrases_report.csv")
    }
    assert plain.parts[-3:] == ("own", "demo", "paraphrases")


def test_the_file_is_a_dataset(plain, questions):
    again = load_dataset(f"{plain}.jsonl", max_samples=None)
    given = load_dataset(str(questions), max_samples=None)
    for new, old in zip(again.records, given.records, strict=True):
        assert (new.uuid, new.answers, new.relation) == (old.uuid, old.answers, old.relation)
        assert list(new.paraphrases) == drawn(plain)[new.uuid]
        assert new.question == (old.question or old.paraphrases[0])


def test_questions_without_answers_and_choices_that_are_kept(questions, plain, tmp_path, capsys):
    """The draws do not depend on either; the filter has no answer to look for, and says so."""
    rows = [{k: v for k, v in row.items() if k != "answers"} for row in QUESTIONS]
    rows[0]["choices"] = ["Lima", "Cusco"]
    stem = made(write_jsonl(tmp_path / "own.jsonl", rows), tmp_path)
    assert drawn(stem) == drawn(plain)
    assert not any("answers" in row for row in lines(stem))
    out = capsys.readouterr().out
    assert "answer_leaked             -       -  not looked for: the questions have no" in out
    records = load_dataset(f"{stem}.jsonl").records
    assert records[0].choices == ("Lima", "Cusco") and records[0].answers == ()
    assert [r.choices for r in records[1:]] == [()] * 5
    answered = [rows[0] | {"answers": ["Lima"]}]
    stem = made(write_jsonl(tmp_path / "few.jsonl", answered), tmp_path)
    [record] = load_dataset(f"{stem}.jsonl").records
    assert (record.choices, record.answers) == (("Lima", "Cusco"), ("Lima",))


def test_a_question_without_a_wording_is_told_of(tmp_path, capsys):
    rows = [*QUESTIONS, {"uuid": "u6", "paraphrases": [], "answers": ["x"]}]
    file = write_jsonl(tmp_path / "own.jsonl", rows)
    assert run_script(paraphrase, *arguments(file, tmp_path)) == 2
    told = f"line 7 of {file} (uuid u6) has no paraphrases and no question"
    assert told in capsys.readouterr().err


def test_a_file_in_which_questions_have_fewer_is_asked_from(tmp_path, monkeypatch, capsys):
    """What --drop left of some questions, end to end: as it is, and without those questions."""

    def reasons(text, *, question, earlier, **_):
        return EMPTY if "Peru?" in question or len(earlier) > len(question) % 3 else ()

    monkeypatch.setattr(candidates, "rejections", reasons)
    file, out = write_jsonl(tmp_path / "own.jsonl", QUESTIONS), tmp_path / "left.jsonl"
    argv = arguments(file, tmp_path, "--output", out, "--drop", "--max_attempts", 1)
    assert run_script(paraphrase, *argv) == paraphrase.SHORT_STATUS
    assert "with --fewer use, and leave them out with --fewer skip" in capsys.readouterr().err
    counts = {uuid: len(texts) for uuid, texts in drawn(out.with_suffix("")).items()}
    assert {0, NUM} < set(counts.values()), counts

    def asked(**options):
        config = QuestionConfig(dataset=str(out), options=DatasetOptions(**options))
        return read_questions(config, PromptConfig(), model="demo")

    sentence = error_of(asked, num_paraphrases=NUM)
    assert f"line 1 of {out} (uuid u0) has none" in sentence
    used = asked(num_paraphrases=NUM, fewer="use")
    assert {r.uuid: len(r.paraphrases) for r in used.records} == {
        uuid: count for uuid, count in counts.items() if count
    }
    skipped = asked(num_paraphrases=NUM, fewer="skip")
    assert [r.uuid for r in skipped.records] == [u for u, count in counts.items() if count == NUM]
    assert skipped.left_out == sum(count < NUM for count in counts.values())


# ---- stopping and going on -------------------------------------------------------------------


def stop_after(monkeypatch, adds, error):
    """Raises once so many batches are in the journal; without a limit counts them."""
    add, added = Journal.add, []

    def counted(self, *args):
        add(self, *args)
        added.append(args)
        if len(added) == adds:
            raise error

    monkeypatch.setattr(Journal, "add", counted)
    return added


def test_a_run_goes_on_where_it_was_stopped(plain, questions, tmp_path, monkeypatch, capsys):
    argv = arguments(questions, tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        patch.setattr(os, "_exit", sys.exit)  # which would end the tests too
        assert run_script(paraphrase, *argv) == 130
    err = capsys.readouterr().err
    journal = tmp_path / "own/demo/paraphrases.journal"
    assert f"interrupted: what was drawn is kept in {journal}; the same command goes on" in err
    with monkeypatch.context() as patch:
        added = stop_after(patch, 3, RuntimeError("stopped"))
        with pytest.raises(RuntimeError, match="stopped"):
            made(questions, tmp_path)
    assert [name for name, *_ in added] == ["questions, attempt 1"] * 2 + ["sentences, attempt 1"]
    assert [path.name for path in journal.parent.iterdir()] == [journal.name]

    assert run_script(paraphrase, *argv, "--seed", 1) == 2
    assert "left by another run: sampling.seed is 0 there and 1 here" in capsys.readouterr().err
    assert run_script(paraphrase, *argv, "--max_samples", 5) == 2
    assert "num_questions is 6 there and 5 here" in capsys.readouterr().err

    journal.write_bytes(journal.read_bytes()[:-3])
    with monkeypatch.context() as patch:
        added = stop_after(patch, None, None)
        stem = made(questions, tmp_path)
    assert len(added) == 2  # of five: two kept, the third cut short
    assert "ends in the middle of a batch" in capsys.readouterr().err
    assert contents(stem) == contents(plain)
    assert not journal.exists()
    counts = [read_manifest(made)["counts"] for made in (stem, plain)]
    assert counts[0] == counts[1]


def test_a_journal_of_other_draws_is_not_taken(questions, tmp_path, monkeypatch, capsys):
    """As when another version of the filter planned what is drawn again."""
    argv = arguments(questions, tmp_path, "--drop", "--max_attempts", 2)
    with monkeypatch.context() as patch:
        stop_after(patch, 5, RuntimeError)
        patch.setattr(candidates, "rejections", lambda text, **_: EMPTY if "a" in text else ())
        with pytest.raises(RuntimeError):
            run_script(paraphrase, *argv)
    monkeypatch.setattr(candidates, "rejections", lambda text, **_: () if "a" in text else EMPTY)
    assert run_script(paraphrase, *argv) == 2
    assert "does not fit what is to be drawn" in capsys.readouterr().err


KILLED = """
import os, signal, sys
import paraphrase
from self_ensemble.experiment.journal import Journal
from self_ensemble.experiment.questions import read_questions
from self_ensemble.experiment import paraphrase_run

add = Journal.add

def deadly(self, name, *args):
    add(self, name, *args)
    if name.startswith("sentences"):
        os.kill(os.getpid(), signal.SIGKILL)

Journal.add = deadly
paraphrase.main(paraphrase.parse_args())
"""


def test_a_killed_process_is_gone_on_with(plain, questions, tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments(questions, tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = tmp_path / "own/demo"
    assert {path.name for path in folder.iterdir()} == {"paraphrases.journal", "paraphrases.lock"}
    assert contents(made(questions, tmp_path)) == contents(plain)


def test_a_finished_file_is_not_made_again(plain, questions, tmp_path, monkeypatch, capsys):
    folder = plain.parents[2]
    before = contents(plain)
    with monkeypatch.context() as patch:
        patch.setattr(loading, "loaded_engine", None)  # calling it would fail
        for more in ((), ("--max_samples", 2), ("--batch_size", 9)):
            assert made(questions, folder, *more) == plain
            assert "is finished already; --overwrite makes it again" in capsys.readouterr().err
        for more, what in [
            (("--temperature", 1), "sampling.temperature is 1.5 there and 1.0 here"),
            (("--num_paraphrases", 2), "num_paraphrases is 3 there and 2 here"),
            (("--drop",), "drop is false there and true here"),
            (("--max_new_tokens", 8), "max_new_tokens is 7 there and 8 here"),
        ]:
            assert run_script(paraphrase, *arguments(questions, folder, *more)) == 2
            err = capsys.readouterr().err
            assert what in err and "--overwrite or another --output" in err
        with held(plain):
            argv = arguments(questions, folder, "--overwrite")
            assert run_script(paraphrase, *argv) == 2
            assert "is being written by another run" in capsys.readouterr().err
    assert contents(plain) == before


def test_more_questions_than_a_finished_file_has_are_drawn(questions, plain, tmp_path):
    stem = made(questions, tmp_path, "--max_samples", 1)
    assert len(lines(stem)) == 1
    assert made(questions, tmp_path) == stem
    assert contents(stem) == contents(plain)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine_report.csv", "mine.json"])
def test_a_file_of_the_users_is_not_replaced(questions, tmp_path, capsys, monkeypatch, name):
    own = tmp_path / name
    own.write_text('{"identity": {}, "num_questions": 1}\n')
    monkeypatch.setattr(loading, "loaded_engine", None)  # calling it would fail
    output = tmp_path / "mine.jsonl"
    file = write_jsonl(tmp_path / "checked.jsonl", CHECKED[:2])
    for argv in (["--dataset", questions], ["--check", file, "--drop"]):
        assert run_script(paraphrase, *argv, "--output", output) == 2
        assert f"{name} is there already, and this run did not make it" in capsys.readouterr().err
        assert [path.name for path in tmp_path.glob("mine*") if path.suffix != ".lock"] == [name]
    assert own.read_text().startswith('{"identity": {}')


# ---- the quality filter ----------------------------------------------------------------------


EMPTY = (Rejection("empty"),)


def odd_is_wrong(text, **_):
    return EMPTY if len(text) % 2 else ()


def test_what_is_dropped_is_drawn_again(questions, tmp_path, monkeypatch, capsys):
    """With --drop the file holds the first of the draws that pass, the best of them first."""
    monkeypatch.setattr(candidates, "rejections", odd_is_wrong)
    attempts = 3
    every = drawn(made(questions, tmp_path / "all", "--num_paraphrases", NUM * attempts))
    capsys.readouterr()
    out = tmp_path / "out.jsonl"
    argv = arguments(questions, tmp_path, "--drop", "--max_attempts", attempts, "--output", out)
    status = run_script(paraphrase, *argv)
    told = capsys.readouterr()
    got = drawn(tmp_path / "out")
    short = {}
    for uuid, texts in every.items():
        left, place = [], 0
        for _ in range(attempts):
            missing = NUM - len(left)
            left += [text for text in texts[place : place + missing] if len(text) % 2 == 0]
            place += missing
        assert sorted(got[uuid]) == sorted(left)
        if len(left) < NUM:
            short[uuid] = len(left)
            assert f"question {uuid} has {len(left)} of {NUM} paraphrases" in told.err
    assert 0 < len(short) < len(got)  # both ends are tried
    assert status == paraphrase.SHORT_STATUS
    assert read_manifest(tmp_path / "out")["short"] == short
    report = (tmp_path / "out_report.csv").read_text(encoding="utf-8")
    flagged = [line.split()[1] for line in told.out.splitlines() if line.startswith("empty")]
    assert flagged == [str(report.count("\n") - 1)]
    assert run_script(paraphrase, *argv) == paraphrase.SHORT_STATUS  # and so it stays


def test_a_run_of_which_next_to_nothing_passes_ends(questions, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(candidates, "rejections", lambda text, **_: EMPTY)
    argv = arguments(questions, tmp_path, "--drop", "--max_attempts", 4)
    assert run_script(paraphrase, *argv) == paraphrase.SHORT_STATUS
    told = capsys.readouterr().err
    assert "attempt 1: 0.0% of 12 draws passed, so no more are drawn" in told
    assert "attempt 2" not in told


def test_draws_go_through_the_quality_filter(plain):
    """The report says what the filter finds in each of the draws."""
    with open(f"{plain}_report.csv", encoding="utf-8", newline="") as file:
        told = defaultdict(list)
        for row in csv.DictReader(file):
            told[row["uuid"], row["paraphrase"]].append((row["check"], row["what"]))
    flagged = 0
    for row in lines(plain):
        earlier = []
        for said in row["paraphrases"]:
            reported = told.get((row["uuid"], said), [])
            wrong = quality_filter.rejections(
                said,
                question=row["question"],
                answers=row["answers"],
                earlier=earlier,
                echoes=prompts.ECHOES,
                truncated=("truncated", "") in reported,  # which the text does not tell
            )
            earlier.append((said, wrong))
            assert [(each.check, each.what) for each in wrong] == reported
            flagged += bool(wrong)
    assert flagged == read_manifest(plain)["flagged"]
    seen = {check for wrong in told.values() for check, _ in wrong}
    assert {"truncated", "lost_mask", "lost_name"} <= seen


def test_an_example_of_the_prompt_is_no_paraphrase():
    shot = prompts.PROMPTS["questions"][1][0]
    for question, found in [("Who?", True), (shot.question, False)]:
        asked = Candidates(Record("u", (question,), ("x",)))
        for text in (shot.question, shot.answer):
            asked.add(text, truncated=False)
        seen = [{each.check for each in wrong} for _, wrong in asked.texts]
        assert ["echo" in wrong for wrong in seen] == [found, True]


def test_a_draw_that_came_before_is_a_copy():
    asked = Candidates(Record("u", ("Who was it?",), ("x",)))
    for text in ("Who is it?", "who is IT", "Whose is it?"):
        asked.add(text, truncated=False)
    copy = Rejection("copy_of_another", "Who is it?")
    assert [wrong for _, wrong in asked.texts] == [(), (copy,), ()]
    assert asked.paraphrases(drop=True) == ["Who is it?", "Whose is it?"]
    assert asked.paraphrases(drop=False) == ["Who is it?", "who is IT", "Whose is it?"]


CHECKED = [
    {
        "uuid": "c0",
        "question": "Where is Faust set?",
        "paraphrases": ["Faust is set where?", "where is FAUST set", "Is Faust set in Leipzig?"],
        "answers": ["Leipzig"],
    },
    {"uuid": "c1", "paraphrases": ["[MASK] wrote it.", "It is by [MASK]."], "answers": ["Goethe"]},
    {"uuid": "c2", "question": "Who was Faust?", "paraphrases": ["Who?"], "answers": ["a man"]},
]


def test_check_reports_and_drops_without_a_model(tmp_path):
    """In a process of its own, since here torch is loaded already."""
    file = write_jsonl(tmp_path / "checked.jsonl", CHECKED)
    script = """
import sys, paraphrase
from self_ensemble.cli import parser as cli
status = 0
try:
    cli.run(paraphrase.main, paraphrase.parse_args(sys.argv[1:]))
except SystemExit as end:
    status = end.code
assert "torch" not in sys.modules
sys.exit(status)
"""

    def check(*argv):
        command = [sys.executable, "-c", script, "--check", str(file), *map(str, argv)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    told = check("--output_dir", tmp_path / "data")
    assert told.returncode == 0, told.stderr
    [report] = (tmp_path / "data/checked").glob("*")
    assert re.fullmatch(r"checked\.jsonl-[0-9a-f]{8}_report\.csv", report.name)
    assert report.read_text().splitlines() == [
        '"uuid","paraphrase","check","what","value"',
        '"c0","where is FAUST set","copy_of_question","",""',
        '"c0","Is Faust set in Leipzig?","answer_leaked","Leipzig",""',
        '"c0","Is Faust set in Leipzig?","added_name","leipzig",""',
        '"c0","Is Faust set in Leipzig?","not_a_question","yes or no",""',
        '"c2","Who?","lost_name","faust",""',
        '"c2","Who?","lost_words","",0.0',
    ]
    out = tmp_path / "left.jsonl"
    told = check("--drop", "--output", out)
    assert told.returncode == paraphrase.SHORT_STATUS
    assert "question c2 has 0 of 1 paraphrases" in told.stderr
    assert drawn(tmp_path / "left") == {
        "c0": ["Faust is set where?"],
        "c1": ["[MASK] wrote it.", "It is by [MASK]."],
        "c2": [],
    }


def test_the_name_of_a_file_need_not_be_utf8(tmp_path):
    file = write_jsonl(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), CHECKED[:2])
    output = tmp_path / "left.jsonl"
    assert run_script(paraphrase, "--check", file, "--drop", "--output", output) == 0
    manifest = json.loads(output.with_suffix(".json").read_bytes())
    assert manifest["dataset"] == os.fsdecode(b"caf\xe9")


def test_check_does_not_replace_a_file(tmp_path, capsys):
    file = write_jsonl(tmp_path / "checked.jsonl", CHECKED[:2])
    out = write_jsonl(tmp_path / "left.jsonl", [])
    argv = ["--check", file, "--drop", "--output", out]
    assert run_script(paraphrase, *argv) == 2
    assert "left.jsonl is there already" in capsys.readouterr().err
    assert run_script(paraphrase, *argv, "--overwrite", "--num_paraphrases", 2) == 1
    assert len(lines(tmp_path / "left")) == 2
    assert "question c0 has 1 of 2 paraphrases" in capsys.readouterr().err


# ---- the prompt and the command line ---------------------------------------------------------


def test_the_chat_template_of_the_model_is_used(tmp_path):
    folder = tmp_path / "chatty"
    shutil.copytree(DEMO_MODEL, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    turn = "[{{ message['role'][0] }} {{ message['content'] }}]{{ '\\n' }}"
    config["chat_template"] = f"<bos>{{% for message in messages %}}{turn}{{% endfor %}}"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    file = write_jsonl(tmp_path / "one.jsonl", QUESTIONS[:1])
    argv = ["--model", folder, "--num_paraphrases", 1, "--chat_template"]
    stem = made(file, tmp_path, *argv)
    assert stem.parts[-3:] == ("one", "chatty", "paraphrases")
    head, tail = read_manifest(stem)["identity"]["prompt"]["questions"]
    *_, shown = prompts.QUESTION_EXAMPLES
    assert head.startswith("<bos>[u Ask the same question") and tail == "]\n"
    assert head.endswith(f"[u {shown.question}]\n[a {shown.answer}]\n[u ")


def test_each_kind_has_its_prompt():
    templates = prompts.plain_templates()
    for kind, mask in (("questions", 0), ("sentences", 1)):
        examples = prompts.PROMPTS[kind][1]
        assert len(examples) >= 5
        for shot in examples:
            assert shot.question.count("[MASK]") == shot.answer.count("[MASK]") == mask
            assert f"Q: {shot.question}\nA: {shot.answer}\n\n" in templates[kind].head


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("--temperature 0", "--temperature: '0' is not a number above 0"),
        ("--top-p 1.5", "--top_p: '1.5' is not a number above 0 and at most 1"),
        ("--top_p nan", "--top_p: 'nan' is not a number"),
        ("--seed -1", "--seed: '-1' is not a whole number"),
        ("--output x.csv", "--output: 'x.csv' does not end in .jsonl"),
        ("--max_attempts 2", "--max_attempts: without --drop nothing is drawn again"),
        ("--data_dir d", "--data_dir belongs to --dataset webqa, myriadlama and pararel"),
        (
            "--dataset webqa --data_dir d --dataset_revision r",
            "a folder (--data_dir) has one state",
        ),
        ("--check f.jsonl --seed 3", "--seed: --check draws nothing and does not use it"),
        ("--check f.jsonl --chat_template", "--chat_template: --check draws nothing"),
        ("--check f.jsonl --dtype float32", "--dtype: --check loads no model without --model"),
        ("--check f.jsonl --verbose", "--verbose: --check draws nothing"),
        ("--check f.jsonl --num_paraphrases 50", "--num_paraphrases: --check counts what is left"),
        ("--output_dir d --output o.jsonl", "--output_dir: --output names the file already"),
        ("--check webqa", "--check: webqa names a dataset; give the path of a file"),
        ("--check f.jsonl --drop", "--drop: --check needs --output FILE.jsonl"),
        ("--check f.jsonl --output g.jsonl", "--check writes what is left only with --drop"),
        (
            "--dataset README.md --output README.jsonl --num_samples 3",
            "unknown flag '--num_samples'",
        ),
    ],
)
def test_command_line_mistakes(argv, error, capsys):
    with pytest.raises(SystemExit) as end:
        paraphrase.parse_args(argv.split())
    assert end.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and error in err


def test_the_questions_are_not_written_over(questions, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(questions.parent)
    with pytest.raises(SystemExit):
        paraphrase.parse_args(["--dataset", str(questions), "--output", "own.jsonl", "--overwrite"])
    assert "own.jsonl is the file that the questions are read from" in capsys.readouterr().err


def test_defaults_stand_once():
    config = paraphrase.parse_args([])
    assert config == ParaphraseRunConfig()
    assert (config.dataset, config.model.name, config.paraphrases.num_paraphrases) == (
        *("demo", "demo", 5),
    )
    assert paraphrase.parse_args(["--check", "f.jsonl"]).num_paraphrases == 1


def test_questions_of_the_hub_are_put_in_other_words(tmp_path):
    """Without paraphrases of their own, which this very file is to bring."""
    asked = [
        {"url": "x", "question": question, "answers": ["x"]}
        for question in ("who wrote it?", "where is it?")
    ]
    write_jsonl(tmp_path / "web_questions_test.jsonl", asked)
    argv = ["--data_dir", tmp_path, "--max_samples", 2]
    stem = made("webqa", tmp_path / "data", *argv)
    assert stem == tmp_path / "data/webqa/demo/paraphrases"
    assert [row["question"] for row in lines(stem)] == [row["question"] for row in asked]
