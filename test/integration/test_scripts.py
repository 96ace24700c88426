"""Both scripts from the command line to their files, on a small model."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from oracle import joint_oracle, mean_oracle
from small import (
    INSTRUCTION,
    NAMED_TAU,
    QUESTIONS,
    TAU,
    StockAnswer,
    entropy_weights,
    make_tokenizer,
    run_script,
    stock_answer,
    write_jsonl,
)
from tiny import tiny_model
from transformers import StoppingCriteriaList

import flex_attention_generate
import generate
from self_ensemble.attention import masks, patching, segments
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.segments import split_prompts
from self_ensemble.data import Record, prompt_template
from self_ensemble.data.extraction import FIRST_LINE
from self_ensemble.data.result_files import (
    REQUIRED_COLUMNS,
    read_manifest,
    read_results,
)
from self_ensemble.data.result_tables import LIST_DEPTHS
from self_ensemble.evaluation import lemmatizer
from self_ensemble.experiment.rows import answer_row
from self_ensemble.generation.attaching import make_engine
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.generation.decode import Answer
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.models import loading
from self_ensemble.system import console as progress

ROOT = Path(__file__).parents[2]
SCRIPTS = [generate, flex_attention_generate]
LIMIT = 6
TEMPLATE = prompt_template(INSTRUCTION, [])


@dataclass(frozen=True)
class Ran:
    """What a run left: its exit status, its stderr, its table and its manifest.

    Read at once, since another run may write the same files.
    """

    code: int
    err: str
    stem: Path | None = None
    rows: list[dict] | None = None
    manifest: dict | None = None

    @property
    def generations(self) -> list[str]:
        return [row["generation"] for row in self.rows]


@pytest.fixture
def run(small, tmp_path, capsys):
    """Runs a script on the small questions; what is given comes behind and so overrides."""

    def run(script, *argv) -> Ran:
        capsys.readouterr()
        code = run_script(
            script,
            *("--dataset", small.questions, "--model", small.folder),
            *("--output_dir", tmp_path / "out", "--instruction", INSTRUCTION),
            *(() if {"origin", "--indexs"} & {*argv} else ("--num_paraphrases", 4)),
            *("--max_new_tokens", LIMIT, "--batch_size", 2, *argv),
        )
        out, err = capsys.readouterr()
        assert out == ""
        found = re.search(r"(?:^wrote |^added .+ to |^)(\S+)\.feather", err, re.MULTILINE)
        if code != 0:
            return Ran(code, err)
        table = read_results(f"{found[1]}.feather")
        return Ran(code, err, Path(found[1]), table.to_dict("records"), read_manifest(found[1]))

    return run


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def prompts_of(question):
    return [TEMPLATE.render(paraphrase) for paraphrase in question["paraphrases"]]


def check_rows(rows, answers: list[StockAnswer]):
    for row, answer in zip(rows, answers, strict=True):
        assert row["generation"] == answer.text
        assert row["prediction"] == answer.prediction
        assert row["truncated"] == answer.truncated
        assert row["logprob"] == pytest.approx(sum(answer.logprobs), abs=1e-3)


# ---- files ----------------------------------------------------------------------------------

RUNS = {
    "attention": (flex_attention_generate, [], f"flex_attention{NAMED_TAU}-4"),
    "avg": (generate, [], "avg-4"),
    "vote": (generate, ["--method", "vote"], "vote-4"),
    "origin": (generate, ["--method", "origin"], "origin-1"),
    "per_prompt": (generate, ["--method", "per_prompt"], "per_prompt-4"),
}


@pytest.mark.parametrize("name", RUNS)
def test_files_columns_and_order(run, tmp_path, name):
    script, argv, stem = RUNS[name]
    ran = run(script, *argv)
    assert ran.code == 0
    written = files_in(tmp_path / "out")
    folder = "capitals/tiny-llama"
    assert sorted(written) == [f"{folder}/{stem}.{s}" for s in ("csv", "feather", "json")]

    table = read_results(f"{ran.stem}.feather")
    own = ["paraphrase"] if name == "per_prompt" else []
    assert sorted(table.columns) == sorted([*REQUIRED_COLUMNS, "relation", *own])
    repeats = 4 if name == "per_prompt" else 1
    expected = [question for question in QUESTIONS for _ in range(repeats)]
    for row, question in zip(ran.rows, expected, strict=True):
        for column in ("uuid", "answers", "relation"):
            assert row[column] == question[column]
        asked = [question["question"]] if name == "origin" else question["paraphrases"]
        assert row["paraphrases"] == asked
    if own:
        assert table["paraphrase"].tolist() == [p for q in QUESTIONS for p in q["paraphrases"]]

    with open(f"{ran.stem}.csv", encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    for cell, row in zip(cells, ran.rows, strict=True):
        assert list(cell) == list(table.columns)
        for column, value in row.items():
            text = cell[column]
            assert (json.loads(text) if column in LIST_DEPTHS else text) == (
                value if column in LIST_DEPTHS else str(value)
            )
    assert read_results(f"{ran.stem}.csv").equals(table)


NAMES = [
    ([], f"flex_attention{NAMED_TAU}-4"),
    (["--num_paraphrases", "2"], f"flex_attention{NAMED_TAU}-2"),
    (["--positions", "exact"], f"flex_attention{NAMED_TAU}-4"),
    (["--positions", "left"], f"flex_attention-left{NAMED_TAU}-4"),
    (["--positions", "right"], f"flex_attention-right{NAMED_TAU}-4"),
    (["--positions", "sequential"], f"flex_attention-sequential{NAMED_TAU}-4"),
    (["--fusion", "joint"], "flex_attention-joint-4"),
    (["--fusion", "joint", "--positions", "left"], "flex_attention-joint-4"),
    (["--fusion", "joint", "--positions", "right"], "flex_attention-right-joint-4"),
    (["--fusion", "joint", "--positions", "sequential"], "flex_attention-sequential-joint-4"),
    (["--layout", "concat"], f"flex_attention-concat{NAMED_TAU}-4"),
    (["--layout", "concat", "--positions", "exact"], f"flex_attention-concat{NAMED_TAU}-4"),
    (["--layout", "concat", "--positions", "left"], f"flex_attention-concat-left{NAMED_TAU}-4"),
    (["--layout", "concat", "--positions", "right"], f"flex_attention-concat-right{NAMED_TAU}-4"),
    (
        ["--layout", "concat", "--positions", "sequential"],
        f"flex_attention-concat-sequential{NAMED_TAU}-4",
    ),
    (["--layout", "concat", "--fusion", "joint"], "flex_attention-concat-joint-4"),
    (
        ["--layout", "concat", "--fusion", "joint", "--positions", "right"],
        "flex_attention-concat-right-joint-4",
    ),
    (
        ["--layout", "concat", "--fusion", "joint", "--positions", "sequential"],
        "flex_attention-concat-sequential-joint-4",
    ),
    (["--fusion_tau", "0"], "flex_attention-4"),
    (["--fusion_tau", "-0.5"], "flex_attention-tau-0.5-4"),
    (["--fusion_tau", "1", "--weights", "1,2,0,4"], "flex_attention-tau1-w1_2_0_4-4"),
    (["--fusion_tau", "0", "--weights", "1,2,0,.5"], "flex_attention-w1_2_0_0.5-4"),
    (["--fusion", "joint", "--weights", "1,2,0,4"], "flex_attention-joint-w1_2_0_4-4"),
    (["--fusion_tau", "0", "--weights_by", "entropy:1"], "flex_attention-entropy1-4"),
    (
        ["--fusion_tau", "2", "--positions", "left", "--weights-by", "entropy:.50"],
        "flex_attention-left-tau2-entropy0.5-4",
    ),
    (["--fusion", "joint", "--weights_by", "entropy:1"], "flex_attention-joint-entropy1-4"),
    (["--indexs", "3,1"], f"diversity/flex_attention{NAMED_TAU}-3_1"),
]


@pytest.mark.parametrize("argv, name", NAMES)
def test_every_layout_positions_and_fusion_has_its_file(run, tmp_path, argv, name):
    ran = run(flex_attention_generate, *argv)
    assert ran.code == 0
    assert ran.stem == tmp_path / "out" / "capitals" / "tiny-llama" / name
    assert len(ran.rows) == len(QUESTIONS) and any(ran.generations)
    settings = {"name", "layout", "positions", "fusion", "tau", "weights"}
    assert set(ran.manifest["identity"]["method"]) - {"weights_by"} == settings
    assert ("weights_by" in ran.manifest["identity"]["method"]) == ("entropy" in name)


def test_learned_positions_are_left_by_default(small, tmp_path, run):
    tiny_model("gpt2", vocab_size=len(small.tokenizer)).save_pretrained(tmp_path / "gpt2")
    small.tokenizer.save_pretrained(tmp_path / "gpt2")
    ran = run(flex_attention_generate, "--model", tmp_path / "gpt2")
    assert ran.stem == tmp_path / "out" / "capitals" / "gpt2" / f"flex_attention{NAMED_TAU}-4"
    assert ran.manifest["identity"]["method"]["positions"] == "left"
    refused = run(
        flex_attention_generate, "--model", tmp_path / "gpt2", "--positions", "exact", "--overwrite"
    )
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--positions exact" in refused.err and "use --positions left" in refused.err


@pytest.mark.parametrize("script", SCRIPTS)
def test_manifest(small, run, script):
    ran = run(script, "--max_samples", 5)
    manifest = ran.manifest
    assert manifest["identity"] == {
        "data": manifest["identity"]["data"],
        "model": manifest["identity"]["model"],
        "prompt": {"head": TEMPLATE.head, "tail": TEMPLATE.tail, "chat_template": False},
        "paraphrases": 4,
        "method": manifest["identity"]["method"],
        "dtype": "float32",
        "max_new_tokens": LIMIT,
    }
    assert manifest["num_questions"] == 5
    assert manifest["dataset"] == "capitals"
    assert manifest["model"] == {"name": str(small.folder), "revision": None}
    assert manifest["versions"]["torch"] == torch.__version__
    assert manifest["seconds"] > 0

    # Every question's tokens once; a decoded row is a question, or a paraphrase of one.
    counts = manifest["counts"]
    prefix, split = split_prompts(
        small.tokenizer, TEMPLATE, [question["paraphrases"] for question in QUESTIONS[:5]]
    )
    segments = [segment for question in split for segment in question.segments]
    assert counts["encoded_tokens"] == len(prefix) + sum(map(len, segments))
    stops = [not row["truncated"] for row in ran.rows]
    assert counts["decoded_tokens"] >= len(stops)
    rows_a_question = 1 if script is flex_attention_generate else 4
    assert counts["largest_batch"] == 2
    assert counts["decode_rows"] <= counts["decode_forwards"] * 2 * rows_a_question
    assert counts["decode_rows"] % rows_a_question == 0


def test_one_row_a_question(run):
    """Never stopped early, every forward of attention fusion has a row a question, avg four."""
    never = ("--max_new_tokens", 1, "--batch_size", 7)
    fused, averaged = (run(script, *never).manifest["counts"] for script in SCRIPTS[::-1])
    assert (fused["decode_forwards"], fused["decode_rows"]) == (1, 7)
    assert (averaged["decode_forwards"], averaged["decode_rows"]) == (1, 28)


def test_last_lines_say_what_was_done(run, tmp_path):
    for script, argv, stem in RUNS.values():
        lines = run(script, *argv).err.splitlines()
        path = tmp_path / "out" / "capitals" / "tiny-llama" / stem
        assert lines[-2] == f"wrote {path}.feather (.csv and .json beside it)"
        assert re.fullmatch(
            r"7 questions in \d+\.\d s, \d+\.\d questions/s; "
            r"\d+ tokens encoded, \d+ decoded in \d+ rows",
            lines[-1],
        ), lines[-1]
        assert len(lines) == 2


# ---- finished, unfinished, another ----------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_finished_file_is_not_made_again(run, tmp_path, monkeypatch, script):
    first = run(script)
    before = files_in(tmp_path / "out")

    def loaded_engine(*args, **settings):
        raise AssertionError("the model is loaded")

    with monkeypatch.context() as patch:
        patch.setattr("self_ensemble.generation.loading.loaded_engine", loaded_engine)
        # None of these is part of what the answers depend on.
        for argv in (
            [],
            ["--batch_size", "5"],
            ["--attention", "eager"],
            ["--device", "cpu", "--dtype", "float32"],
            ["--max_samples", "3"],
            ["--verbose"],
        ):
            again = run(script, *argv)
            expected = f"{first.stem}.feather is finished already; --overwrite makes it again\n"
            assert (again.code, again.err) == (0, expected)
    assert files_in(tmp_path / "out") == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_overwrite_makes_it_again(run, script):
    first = run(script)
    generations, stamp = first.generations, os.stat(f"{first.stem}.json").st_ino
    again = run(script, "--overwrite")
    assert again.generations == generations
    assert os.stat(f"{first.stem}.json").st_ino != stamp
    assert again.err.startswith("wrote ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_larger_max_samples_extends_the_file(run, script):
    few = run(script, "--max_samples", 3)
    assert len(few.rows) == few.manifest["num_questions"] == 3
    more = run(script)
    assert more.stem == few.stem
    assert len(more.rows) == more.manifest["num_questions"] == 7


@pytest.mark.parametrize("missing", [".json", ".feather"])
def test_an_unfinished_result_is_made_again(run, missing):
    first = run(generate)
    Path(f"{first.stem}{missing}").unlink()
    assert run(generate).err.startswith("wrote ")
    assert len(run(generate).rows) == 7


OTHERS = {
    "prompt": ["--instruction", "Name it."],
    "max_new_tokens": ["--max_new_tokens", "3"],
    "dtype": ["--dtype", "bfloat16"],
    "data": ["--dataset", "{tmp}/other/capitals.jsonl"],
    "model": ["--model", "{tmp}/other/tiny-llama"],
}


def refused(run, script, difference, *argv):
    ran = run(script, *argv)
    assert ran.code == 2 and ran.err.count("\n") == 1
    assert re.match(r"error: \S+\.json belongs to another run: ", ran.err), ran.err
    assert ran.err.endswith("; --overwrite or another --output_dir\n")
    told = re.findall(r"(\w+)[.\w]* is .*? there and .*? here", ran.err)
    assert set(told) == {difference}, ran.err


@pytest.mark.parametrize("difference", OTHERS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_another_run_is_refused(small, tmp_path, run, script, difference):
    run(script, "--max_samples", 2)
    before = files_in(tmp_path / "out")
    shutil.copytree(small.folder, tmp_path / "other" / "tiny-llama")
    make_tokenizer().save_pretrained(tmp_path / "other" / "tiny-llama")
    config = tmp_path / "other" / "tiny-llama" / "config.json"
    config.write_text(config.read_text() + " ")
    write_jsonl(tmp_path / "other" / "capitals.jsonl", QUESTIONS[:-1])
    argv = [part.format(tmp=tmp_path) for part in OTHERS[difference]]
    refused(run, script, difference, *argv)
    assert files_in(tmp_path / "out") == before
    assert run(script, *argv, "--overwrite").code == 0


def test_another_run_of_the_method_is_refused(run):
    named = {
        "flex_attention": (),
        "flex_attention-tau0.5": ("--fusion_tau", "0.5"),
        "flex_attention-w1_2_3_4": ("--weights", "1,2,3,4"),
        "flex_attention-entropy1": ("--weights_by", "entropy:1"),
    }
    folder = run(flex_attention_generate, "--fusion_tau", "0.25").stem.parent
    for name, argv in named.items():
        for path in folder.glob("flex_attention-*"):
            path.rename(folder / f"{name}-4{path.suffix}")
        argv = ("--fusion_tau", "0", *argv) if "--fusion_tau" not in argv else argv
        refused(run, flex_attention_generate, "method", *argv)
    run(generate, "--method", "weighted_avg")
    refused(run, generate, "method", "--method", "weighted_avg", "--confidence", "trust")


def test_a_model_may_be_found_by_another_path(small, run, monkeypatch):
    run(generate)
    monkeypatch.chdir(small.folder.parent)
    for path in (
        "./tiny-llama",
        f"{small.folder}/",
        "../" + small.folder.parent.name + "/tiny-llama",
    ):
        assert "is finished already" in run(generate, "--model", path).err


# ---- paraphrases ----------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_indexs(run, tmp_path, script):
    ran = run(script, "--indexs", "2,0")
    assert ran.stem.parent == tmp_path / "out" / "capitals" / "tiny-llama" / "diversity"
    assert ran.stem.name.endswith("-2_0")
    assert ran.manifest["identity"]["paraphrases"] == [2, 0]
    for row, question in zip(ran.rows, QUESTIONS, strict=True):
        assert row["paraphrases"] == [question["paraphrases"][i] for i in (2, 0)]
    # Which is first makes no difference to a mean.
    assert run(script, "--indexs", "0,2").generations == ran.generations


def test_weights_go_with_the_paraphrases(run):
    """All weight on one paraphrase is that paraphrase alone."""
    alone = run(generate, "--method", "per_prompt").generations
    for argv, index in [
        (["--weights", "0,0,3,0"], 2),
        (["--indexs", "3,1", "--weights", "0,1"], 1),
        (["--weights", "0,1e300,0,0", "--fusion_tau", "-2"], 1),
        (["--weights", "1e-300,0,0,0", "--layout", "shared"], 0),
    ]:
        ran = run(flex_attention_generate, *argv, "--overwrite")
        assert ran.generations == alone[index::4], argv


def test_equal_weights_are_none(run):
    equal = run(flex_attention_generate)
    for weights in ("1,1,1,1", "0.3,0.3,0.3,0.3", "1e308,1e308,1e308,1e308"):
        ran = run(flex_attention_generate, "--weights", weights, "--overwrite")
        assert [row["logprob"] for row in ran.rows] == pytest.approx(
            [row["logprob"] for row in equal.rows], abs=1e-4
        )


# ---- answers --------------------------------------------------------------------------------

FUSIONS = {
    "default": ([], mean_oracle, ("exact", TAU, None)),
    "mean": (["--fusion_tau", "0"], mean_oracle, ("exact", 0.0, None)),
    "mass": (["--fusion_tau", "1"], mean_oracle, ("exact", 1.0, None)),
    **{
        positions: (
            ["--fusion_tau", tau, "--positions", positions],
            mean_oracle,
            (positions, float(tau), None),
        )
        for positions, tau in (("left", "0"), ("right", "0"), ("sequential", "1"))
    },
    "exponent": (
        ["--fusion_tau", "0.7", "--weights", "1,2,0.5,3"],
        mean_oracle,
        ("exact", 0.7, [1.0, 2.0, 0.5, 3.0]),
    ),
    "joint": (["--fusion", "joint"], joint_oracle, ("left", None)),
    "weighted joint": (
        ["--fusion", "joint", "--weights", "1,2,0.5,3"],
        joint_oracle,
        ("left", [1.0, 2.0, 0.5, 3.0]),
    ),
}


@pytest.mark.parametrize("name", FUSIONS)
def test_attention_fusion_against_a_plain_oracle(small, run, name):
    argv, oracle, settings = FUSIONS[name]
    ran = run(flex_attention_generate, *argv, "--max_samples", 4)
    prefix, split = split_prompts(
        small.tokenizer, TEMPLATE, [question["paraphrases"] for question in QUESTIONS]
    )
    for row, question in zip(ran.rows, split, strict=False):
        logits_after = lambda tokens, q=question: oracle(  # noqa: E731
            small.model, prefix, q.segments, [*q.tail, *tokens], *settings
        )[-1]
        check_rows([row], [stock_answer(small, [], None, limit=LIMIT, logits_after=logits_after)])


@pytest.mark.parametrize(
    ("argv", "oracle", "settings"),
    [
        (["--fusion_tau", "0"], mean_oracle, ("exact", 0.0)),
        (["--fusion_tau", "1"], mean_oracle, ("exact", 1.0)),
        (["--fusion_tau", "0.5", "--positions", "left"], mean_oracle, ("left", 0.5)),
        (["--fusion", "joint"], joint_oracle, ("left",)),
        (["--fusion_tau", "1", "--fewer", "use"], mean_oracle, ("exact", 1.0)),
    ],
    ids=["mean", "mass", "left", "joint", "fewer"],
)
def test_weights_by_entropy_against_a_plain_oracle(small, tmp_path, run, argv, oracle, settings):
    """Every question's own weights, from what its prompts say alone; they are counted."""
    questions = [
        {**q, "paraphrases": q["paraphrases"][: 4 - i % 4]} for i, q in enumerate(QUESTIONS)
    ]
    if "--fewer" not in argv:
        questions = QUESTIONS
    write_jsonl(tmp_path / "asked.jsonl", questions)
    asked = ("--dataset", tmp_path / "asked.jsonl")
    ran = run(flex_attention_generate, *asked, *argv, "--weights_by", "entropy:3")
    prefix, split = split_prompts(small.tokenizer, TEMPLATE, [q["paraphrases"] for q in questions])
    for row, question, of in zip(ran.rows, split, questions, strict=True):
        weights = entropy_weights(
            small, [TEMPLATE.render(p) for p in of["paraphrases"]], 3
        ).tolist()
        logits_after = lambda tokens, q=question, w=weights: oracle(  # noqa: E731
            small.model, prefix, q.segments, [*q.tail, *tokens], *settings, w
        )[-1]
        check_rows([row], [stock_answer(small, [], None, limit=LIMIT, logits_after=logits_after)])
    assert ran.manifest["identity"]["method"]["weights_by"] == "entropy:3"
    without = run(flex_attention_generate, *asked, *argv)
    tails = sum(len(q.segments) * len(q.tail) for q in split)
    counts, plain = ran.manifest["counts"], without.manifest["counts"]
    assert counts["encoded_tokens"] == plain["encoded_tokens"] + tails


