"""Files of --task choices: every figure by hand, and what is refused."""

import csv
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from writing import error_of, make_manifest, write, write_choices, write_plain, write_table

from score import main, parse_args
from self_ensemble.evaluation import plots
from self_ensemble.evaluation.comparison import compare
from self_ensemble.evaluation.plots import draw
from self_ensemble.evaluation.report import make_report, summarize
from self_ensemble.evaluation.scored import score_predictions
from self_ensemble.evaluation.tables import render_csv, render_report


def logs(*probabilities):
    return [math.log(p) for p in probabilities]


# Three questions, of two to four choices (Brier scores of such crashed: EleutherAI/
# lm-evaluation-harness, pull request 4067), the last with two right ones.
CHOICES = [["A", "the"], ["x", "y", "z"], ["p", "q", "r", "s"]]
ANSWERS = [["A"], ["z", "none of the choices"], ["p", "q"]]
SUM = [logs(0.8, 0.2), logs(0.5, 0.3, 0.2), logs(0.1, 0.4, 0.4, 0.1)]
# A token, and a byte: the second question is right, the third is not.
MEAN = [logs(0.8, 0.2), logs(0.25, 0.25, 0.5), logs(0.1, 0.1, 0.7, 0.1)]


@pytest.fixture
def path(tmp_path):
    norms = {"mean": MEAN, "bytes": MEAN}
    columns = {"answers": ANSWERS, "choices": CHOICES, "norms": norms}
    return write_choices(tmp_path / "avg-choices-3.feather", SUM, **columns)


def test_accuracy_and_calibration_by_every_norm(path):
    found = summarize(score_predictions(path))
    # Taken: A, as text; x; of q and r, which are equal, the earlier.
    assert (found["match"], found["right"], found["accuracy"]) == ("sum", 2, pytest.approx(2 / 3))
    assert found["scores"] == pytest.approx({"sum": 2 / 3, "mean": 2 / 3, "bytes": 2 / 3})
    assert (found["choices"]["fewest"], found["choices"]["most"]) == (2, 4)
    by_sum = found["choices"]["by_norm"]["sum"]
    assert by_sum["tied"] == 1
    assert by_sum["confidence"] == pytest.approx((0.8 + 0.5 + 0.4) / 3)
    # Each in a bin of its own, and so by mass.
    expected = (0.2 + 0.5 + 0.6) / 3
    assert by_sum["ece"] == by_sum["adaptive_ece"] == pytest.approx(expected)
    # Of the third question p and q are right together: 0.5.
    assert by_sum["nll"] == pytest.approx(-(math.log(0.8) + math.log(0.2) + math.log(0.5)) / 3)
    brier = (0.2**2 + 0.2**2) + (0.5**2 + 0.3**2 + 0.8**2) + (0.5**2 + 0.4**2 + 0.1**2)
    assert by_sum["brier"] == pytest.approx(brier / 3)
    by_mean = found["choices"]["by_norm"]["mean"]
    assert by_mean["confidence"] == pytest.approx((0.8 + 0.5 + 0.7) / 3)
    assert by_mean["ece"] == pytest.approx((0.2 + 0.5 + 0.7) / 3)
    assert sum(each["count"] for each in by_mean["bins"]) == 3


def test_a_choice_is_right_as_it_stands_and_not_normalised(path):
    """Normalised, "A" is an article, and nothing is never right."""
    scored = score_predictions(path)
    assert scored.predictions == [["A"], ["x"], ["q"]]
    assert scored.right[:, 0].tolist() == [True, False, True]