def test_as_first_described(small, run):
    """Whole prompts joined, each token seeing its own prompt; what is generated sees everything."""
    ran = run(
        flex_attention_generate,
        *("--layout", "concat", "--fusion", "joint", "--positions", "sequential"),
        *("--max_samples", 4),
    )
    for row, question in zip(ran.rows, QUESTIONS, strict=False):
        text, owners = "", []
        for i, prompt in enumerate(prompts_of(question)):
            if i > 0:
                text, owners = text + " [SEP] ", owners + [-1] * len(" [SEP] ")
            text, owners = text + prompt, owners + [i] * len(prompt)
        encoded = small.tokenizer(text, return_offsets_mapping=True)
        # A token belongs to the prompt that has its last character, <bos> to the first.
        owner = [owners[stop - 1] if stop else 0 for _, stop in encoded["offset_mapping"]]

        def logits_after(tokens, encoded=encoded, owner=owner):
            ids = encoded["input_ids"] + list(tokens)
            size = len(ids)
            whose = torch.tensor(owner + [-1] * len(tokens))
            visible = (whose[:, None] == whose) & (whose >= 0) | torch.eye(size, dtype=torch.bool)
            visible[len(owner) :] = True
            visible = visible.tril()
            mask = torch.zeros(size, size).masked_fill(~visible, float("-inf"))
            return small.model(
                input_ids=torch.tensor([ids]),
                attention_mask=mask[None, None],
                position_ids=torch.arange(size)[None],
                use_cache=False,
            ).logits[0, -1]

        check_rows([row], [stock_answer(small, [], None, limit=LIMIT, logits_after=logits_after)])


def stock_generate(small, prompt) -> str:
    """model.generate with its cache and the same stop."""
    encoded = small.tokenizer(prompt, return_tensors="pt")
    start = encoded["input_ids"].shape[1]
    text = lambda ids: small.tokenizer.decode(ids[0, start:], skip_special_tokens=True)  # noqa: E731
    out = small.model.generate(
        **encoded,
        do_sample=False,
        max_new_tokens=LIMIT,
        pad_token_id=1,
        stopping_criteria=StoppingCriteriaList(
            [lambda ids, scores, **_: torch.tensor(["\n" in text(ids).lstrip()])]
        ),
    )
    return text(out)


@pytest.mark.parametrize(
    "script, argv, wording",
    [
        (generate, ["--method", "origin"], lambda q: q["question"]),
        (generate, ["--num_paraphrases", "1"], lambda q: q["paraphrases"][0]),
        (generate, ["--method", "vote", "--num_ensemble", "1"], lambda q: q["paraphrases"][0]),
        (flex_attention_generate, ["--num_paraphrases", "1"], lambda q: q["paraphrases"][0]),
        (flex_attention_generate, ["--indexs", "2"], lambda q: q["paraphrases"][2]),
        (
            flex_attention_generate,
            ["--indexs", "1", "--layout", "concat", "--fusion", "joint"],
            lambda q: q["paraphrases"][1],
        ),
    ],
)
def test_one_wording_is_stock_generation(small, run, script, argv, wording):
    ran = run(script, *argv)
    for row, question in zip(ran.rows, QUESTIONS, strict=True):
        prompt = TEMPLATE.render(wording(question))
        assert row["generation"] == stock_generate(small, prompt)
        check_rows([row], [stock_answer(small, [prompt], lambda x: x[0], limit=LIMIT)])