def test_the_norm_is_that_by_which_the_file_was_made(path, tmp_path):
    """The prediction is made anew of the lists, and must be that of one of the norms."""
    frame = pd.read_feather(path)
    by_mean = frame.assign(prediction=["A", "z", "r"])
    by_mean.to_feather(tmp_path / "b.feather")
    scored = score_predictions(str(tmp_path / "b.feather"))
    assert (scored.match, scored.predictions) == ("mean", [["A"], ["z"], ["r"]])
    # Where several norms made the same predictions, the manifest says which it was.
    (tmp_path / "b.json").write_text(json.dumps(make_manifest(3, choice_norm="bytes")))
    assert score_predictions(str(tmp_path / "b.feather")).match == "bytes"
    assert score_predictions(str(tmp_path / "b.feather"), choice_norm="sum").match == "sum"
    frame.assign(prediction=["A", "y", "q"]).to_feather(tmp_path / "c.feather")
    sentence = error_of(score_predictions, str(tmp_path / "c.feather"))
    assert "c.feather, row 2: the prediction 'y' is not what choice_sum" in sentence
    assert "--choice_norm says by which to score" in sentence
    assert score_predictions(str(tmp_path / "c.feather"), choice_norm="sum").match == "sum"
    frame.drop(columns="prediction").to_feather(tmp_path / "d.feather")
    assert score_predictions(str(tmp_path / "d.feather")).match == "sum"


def test_a_column_of_choices_beside_generated_answers_is_passed_over(tmp_path):
    path = write_plain(tmp_path / "avg-5.feather", [True, False])
    pd.read_feather(path).assign(choices=[["Paris", "Rome"]] * 2).to_feather(path)
    scored = score_predictions(path)
    assert scored.choices is None
    assert scored.match == "exact"


ROW = {
    "uuid": "u",
    "answers": ["a"],
    "choices": ["a", "b"],
    "choice_sum": [-1.0, -2.0],
    "choice_mean": [-1.0, -2.0],
    "choice_bytes": [-1.0, -2.0],
}


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        (
            {"choice_mean": [-1.0, math.nan]},
            "choice_mean of 'b' is nan, which is no log-likelihood",
        ),
        (
            {"choice_sum": [-math.inf, -1.0]},
            "choice_sum of 'a' is -inf, which is no log-likelihood",
        ),
        ({"choice_bytes": [math.inf, -1.0]}, "choice_bytes of 'a' is inf"),
        ({"choice_sum": [-1.0]}, "choice_sum has 1 numbers for 2 choices"),
        ({"choice_sum": [-1.0, None]}, "choice_sum is not a list of numbers: [-1.0, None]"),
        ({"choice_sum": [-1.0, True]}, "choice_sum is not a list of numbers"),
        ({"choice_sum": -1.0}, "choice_sum is not a list of numbers: -1.0"),
        ({"choice_sum": None}, "choice_sum is not a list of numbers: None"),
        ({"choices": []}, "choices is empty"),
        ({"choices": ["a", 1]}, "choices is not a list of texts: ['a', 1]"),
        ({"answers": ["A"]}, "none of its choices is a right answer: ['A']"),
        ({"answers": []}, "no answers"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changes, phrase):
    path = tmp_path / "a.jsonl"
    rows = [ROW, ROW | {"uuid": "v"} | changes]
    path.write_text("\n".join(map(json.dumps, rows)))
    sentence = error_of(score_predictions, str(path))
    assert f"{path}, row 2" in sentence
    assert phrase in sentence


def test_a_file_that_lacks_a_list_says_which(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({k: v for k, v in ROW.items() if k != "choice_mean"}))
    assert "a.jsonl has scores of choices, but no column `choice_mean`" in error_of(
        score_predictions, str(path)
    )