@pytest.mark.parametrize(
    "generation, prediction",
    [
        (" Lima\n", "Lima"),
        ("Lima\nQ: more", "Lima"),
        ("\n\n  Lima \nand more", "Lima"),
        ("Lima", "Lima"),
        ("\n \n", ""),
        ("", ""),
    ],
)
def test_prediction_is_the_first_line_that_holds_anything(generation, prediction):
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: generation)
    answer = Answer(token_ids=(1,), logprobs=(-1.0, -0.5), truncated=False)
    row = answer_row(Record("u", ("p",), ("a",)), answer, tokenizer, FIRST_LINE)
    assert (row["prediction"], row["generation"], row["logprob"]) == (prediction, generation, -1.5)
    assert "relation" not in row


def test_few_shot_and_instruction_make_the_prompt(small, tmp_path, run):
    shots = [{"question": f"q{i}?", "answer": f"a{i}"} for i in range(3)]
    file = write_jsonl(tmp_path / "shots.jsonl", shots)
    args = ("--few_shot", file, "--num_few_shot", 2, "--method", "origin", "--instruction", "Do.")
    ran = run(generate, *args)
    head = "Do.\n\nQ: q0?\nA: a0\n\nQ: q1?\nA: a1\n\nQ: "
    assert ran.manifest["identity"]["prompt"]["head"] == head
    prompts = [f"{head}{question['question']}\nA:" for question in QUESTIONS]
    check_rows(ran.rows, [stock_answer(small, [p], lambda x: x[0], limit=LIMIT) for p in prompts])


def test_demonstrations_that_are_asked_are_told_of(small, run):
    told = (
        "2 of the questions are among the few-shot demonstrations: "
        "their answers are in the prompt\n"
    )
    ran = run(generate, "--few_shot", small.questions, "--num_few_shot", 2)
    assert told in ran.err and ran.manifest["asked_examples"] == 2
    ran = run(generate, "--method", "max")
    assert told not in ran.err and "asked_examples" not in ran.manifest


def test_chat_template(small, tmp_path, run):
    folder = shutil.copytree(small.folder, tmp_path / "chatty")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[a] {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    for script in SCRIPTS:
        ran = run(script, "--model", folder, "--chat_template", "--num_paraphrases", 1)
        assert ran.manifest["identity"]["prompt"]["chat_template"] is True
        prompts = [f"<bos>[user] {prompts_of(question)[0]}\n[a] " for question in QUESTIONS]
        answers = [
            stock_answer(small, [p], lambda x: x[0], limit=LIMIT, special_tokens=False)
            for p in prompts
        ]
        check_rows(ran.rows, answers)
        refused(run, script, "prompt", "--model", folder, "--num_paraphrases", 1)


class Clock(datetime):
    today = datetime(2026, 1, 31)

    @classmethod
    def now(cls):
        return cls.today


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_chat_template_that_prints_the_date_makes_another_prompt(
    small, tmp_path, run, monkeypatch, script
):
    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    folder = shutil.copytree(small.folder, tmp_path / "dated")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d.%m.') }} {{ messages[0]['content'] }} =>"
    tokenizer.save_pretrained(folder)
    argv = ("--model", folder, "--chat_template")
    prompt = run(script, *argv).manifest["identity"]["prompt"]
    assert prompt == {
        "head": TEMPLATE.head,
        "tail": TEMPLATE.tail,
        "chat_template": True,
        "rendered_head": f"31.01. {TEMPLATE.head}",
        "rendered_tail": f"{TEMPLATE.tail} =>",
    }
    with monkeypatch.context() as patch:
        patch.setattr(
            "self_ensemble.generation.loading.loaded_engine", None
        )  # the weights are not needed to tell
        assert "is finished already" in run(script, *argv).err
        monkeypatch.setattr(Clock, "today", datetime(2026, 2, 1))
        refused(run, script, "prompt", *argv)
    assert run(script, *argv, "--lemmaize", "--spacy_model", "lookup").code == 0
    refused(run, script, "prompt", "--model", folder, "--lemmaize")


# ---- command line ---------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_both_spellings_of_flags(script):
    flags = ["--num_paraphrases", "3", "--max_new_tokens", "7", "--batch_size=2", "--chat_template"]
    dashed = [flag.replace("_", "-") for flag in flags]
    assert script.parse_args(flags) == script.parse_args(dashed)
    assert script.parse_args(flags) != script.parse_args([])


def test_num_ensemble_is_num_paraphrases():
    assert generate.parse_args(["--num-ensemble", "7"]).questions.options.num_paraphrases == 7
    assert generate.parse_args([]).questions.options.num_paraphrases == 5
    assert generate.parse_args(["--method", "origin"]).questions.options.num_paraphrases == 5


BAD = {
    "no strength": (["--weights_by", "entropy"], ["--weights_by", "'entropy'", "entropy:1"]),
    "a negative strength": (["--weights_by", "entropy:-1"], ["--weights_by", "'entropy:-1'"]),
    "no such weighting": (["--weights_by", "luck:1"], ["--weights_by", "'luck'", "entropy"]),
    # what is asked: common to both scripts
    "no such file": (["--dataset", "gone.jsonl"], ["there is no file gone.jsonl"]),
    "no such name": (["--dataset", "triviaqa"], ["'triviaqa'", "demo"]),
    "a folder": (["--dataset", "{tmp}"], ["{tmp} is a folder"]),
    "an empty file": (["--dataset", "{tmp}/empty.jsonl"], ["empty.jsonl is empty"]),
    "no JSON": (["--dataset", "{tmp}/broken.jsonl"], ["line 2 of {tmp}/broken.jsonl", "not JSON"]),
    "answers under another name": (
        ["--dataset", "{tmp}/labelled.csv"],
        ["no column answers", "rename label to answer_index", "leave label out"],
    ),
    "no such suffix": (["--dataset", "{tmp}/questions.xlsx"], ["'.xlsx'"]),
    "too many paraphrases": (["--num_paraphrases", "5"], ["5 paraphrases", "(uuid u0) has 4"]),
    "an index too high": (["--indexs", "0,4"], ["paraphrase 4", "(uuid u0) has 4"]),
    "both ways to choose": (
        ["--indexs", "0,1", "--num-samples", "2"],
        ["--num_paraphrases", "--indexs"],
    ),
    "examples that are not there": (["--num_few_shot", "3"], ["--num_few_shot 3", "--few_shot"]),
    "an index twice": (["--indexs", "0,0"], ["--indexs", "'0,0'"]),
    "no number": (["--num_paraphrases", "five"], ["--num_paraphrases", "'five'"]),
    "nothing to generate": (["--max_new_tokens", "0"], ["--max_new_tokens", "'0'"]),
    "no batch": (["--batch_size", "0"], ["--batch_size", "'0'"]),
    "too long": (["--max_new_tokens", "700"], ["--max_new_tokens", "the model's 600"]),
    "no few-shot file": (["--few_shot", "gone.jsonl"], ["gone.jsonl"]),
    "no chat template": (["--chat_template"], ["--chat_template", "no chat template"]),
    "output is a file": (["--output_dir", "{tmp}/empty.jsonl"], ["empty.jsonl"]),
    "unknown flag": (["--top_k", "1"], ["'--top_k'"]),
    "stray word": (["demo"], ["'demo'"]),
    "unknown dtype": (["--dtype", "int8"], ["--dtype", "'int8'"]),
    "unknown attention": (["--attention", "flash"], ["--attention", "'flash'"]),
    "unknown device": (["--device", "tpu"], ["--device", "'tpu'"]),
}
BAD_OF = {
    generate: {
        "unknown method": (["--method", "median"], ["--method", "'median'", "weighted_avg"]),
        "one wording": (["--dataset", "{tmp}/plain.jsonl"], ["4 paraphrases", "has 1"]),
        "weights not used": (["--confidence", "trust"], ["--confidence", "avg uses no weights"]),
        "empty column": (["--confidence", ""], ["--confidence"]),
        "no such column": (
            ["--method", "weighted_max", "--confidence", "faith"],
            ["'faith'", "trust"],
        ),
        "confidence in the demo": (
            ["--method", "weighted_max", "--confidence", "trust", "--dataset", "demo"],
            ["--confidence", "demo"],
        ),
        "origin has no paraphrases": (
            ["--method", "origin", "--indexs", "1"],
            ["--indexs", "origin"],
        ),
        "origin has no number of paraphrases": (
            ["--method", "origin", "--num_paraphrases", "5"],
            ["--num_paraphrases", "origin"],
        ),
        "origin lacks none of them": (
            ["--method", "origin", "--fewer", "error"],
            ["--fewer", "origin"],
        ),
        "nor by its other name": (
            ["--method", "origin", "--num-ensemble", "3"],
            ["--num_paraphrases", "origin"],
        ),
        "weights by entropy of an average": (
            ["--weights_by", "entropy:1"],
            ["--weights_by", "avg uses no weights"],
        ),
        "weights by entropy of a vote": (
            ["--method", "vote", "--weights_by", "entropy:1"],
            ["--weights_by", "vote uses no weights"],
        ),
        "two weights": (
            ["--method", "weighted_max", "--confidence", "trust", "--weights_by", "entropy:1"],
            ["--weights_by", "--confidence gives"],
        ),
        "a flag of the other script": (["--fusion", "joint"], ["'--fusion'"]),
    },
    flex_attention_generate: {
        "unknown layout": (["--layout", "tree"], ["--layout", "'tree'", "concat"]),
        "unknown positions": (["--positions", "middle"], ["--positions", "'middle'", "exact"]),
        "unknown fusion": (["--fusion", "max"], ["--fusion", "'max'", "joint"]),
        "too few weights": (["--weights", "1,2"], ["--weights", "2 weights for 4 paraphrases"]),
        "too many weights": (
            ["--indexs", "2,0", "--weights", "1,2,3,4"],
            ["4 weights for 2 paraphrases"],
        ),
        "weight below 0": (["--weights", "1,-2,1,1"], ["--weights", "'1,-2,1,1'"]),
        "no weight at all": (["--weights", "0,0,0,0"], ["--weights", "'0,0,0,0'"]),
        "no weights": (["--weights", "a"], ["--weights", "'a'"]),
        "tau is no number": (["--fusion_tau", "warm"], ["--fusion_tau", "'warm'"]),
        "tau without end": (["--fusion_tau", "inf"], ["--fusion_tau", "'inf'"]),
        "tau is not a number": (["--fusion-tau", "nan"], ["--fusion_tau", "'nan'"]),
        "tau of joint": (["--fusion", "joint", "--fusion_tau", "1"], ["--fusion_tau", "joint"]),
        "two weights": (
            ["--weights", "1,2,3,4", "--weights_by", "entropy:1"],
            ["--weights_by", "--weights gives"],
        ),
        "weights of what is joined": (
            ["--layout", "concat", "--weights_by", "entropy:1"],
            ["--weights_by", "concat", "use shared"],
        ),
        "exact joint": (["--fusion", "joint", "--positions", "exact"], ["joint", "exact"]),
        "a flag of the other script": (["--method", "avg"], ["'--method'"]),
    },
}


@pytest.mark.parametrize(
    "script, name",
    [(script, name) for script in SCRIPTS for name in (*BAD, *BAD_OF[script])],
)
def test_bad_input_is_told_in_one_line(run, tmp_path, monkeypatch, script, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "questions.xlsx").write_text("x")
    (tmp_path / "labelled.csv").write_text("question,label\nwho?,1\n")
    write_jsonl(tmp_path / "plain.jsonl", [{"question": "who?", "answers": ["me"]}])
    (tmp_path / "broken.jsonl").write_text('{"question": "who?", "answers": ["me"]}\n{"quest\n')
    before = files_in(tmp_path)
    argv, named = (BAD | BAD_OF[script])[name]
    ran = run(script, *(part.format(tmp=tmp_path) for part in argv))
    assert ran.code == 2
    assert ran.err.startswith("error: ") and ran.err.endswith("\n") and ran.err.count("\n") == 1
    for part in named:
        assert part.format(tmp=tmp_path) in ran.err, ran.err
    assert files_in(tmp_path) == before


# ---- progress -------------------------------------------------------------------------------


def test_plain_progress_now_and_then(capsys, monkeypatch):
    """After two seconds at the earliest, then every ten."""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 2)
    clock = iter([0.0, 1.0, 4.0, 13.9, 15.0, 24.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress(100, "avg", "questions") as advance:
        for count in (10, 10, 30, 10, 15, 25):
            advance(count)
    assert capsys.readouterr().err.splitlines() == [
        "avg: 20 of 100 questions, 5.0 questions/s, 16 s left",
        "avg: 60 of 100 questions, 4.0 questions/s, 10 s left",
    ]


def test_plain_progress_in_tokens(capsys, monkeypatch):
    """Where answers are long, also before the first of them is finished."""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 2)
    times = iter([0.0, *(t for now in (1.0, 4.0, 5.0, 20.0, 40.0) for t in (now, now))])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with progress.progress(8, "avg", "questions", begin=2) as advance:
        for done, tokens in ((2, 100), (2, 800), (3, 900), (4, 12000), (8, 15000)):
            advance.reach(done, tokens)
    assert capsys.readouterr().err.splitlines() == [
        "avg: 2 of 8 questions, 800 tokens, 200 tokens/s",
        "avg: 4 of 8 questions, 0.1 questions/s, 12,000 tokens, 600 tokens/s, 40 s left",
    ]


def test_nothing_is_told_of_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0)
    with progress.progress(8, "avg", "questions") as advance:
        advance.reach(0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("limit", [100, 101])
def test_progress_of_long_answers_is_in_tokens(run, monkeypatch, limit):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0)
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0)
    ran = run(generate, "--max_new_tokens", limit, "--stop", "none")
    lines = [line for line in ran.err.splitlines() if line.startswith("avg: ")]
    assert lines and all(("tokens/s" in line) == (limit > 100) for line in lines)
    assert any(not line.startswith("avg: 0 ") for line in lines)  # within a batch