def test_a_csv_is_read_as_the_feather_is(path, tmp_path):
    frame = pd.read_feather(path)
    rows = [
        {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]
    copy = str(write(tmp_path / "copy.csv", rows))
    one, other = (summarize(score_predictions(each)) for each in (path, copy))
    assert one | {"file": copy} == other


# Comparison


def test_choices_are_compared_in_pairs_by_every_norm(tmp_path):
    rng = np.random.default_rng(0)
    columns = {"answers": [["a"]] * 200, "choices": [["a", "b"]] * 200}
    files, rights = [], []
    for name in ("one", "other"):
        scores, means = rng.normal(0, 1, (2, 200, 2))
        norms = {"mean": means.tolist(), "bytes": means.tolist()}
        path = tmp_path / f"{name}.feather"
        files.append(write_choices(path, scores.tolist(), norms=norms, **columns))
        rights.append([each[:, 0] > each[:, 1] for each in (scores, means)])
    found = compare(*map(score_predictions, files))
    by_sum, by_mean = zip(*rights, strict=True)
    for norm, (one, other) in {"sum": by_sum, "mean": by_mean}.items():
        assert found["by_match"][norm]["won"] == (one & ~other).sum()
        assert found["by_match"][norm]["lost"] == (~one & other).sum()
    assert found["won"] == found["by_match"]["sum"]["won"]
    assert "% points by norm" in render_report(make_report(files[:1], files[1]))


def test_questions_that_were_skipped_are_counted(path, tmp_path):
    short = str(tmp_path / "short.feather")
    pd.read_feather(path).iloc[[2, 0]].reset_index(drop=True).to_feather(short)
    report = make_report([short], path)
    found = report["files"][0]["comparison"]
    assert (found["pairs"], found["only_in_baseline"], found["difference"]) == (2, 1, 0)
    assert f"{short} lacks 1 of the baseline's 3 uuids: compared over the 2" in report["notes"][0]


def test_other_choices_are_another_question(path, tmp_path):
    fewer = str(tmp_path / "fewer.feather")
    frame = pd.read_feather(path)
    for column in ("choices", "choice_sum", "choice_mean", "choice_bytes"):
        frame[column] = [row[:3] for row in frame[column]]
    frame.to_feather(fewer)
    sentence = error_of(make_report, [fewer], path)
    assert "uuid q2 is another question" in sentence
    assert "its choices differ" in sentence
    shuffled = str(tmp_path / "shuffled.feather")
    frame = pd.read_feather(path)
    for column in ("choices", "choice_sum", "choice_mean", "choice_bytes"):
        frame[column] = [row[::-1] for row in frame[column]]
    # Of equal ones the earlier is another now.
    frame.assign(prediction=["A", "x", "r"]).to_feather(shuffled)
    assert make_report([shuffled], path)["files"][0]["comparison"]["lost"] == 1


def test_chosen_and_generated_answers_are_compared_each_by_its_own_matcher(path, tmp_path):
    generated = write_table(
        tmp_path / "avg-3.feather",
        uuids=["q0", "q1", "q2"],
        predictions=["A", "Z!", "nothing"],  # normalised the first is empty, and wrong
        answers=ANSWERS,
    )
    report = make_report([path, generated], path)
    [_, found] = report["files"]
    assert (found["comparison"]["won"], found["comparison"]["lost"]) == (1, 2)
    assert found["comparison"]["by_match"] == {}
    assert any("is right by exact, the baseline by sum" in note for note in report["notes"])
    text = render_report(report)
    header, *_ = text.splitlines()
    assert header.split() == ["file", "questions", "right", "accuracy", "95%", "interval"]
    [table] = [block for block in text.split("\n\n") if block.startswith("by every matcher")]
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["avg-3"]
    assert max(map(len, text.splitlines())) <= 100


# A row a paraphrase


def per_prompt(path, scores, *, answers=("a",), choices=("a", "b")):
    """scores: [Q][any number of paraphrases][C]"""
    rows = [(q, n, row) for q, each in enumerate(scores) for n, row in enumerate(each)]
    return write_choices(
        path,
        [row for _, _, row in rows],
        answers=[list(answers)] * len(rows),
        choices=[list(choices)] * len(rows),
        uuid=[f"q{q}" for q, _, _ in rows],
        paraphrase=[f"wording {n} of {q}" for q, n, _ in rows],
    )


def test_paraphrases_that_choose(tmp_path):
    sure, unsure, wrong = logs(0.9, 0.1), logs(0.6, 0.4), logs(0.2, 0.8)
    path = per_prompt(tmp_path / "per_prompt-choices-2.feather", [[sure, wrong], [sure, unsure]])
    found = summarize(score_predictions(path))
    assert found["accuracy"] == 0.75
    assert found["per_prompt"]["worst"] == {"paraphrase": 1, "accuracy": 0.5}
    assert found["per_prompt"]["best"] == {"paraphrase": 0, "accuracy": 1.0}
    assert found["per_prompt"]["pairs_agree"] == 0.5
    by_sum = found["choices"]["by_norm"]["sum"]
    assert by_sum["confidence"] == pytest.approx((0.9 + 0.8 + 0.9 + 0.6) / 4)
    assert by_sum["nll"] == pytest.approx(-sum(map(math.log, (0.9, 0.2, 0.9, 0.6))) / 4)


def test_unlike_numbers_of_paraphrases(tmp_path):
    """The accuracy is of questions, and one with many paraphrases counts as one with few."""
    right, wrong = logs(0.9, 0.1), logs(0.1, 0.9)
    scores = [[right], [wrong, wrong, wrong], [right, wrong, right]]
    path = per_prompt(tmp_path / "per_prompt-choices-3.feather", scores)
    scored = score_predictions(path)
    found = summarize(scored)
    assert found["accuracy"] == found["scores"]["sum"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    spread = found["per_prompt"]
    assert [(each["right"], each["questions"]) for each in spread["each"]] == [
        (2, 3),
        (0, 2),
        (1, 2),
    ]
    assert (spread["fewest"], spread["complete"], spread["paired"]) == (1, 2, 2)
    assert (spread["worst"]["accuracy"], spread["best"]["accuracy"]) == (0.0, 0.5)
    assert spread["pairs_agree"] == pytest.approx((1 + 1 / 3) / 2)
    report = make_report([path], path)
    assert report["files"][0]["comparison"]["difference"] == pytest.approx(5 / 9 - 2 / 3)
    text = " ".join(render_report(report).split())
    assert "(mean of 1 to 3)" in text
    assert "has 1 to 3 paraphrases a question" in text
    assert "are of the 2 questions that have all 3, consistency of the 2 that have two" in text
    part = scored.take([0])
    assert part.fractions("sum").tolist() == [1.0]


def test_choices_that_normalise_alike_do_not_agree(tmp_path):
    """Normalised, both are nothing."""
    scores = [[logs(0.9, 0.1), logs(0.1, 0.9)]]
    path = per_prompt(tmp_path / "a.feather", scores, answers=["A"], choices=["A", "The"])
    assert summarize(score_predictions(path))["per_prompt"]["pairs_agree"] == 0


def test_paraphrases_have_the_numbers_that_indexs_counts(tmp_path):
    right, wrong = logs(0.9, 0.1), logs(0.1, 0.9)
    path = per_prompt(tmp_path / "a.feather", [[right, wrong], [right, wrong]])
    (tmp_path / "a.json").write_text(json.dumps(make_manifest(2, paraphrases=[4, 2])))
    report = make_report([path], path)
    found = report["files"][0]["per_prompt"]
    assert (found["best"]["paraphrase"], found["worst"]["paraphrase"]) == (4, 2)
    assert report["baseline"]["paraphrase"] == 4
    text = render_report(report)
    assert "0.0000 (2)  1.0000 (4)" in text
    [table] = [block for block in text.split("\n\n") if block.startswith("a: each paraphrase")]
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["4", "2", "any"]
    assert any("the baseline is its paraphrase 4" in note for note in report["notes"])


def test_paraphrases_of_one_question_have_the_same_choices(tmp_path):
    path = per_prompt(tmp_path / "a.feather", [[logs(0.5, 0.5)] * 2])
    frame = pd.read_feather(path)
    frame.assign(choices=[["a", "b"], ["a", "c"]]).to_feather(path)
    sentence = error_of(score_predictions, path, choice_norm="sum")
    assert "row 2: its choices are not those of row 1, which is of the same question" in sentence


def test_the_first_of_paraphrases_in_any_order_is_asked_for_as_a_baseline(tmp_path):
    """--indexs 4,2 with --fewer use: a question of three paraphrases has number 2 alone."""
    right, wrong = logs(0.9, 0.1), logs(0.1, 0.9)
    path = per_prompt(tmp_path / "a.feather", [[right, wrong], [right]])
    (tmp_path / "a.json").write_text(json.dumps(make_manifest(2, paraphrases=[4, 2])))
    scored = score_predictions(path)
    assert scored.present.tolist() == [[True, True], [False, True]]
    assert scored.right.tolist() == [[True, False], [False, True]]
    each = summarize(scored)["per_prompt"]["each"]
    assert [(e["paraphrase"], e["right"], e["questions"]) for e in each] == [(4, 1, 1), (2, 1, 2)]
    assert "lack paraphrase 4, its first" in error_of(make_report, [path], path)


# What users see


def test_everything_is_in_the_tables_in_json_and_in_csv(path, tmp_path, capsys):
    both = [path, per_prompt(tmp_path / "per_prompt-2.feather", [[logs(0.9, 0.1)] * 2] * 3)]
    main(parse_args(["--json", *both]))
    report = json.loads(capsys.readouterr().out)
    calibration = report["files"][0]["choices"]["by_norm"]["mean"]
    text = render_report(report)
    row = next(
        line for line in text.splitlines() if line.startswith("avg-choices-3") and "mean" in line
    )
    names = ("accuracy", "confidence", "ece", "adaptive_ece", "brier", "nll")
    assert row.split()[2:] == [*(f"{calibration[name]:.4f}" for name in names), "0"]
    first, second = csv.DictReader(io.StringIO(render_csv(report)))
    assert [first[f"mean_{name}"] for name in names] == row.split()[2:8]
    assert (first["sum_tied"], first["spread"], first["exact"]) == ("1", "", "")
    assert (second["best"], second["best_paraphrase"], second["sd"]) == ("1.0000", "0", "0.0000")
    assert second["consistency"] == "1.0000"


def test_a_reliability_diagram_is_drawn_where_there_are_choices(path, tmp_path, monkeypatch):
    panels, whole = [], plots._draw_reliability

    def spy(axis, *figures):
        whole(axis, *figures)
        panels.append(axis)

    monkeypatch.setattr(plots, "_draw_reliability", spy)
    draw(make_report([write_plain(tmp_path / "avg-5.feather", [True])], None), "svg")
    assert panels == []
    report = make_report([path], None)
    draw(report, "svg")
    [axis] = panels
    [points] = axis.collections
    bins = report["files"][0]["choices"]["by_norm"]["sum"]["bins"]
    expected = [[each["confidence"], each["accuracy"]] for each in bins]
    assert points.get_offsets().tolist() == expected == [[0.4, 1.0], [0.5, 0.0], [0.8, 1.0]]


@pytest.mark.parametrize(
    ("flags", "phrase"),
    [
        (["--match", "number"], "--match is for generated answers"),
        (["--lemmas", "file"], "--lemmas is for generated answers"),
        (["--extract", "all"], "--extract: "),
    ],
)
def test_flags_of_generated_answers_are_refused(path, flags, phrase):
    assert phrase in error_of(main, parse_args([path, *flags]))


def test_a_norm_is_refused_where_nothing_was_chosen(tmp_path):
    path = write_plain(tmp_path / "avg-5.feather", [True])
    assert "--choice_norm is for files of --task choices" in error_of(
        main, parse_args([path, "--choice_norm", "mean"])
    )


def test_a_vote_is_no_vote_by_another_norm(path, tmp_path):
    (tmp_path / "avg-choices-3.json").write_text(
        json.dumps(make_manifest(3, method={"name": "vote"}))
    )
    [note] = make_report([path], None)["notes"]
    assert "is of votes" in note