def test_what_is_slow_is_said_before_it_is_done(capsys, monkeypatch):
    progress.say_once.cache_clear()
    with progress.say_if_slow("loading a model"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.01)
    with progress.say_if_slow("loading a model"):
        time.sleep(0.5)
        assert capsys.readouterr().err == "loading a model\n"
    assert capsys.readouterr().err == ""
    for expected in ("compiling\n", ""):
        with progress.say_if_slow("compiling", once=True):
            time.sleep(0.5)
        assert capsys.readouterr().err == expected


def test_a_slow_model_is_named(small, run, monkeypatch):
    load = loading.load_weights

    def slow(source):
        monkeypatch.setattr(progress, "QUIET_SECONDS", 600)
        time.sleep(0.5)
        return load(source)

    monkeypatch.setattr(loading, "load_weights", slow)
    monkeypatch.setattr(loading, "folder_fingerprint", lambda folder: "known")
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.01)
    lines = run(generate).err.splitlines()
    assert lines[0] == f"loading {small.folder}" and lines[1].startswith("wrote ")


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 2)
    with progress.progress(100, "avg", "questions") as advance:
        advance(50)
    assert capsys.readouterr().err.strip() == ""  # nothing on what is quick
    now = time.time()
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with progress.progress(100, "avg", "questions") as advance:
        now += 5
        advance(50)
    shown = capsys.readouterr().err
    assert "avg:  50%" in shown and "50/100" in shown and "10.00 questions/s" in shown
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.progress(100, "avg", "questions") as advance:
        now += 5
        advance.reach(50, 2000)
        now += 5
        advance.reach(60, 5000)
    shown = capsys.readouterr().err
    assert "60/100" in shown and "5,000 tokens, 500 tokens/s" in shown


# ---- as processes ---------------------------------------------------------------------------


def process(script, *argv, cwd=ROOT):
    command = [sys.executable, ROOT / script, *map(str, argv)]
    return subprocess.run(command, cwd=cwd, text=True, capture_output=True)


def test_a_script_from_a_shell(small, tmp_path):
    argv = ("--dataset", small.questions, "--model", small.folder, "--num-paraphrases", 3)
    done = process("flex_attention_generate.py", *argv, "--max-new-tokens", 4, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    stem = f"results/capitals/tiny-llama/flex_attention{NAMED_TAU}-3"
    told = ("loading ", "reading ", "attention fusion: ")  # of a busy machine
    lines = [line for line in done.stderr.splitlines() if not line.startswith(told)]
    assert lines[0] == f"wrote {stem}.feather (.csv and .json beside it)" and len(lines) == 2
    assert sorted(files_in(tmp_path)) == [f"{stem}.{s}" for s in ("csv", "feather", "json")]


def test_an_error_from_a_shell(small, tmp_path):
    """Of the data, before a model is looked for."""
    done = process("generate.py", "--dataset", small.questions, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    line = f"line 1 of {small.questions} (uuid u0)"
    assert done.stderr.startswith(f"error: 5 paraphrases were asked for, but {line} has 4 (")
    for part in ("paraphrase.py makes more", "--fewer use", "--fewer skip"):
        assert part in done.stderr
    assert done.stderr.count("\n") == 1
    assert files_in(tmp_path) == {}


@pytest.mark.parametrize("script", ["generate.py", "flex_attention_generate.py"])
def test_help(script):
    begun = time.monotonic()
    done = process(script, "--help")
    assert time.monotonic() - begun < 5
    assert done.returncode == 0 and done.stderr == ""
    for flag in ("--dataset", "--num_paraphrases", "--attention", "--output_dir"):
        assert flag in done.stdout


def test_parts_of_the_method_can_be_imported_from_its_script():
    from flex_attention_generate import (
        FlexAttentionWrapper,
        concatenate_paraphrases_with_positions,
        create_segment_isolation_mask,
    )

    assert FlexAttentionWrapper is patching.FlexAttentionWrapper
    assert concatenate_paraphrases_with_positions is segments.concatenate_paraphrases_with_positions
    assert create_segment_isolation_mask is masks.create_segment_isolation_mask
    with pytest.raises(ImportError, match="'gone'"):
        from flex_attention_generate import gone  # noqa: F401


LEMMATIZER = ("init_spacy", "lemmaize_predicts", "lemmaize_chunk", "append_lemmas")


@pytest.mark.parametrize("name", LEMMATIZER)
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_lemmatizer_can_be_imported_from_the_scripts(script, name):
    assert getattr(script, name) is getattr(lemmatizer, name)


def test_the_models_and_datasets_can_be_imported_from_the_top():
    from constants import MODEL_PATHs
    from dataset import MyriadLamaDataset, ParaRelDataset, WebQADataset

    assert MODEL_PATHs["llama3.2_3b"] == "meta-llama/Llama-3.2-3B"
    assert MyriadLamaDataset().name == "myriadlama" and WebQADataset().name == "webqa"
    assert ParaRelDataset(Path("pararel")).name == "pararel"


def test_the_whole_method_can_be_called_from_its_script(small):
    """As the script's own run answers, question by question."""
    engine = make_engine(small.model, small.tokenizer)
    template = prompt_template(INSTRUCTION, [])
    batches = flex_attention_generate.flex_attention_generation(
        engine,
        template,
        [question["paraphrases"] for question in QUESTIONS],
        layout="shared",
        positions="exact",
        fusion=Fusion.of("mean", 1.0, (1, 2, 3, 4), "cpu"),
        max_new_tokens=LIMIT,
        batch_size=3,
    )
    answers = dict(answer for batch in batches for answer in batch)
    config = GenerationConfig(LIMIT)
    method = AttentionFusion(positions="exact", tau=1.0, weights=(1, 2, 3, 4))
    for index, question in enumerate(QUESTIONS):
        request = method.request(engine, template, [question["paraphrases"]], config)
        [[(_, alone)]] = engine.generate(request)
        assert answers[index].token_ids == alone.token_ids


@pytest.mark.parametrize("script", ["generate", "flex_attention_generate"])
def test_a_script_imports_nothing_heavy(script):
    code = f"import sys, {script}; print({{'torch', 'transformers', 'pandas'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


@pytest.mark.parametrize("body", ["print('x' * 100_000)", "print('x')", "say('x' * 100_000)"])
def test_a_reader_that_went_away(body):
    """No traceback and no complaint from Python's exit, whichever stream was read."""
    code = (
        "import sys\nfrom self_ensemble.cli import parser as cli\n"
        "say = lambda text: print(text, file=sys.stderr, flush=True)\n"
        f"cli.run(lambda args: {body}, None)\n"
    )
    read, write = os.pipe()
    os.close(read)
    both = "say" in body
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=write,
        stderr=write if both else subprocess.PIPE,
        text=True,
    )
    os.close(write)
    assert done.returncode == 141
    assert both or done.stderr == ""
