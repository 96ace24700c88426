"""Scores against scipy, figures worked out by hand and oracles written another way."""

import csv
import io
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from writing import error_of, make_manifest, write, write_per_prompt, write_plain, write_table

from score import main, parse_args
from self_ensemble.data.answers import normalize_answer
from self_ensemble.data.extraction import parse_extraction
from self_ensemble.evaluation.comparison import compare
from self_ensemble.evaluation.matchers import (
    contains_run,
    f1,
    first_token_is_right,
    is_right,
    lemmas_match,
)
from self_ensemble.evaluation.report import make_report, summarize
from self_ensemble.evaluation.scored import score_predictions
from self_ensemble.evaluation.spread import pair_agreement
from self_ensemble.evaluation.statistics import Z, holm, mcnemar_p, tango_interval, wilson_interval
from self_ensemble.evaluation.tables import render_report
from self_ensemble.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


# Matching


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paris", "paris"),
        ("  The   Eiffel\tTower\n", "eiffel tower"),
        ("the a an", ""),
        ("A.", ""),
        ("Theatre another ante", "theatre another ante"),
        ("U.S.A.", "usa"),
        ("U.S. Army", "us army"),
        ("the-end", "theend"),  # punctuation goes first and leaves no space
        ("a-ha", "aha"),
        ("rock'n'roll", "rocknroll"),
        ("O'Hare (the airport)", "ohare airport"),
        ("12,500", "12500"),
        ("$3.50", "350"),
        ("“Paris”", "“paris”"),  # only ASCII punctuation goes
        ("São Tomé", "são tomé"),
        ("the\u00a0Hague", "hague"),
        ("ÉCLAIR", "éclair"),
        ("東京", "東京"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_normalisation_is_that_of_squad(text, expected):
    assert normalize_answer(text) == expected
    assert normalize_answer(expected) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The Beatles.", ["Beatles"], True),
        ("beatles", ["Stones", "The Beatles"], True),
        ("Beatles band", ["Beatles"], False),
        ("Beat", ["Beatles"], False),
        ("", ["Beatles"], False),
        ("", [""], False),
        ("the", ["The"], False),
        (" . ", ["?"], False),
    ],
)
def test_exact_match(prediction, answers, expected):
    assert is_right(prediction, answers) is expected


def test_an_empty_prediction_is_never_right(tmp_path):
    path = write_table(
        tmp_path / "a.feather",
        uuids=["1", "2", "3", "4"],
        predictions=["", None, "the", "a b"],
        answers=[[""], ["None", "nan"], ["the", "a"], ["B"]],
    )
    assert score_predictions(path).right[:, 0].tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("The Beatles band", ["Beatles"], True),
        ("Beat", ["Beatles"], False),
        ("New Jersey", ["York", "new york"], True),
        ("York", ["New York"], False),
        ("", ["the"], False),
        ("the", [""], False),
    ],
)
def test_first_token(prediction, answers, expected):
    assert first_token_is_right(prediction, answers) is expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the city of Paris", ["Paris"], 2 * (1 / 3) * 1 / (1 / 3 + 1)),
        ("Paris", ["Rome", "Paris, France"], 2 * 1 * 0.5 / 1.5),
        ("a b b", ["b b b"], 2 * 1 * (2 / 3) / (5 / 3)),  # the article goes; 2 b are common
        ("Paris", ["Rome"], 0),
        ("", ["Rome"], 0),
        ("", [""], 0),
    ],
)
def test_f1_is_that_of_squad(prediction, answers, expected):
    assert f1(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lemmas", "answers", "expected"),
    [
        ("new york city", ["new york"], (True, True)),
        ("york", ["new york"], (False, True)),
        ("new big york", ["new york"], (False, False)),  # not contiguous
        ("york new", ["new york"], (False, False)),
        ("new yorker", ["new york"], (False, False)),  # lemmas, not letters
        ("", ["new york", ""], (False, False)),
        ("york", [""], (False, False)),
        ("york", ["rome", "york"], (True, True)),
        ("a b a b c", ["a b c"], (True, True)),
    ],
)
def test_lemma_matches(lemmas, answers, expected):
    assert lemmas_match(lemmas.split(), [answer.split() for answer in answers]) == expected


def test_runs_are_those_of_joined_texts():
    rng = np.random.default_rng(10)
    for _ in range(500):
        texts, run = (rng.choice(["a", "b"], size).tolist() for size in rng.integers(0, 5, 2))
        expected = bool(run) and f" {' '.join(run)} " in f" {' '.join(texts)} "
        assert contains_run(texts, run) is expected


def write_lemmas(path, rows, **columns):
    """rows: (prediction, its lemmas, an answer's lemmas), lemmas with spaces between."""
    frame = pd.DataFrame(
        {
            "uuid": [f"q{i}" for i in range(len(rows))],
            "prediction": [prediction for prediction, _, _ in rows],
            "answers": [[answer] for _, _, answer in rows],
            "predict_lemma": [lemmas.split() for _, lemmas, _ in rows],
            "answer_lemmas": [[answer.split()] for _, _, answer in rows],
            **columns,
        }
    )
    frame.to_parquet(path)
    return str(path)


LEMMA_ROWS = [
    ("the city of Paris", "the city of paris", "paris"),  # one way
    ("York", "york", "new york"),  # two ways only
    ("Rome", "rome", "rome"),  # by all
    ("Bonn", "bonn", "berlin"),
    ("", "", ""),
    (" ", "berlin", "berlin"),  # nothing was said, whatever the column holds
]


def test_the_matchers_side_by_side_by_hand(tmp_path):
    truncated = [True, False, False, True, False, False]
    path = write_lemmas(tmp_path / "a.parquet", LEMMA_ROWS, truncated=truncated)
    found = summarize(score_predictions(path))
    assert found["scores"] == pytest.approx(
        {
            "exact": 1 / 6,
            "first_token": 1 / 6,
            "one_way": 2 / 6,
            "two_way": 3 / 6,
            "f1": (2 / 4 + 2 / 3 + 1) / 6,
        }
    )
    assert found["counts"] == {"empty": 2, "truncated": 2, "only_two_way": 1}
    for match, right in (("exact", 1), ("first_token", 1), ("one_way", 2), ("two_way", 3)):
        scored = score_predictions(path, match=match)
        assert summarize(scored)["right"] == right
    table = render_report(make_report([path], None, match="two_way"))
    assert "two-way match" in table
    figures = next(line for line in table.splitlines() if "0.3333" in line).split()
    assert figures == ["a", "0.1667", "0.1667", "0.3611", "0.3333", "0.5000", "2", "2", "1"]


def test_lemmas_are_those_of_the_file_or_made_anew(tmp_path, monkeypatch):
    def lemmas_of(texts, nlp):
        assert nlp == "nlp of tiny"
        return [text.lower().replace("cities", "city").split() for text in texts]

    init_spacy = "nlp of {}".format
    module = types.SimpleNamespace(init_spacy=init_spacy, lemmas_of=lemmas_of)
    monkeypatch.setitem(sys.modules, "self_ensemble.evaluation.lemmatizer", module)
    path = write_table(
        tmp_path / "a.feather",
        uuids=["1", "2", "3"],
        predictions=["big Cities", "City", "Rome"],
        answers=[["x", "City"], ["cities of joy"], ["Paris"]],
    )
    assert summarize(score_predictions(path))["scores"]["one_way"] is None
    with pytest.raises(UserError, match=r"a\.feather lacks the column `predict_lemma` and"):
        score_predictions(path, lemmas="file")
    with pytest.raises(UserError, match=r"--match one_way: .*a\.feather lacks .*recompute"):
        score_predictions(path, match="one_way")
    scored = score_predictions(path, lemmas="recompute", spacy_model="tiny")
    assert scored.matches["one_way"][:, 0].tolist() == [True, False, False]
    assert scored.matches["two_way"][:, 0].tolist() == [True, True, False]
    with pytest.raises(UserError, match="--spacy_model is for --lemmas recompute"):
        main(parse_args([path, "--spacy_model", "tiny"]))


def test_lemmas_are_made_anew_by_spacy(tmp_path):
    path = write_table(
        tmp_path / "a.feather",
        uuids=["1", "2", "3"],
        predictions=["It plays pianos", "Piano.", ""],
        answers=[["piano", "organ"], ["Pianos and organs"], ["pianos"]],
    )
    scored = score_predictions(path, lemmas="recompute", spacy_model="lookup")
    assert scored.matches["one_way"][:, 0].tolist() == [True, False, False]


def test_the_conclusion_is_shown_by_every_matcher(tmp_path):
    path = write_lemmas(tmp_path / "a.parquet", LEMMA_ROWS)
    wrong = [("no", "no", answer) for _, _, answer in LEMMA_ROWS]
    baseline = write_lemmas(tmp_path / "b.parquet", wrong)
    report = make_report([path], baseline)
    found = report["files"][0]["comparison"]["by_match"]
    assert {name: each["won"] for name, each in found.items()} == {
        "exact": 1,
        "first_token": 1,
        "one_way": 2,
        "two_way": 3,
    }
    assert found["two_way"]["mcnemar_p"] == mcnemar_p(3, 0)
    assert "+33.33  0.5000  +50.00  0.2500" in render_report(report)


def test_five_paraphrases_that_always_agree_are_worth_one(tmp_path):
    """The interval is of questions, not of rows: repeating each answer makes it no narrower."""
    right = np.random.default_rng(5).random(500) < 0.6
    repeated = np.repeat(right[:, None], 5, axis=1)
    path = write_per_prompt(tmp_path / "per_prompt-5.feather", repeated)
    clustered = summarize(score_predictions(path))["interval"]
    of_questions = wilson_interval(int(right.sum()), 500)
    of_rows = wilson_interval(5 * int(right.sum()), 2500)
    assert np.diff(clustered) == pytest.approx(np.diff(of_questions), rel=0.05)
    assert np.diff(clustered) > 2 * np.diff(of_rows)


def test_pair_agreement():
    assert pair_agreement(["a", "a", "a"]) == 1
    assert pair_agreement(["a", "b", "c"]) == 0
    assert pair_agreement(["a", "a", "b", "b"]) == pytest.approx(2 / 6)
    assert pair_agreement(["", ""]) == 1


# Files


def test_a_plain_file(tmp_path):
    path = write_plain(tmp_path / "avg-5.feather", [True, True, True, False])
    summary = summarize(score_predictions(path))
    assert summary["questions"] == 4
    assert summary["right"] == 3
    assert summary["accuracy"] == 0.75
    assert summary["interval"] == pytest.approx(wilson_interval(3, 4))
    assert summary["per_prompt"] is None


def test_a_file_needs_no_uuid_unless_it_is_compared(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prediction": "Paris", "answers": ["paris"]}\n' * 2)
    assert summarize(score_predictions(str(path)))["right"] == 2
    other = write_plain(tmp_path / "b.feather", [True])
    for files, baseline in (([str(path)], other), ([other], str(path))):
        with pytest.raises(UserError, match=r"a\.jsonl has no column `uuid`"):
            make_report(files, baseline)


def test_one_text_stands_for_a_list_of_one_answer(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prediction,answers\nNA,NA\nparis,"[""Rome"", ""Paris""]"\n')
    assert score_predictions(str(path)).right.all()


def test_per_prompt_figures_by_hand(tmp_path):
    right = [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
    path = write_per_prompt(tmp_path / "per_prompt-3.feather", right)
    summary = summarize(score_predictions(path))
    assert (summary["questions"], summary["paraphrases"]) == (4, 3)
    assert summary["accuracy"] == pytest.approx(6 / 12)
    found = summary["per_prompt"]
    assert [each["right"] for each in found["each"]] == [3, 2, 1]
    assert found["each"][0]["interval"] == pytest.approx(wilson_interval(3, 4))
    assert found["any"]["right"] == 3
    # Pairs that agree: 3 of 3, 0 of 3 (all wrong answers differ), 0 of 3, 1 of 3.
    assert found["pairs_agree"] == pytest.approx(4 / 12)
    assert found["all_agree"] == pytest.approx(1 / 4)


def test_paraphrases_need_not_stand_together(tmp_path):
    right = np.random.default_rng(6).random((30, 4)) < 0.5
    path = write_per_prompt(tmp_path / "a.feather", right)
    frame = pd.read_feather(path)
    by_position = np.arange(120).reshape(30, 4).T.ravel()
    frame.iloc[by_position].to_feather(tmp_path / "b.feather")
    one, other = (score_predictions(str(tmp_path / name)) for name in ("a.feather", "b.feather"))
    assert (one.right == right).all()
    assert (other.right == right).all()


def test_a_single_paraphrase_is_a_plain_file_with_one_line_of_detail(tmp_path):
    path = write_per_prompt(tmp_path / "per_prompt-1.feather", [[1], [0]])
    summary = summarize(score_predictions(path))
    assert summary["interval"] == pytest.approx(wilson_interval(1, 2))
    assert summary["per_prompt"]["pairs_agree"] is None
    assert "any of them" in render_report(make_report([path], path))


# Answers that are missing


def test_a_file_without_answers_says_what_it_lacks(tmp_path):
    """Nothing is counted as wrong for want of something right."""
    answers = [["x"], []] * 15
    rows = [{"uuid": f"u{i}", "prediction": "x", "answers": a} for i, a in enumerate(answers)]
    for suffix in (".jsonl", ".feather", ".csv", ".parquet"):
        path = write(tmp_path / f"a{suffix}", rows)
        sentence = error_of(score_predictions, str(path))
        assert f"{path}, rows 2, 4, 6, 8, 10 and 10 more: no answers" in sentence
        assert "15 of 30 predictions cannot be scored" in sentence
    path = write(tmp_path / "b.jsonl", [{"uuid": "u", "prediction": "x"}])
    assert "b.jsonl lacks the column `answers`" in error_of(score_predictions, str(path))
    done = run_script(str(path))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# Extraction


GENERATED = ["Let me see.\n#### 1,000", "7 and\n8", "none", "\n 3.14 \n"]


def write_generated(path, **columns):
    frame = pd.DataFrame(
        {
            "uuid": ["q0", "q1", "q2", "q3"],
            "generation": GENERATED,
            "answers": [["1000"], ["8"], ["5"], ["314"]],
            "prediction": ["Let me see.", "7 and", "none", "3.14"],
            **columns,
        }
    )
    frame.to_feather(path)
    return str(path)


@pytest.mark.parametrize(
    ("how", "predictions"),
    [
        ("line", ["Let me see.", "7 and", "none", "3.14"]),
        ("all", [text.strip() for text in GENERATED]),
        ("after:####", ["1,000", "", "", ""]),
        ("last_number", ["1,000", "8", "", "3.14"]),
        ("regex:([0-9]+) and", ["", "7", "", ""]),
    ],
)
def test_predictions_are_made_anew_of_generations(tmp_path, capsys, how, predictions):
    path = write_generated(tmp_path / "a.feather")
    scored = score_predictions(path, extract=parse_extraction(how))
    assert [text for [text] in scored.predictions] == predictions
    main(parse_args([path, "--extract", how, "--baseline", path]))
    assert f"made anew of the generations by --extract {how}." in capsys.readouterr().out
    main(parse_args([path, "--extract", how, "--csv"]))
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert row["extract"] == how
    frame = pd.read_feather(path).drop(columns="prediction")  # none is needed
    frame.to_feather(tmp_path / "b.feather")
    again = score_predictions(str(tmp_path / "b.feather"), extract=parse_extraction(how))
    assert again.predictions == scored.predictions


def test_what_is_extracted_is_scored(tmp_path):
    path = write_generated(tmp_path / "a.feather")
    last_number = parse_extraction("last_number")
    assert score_predictions(path, match="number").right[:, 0].tolist() == [False] * 4
    found = score_predictions(path, match="number", extract=last_number)
    assert found.right[:, 0].tolist() == [True, True, False, False]
    report = make_report([path], None, extract=last_number)
    assert report["extract"] == "last_number"
    # SQuAD's normalisation takes the comma and the point away.
    assert report["files"][0]["scores"]["exact"] == 0.75
    assert report["files"][0]["scores"]["number"] == 0.5


def test_lemmas_of_other_predictions_are_not_matched(tmp_path):
    lemmas = {"predict_lemma": [["8"]] * 4, "answer_lemmas": [[["8"]]] * 4}
    path = write_generated(tmp_path / "a.feather", **lemmas)
    assert summarize(score_predictions(path))["scores"]["one_way"] == 1
    extract = parse_extraction("last_number")
    report = make_report([path], None, extract=extract)
    assert report["files"][0]["scores"]["one_way"] is None
    assert any("lemmas of other predictions" in note for note in report["notes"])
    sentence = error_of(score_predictions, path, extract=extract, match="one_way")
    assert "has no lemmas of what --extract makes; --lemmas recompute makes them" in sentence
    sentence = error_of(score_predictions, path, extract=extract, lemmas="file")
    assert "--lemmas file: " in sentence
    made = score_predictions(path, extract=extract, lemmas="recompute", spacy_model="lookup")
    assert made.matches["one_way"][:, 0].tolist() == [False, True, False, False]
    # Where the predictions are those of the file, but for space, its lemmas are theirs.
    spaced = ["Let me see. ", "7 and", "none", "3.14"]
    path = write_generated(tmp_path / "a.feather", **lemmas, prediction=spaced)
    same = make_report([path], None, extract=parse_extraction("line"))
    assert same["files"][0]["scores"]["one_way"] == 1
    assert same["notes"] == []
    without = str(tmp_path / "b.feather")
    pd.read_feather(path).drop(columns="prediction").to_feather(without)
    found = make_report([without], None, extract=parse_extraction("line"))
    assert found["files"][0]["scores"]["one_way"] is None


def test_extraction_needs_generations(tmp_path):
    path = write_plain(tmp_path / "a.feather", [True])
    done = run_script(path, "--extract", "all")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "a.feather lacks the column `generation`" in done.stderr
    for how in ("everything", "after:", "regex:(", "line:x"):
        done = run_script(path, "--extract", how)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "--extract" in done.stderr
    path = write_generated(tmp_path / "b.feather", generation=["a", None, "b", "c"])
    assert "b.feather, row 2: generation is not a text: None" in error_of(
        score_predictions, path, extract=parse_extraction("all")
    )


def test_a_vote_is_not_taken_again(tmp_path):
    path = write_generated(tmp_path / "vote-5.feather")
    (tmp_path / "vote-5.json").write_text(json.dumps(make_manifest(4, method={"name": "vote"})))
    assert make_report([path], None)["notes"] == []
    [note] = make_report([path], None, extract=parse_extraction("last_number"))["notes"]
    assert "is of votes: --extract reads anew the answer that won" in note
    (tmp_path / "vote-5.json").write_text("[")  # no manifest of ours: nothing is known
    assert make_report([path], None, extract=parse_extraction("last_number"))["notes"] == []


# Numbers


def test_numbers_are_shown_where_every_question_asks_for_one(tmp_path, capsys):
    path = write_generated(tmp_path / "a.feather")
    main(parse_args([path, "--csv"]))
    [row] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["number"], row["exact"]) == ("0.0000", "0.2500")  # 3.14 is not 314
    text = render_report(make_report([path], path))
    assert "first      F1  1-way  2-way  number  empty" in text
    assert "Number: the prediction's last number is an answer's, exactly." in text
    other = write_generated(tmp_path / "b.feather", answers=[["1000"], ["8"], ["five"], ["314"]])
    assert "number" not in summarize(score_predictions(other))["scores"]
    sentence = error_of(score_predictions, other, match="number")
    assert "--match number: " in sentence
    assert "b.feather, row 3: no answer is a number: ['five']" in sentence


def test_tables_with_every_matcher_fit_in_100_columns(tmp_path):
    files = []
    for name in ("first", "second"):
        rows = [(str(i), str(i), "1") for i in range(9)]
        path = tmp_path / f"a-file-of-a-longer-name-than-any-table-has-room-for-{name}.parquet"
        files.append(write_lemmas(path, rows, generation=["x"] * 9))
    text = render_report(make_report(files, files[0], match="number"))
    assert "number match" in text
    assert max(map(len, text.splitlines())) <= 100


def test_paraphrases_agree_where_their_numbers_do(tmp_path):
    path = write_table(
        tmp_path / "per_prompt-3.feather",
        uuids=["q"] * 3,
        predictions=["1,000", "It is 1000.0", "10.00"],
        answers=[["1000"]] * 3,
        paraphrases=["a", "b", "c"],
    )
    agree = [
        summarize(score_predictions(path, match=match))["per_prompt"]["pairs_agree"]
        for match in ("exact", "number")
    ]
    # As texts "1,000" and "10.00" are both 1000.
    assert agree == pytest.approx([1 / 3, 1 / 3])
    assert score_predictions(path, match="exact").said()[0][0] == "1000"
    one, two, three = score_predictions(path, match="number").said()[0]
    assert one == two != three


# Comparison


def test_pairs_are_found_by_uuid_not_by_place(tmp_path):
    rng = np.random.default_rng(7)
    mine = rng.random(200) < 0.6
    theirs = mine ^ (rng.random(200) < 0.1)  # alike, so that wrong pairs would differ far more
    path = write_plain(tmp_path / "a.feather", mine)
    other = write_plain(tmp_path / "b.feather", theirs)
    shuffled = str(tmp_path / "c.feather")
    pd.read_feather(other).sample(frac=1, random_state=0).to_feather(shuffled)
    found = compare(score_predictions(path), score_predictions(shuffled))
    assert found["pairs"] == 200
    assert found["won"] == (mine & ~theirs).sum()
    assert found["lost"] == (~mine & theirs).sum()
    assert found["difference"] == pytest.approx(mine.mean() - theirs.mean())
    assert found["mcnemar_p"] == mcnemar_p(found["won"], found["lost"])
    assert found["interval"] == tango_interval(found["won"], found["lost"], 200)
    reverse = compare(score_predictions(shuffled), score_predictions(path))
    assert reverse["difference"] == pytest.approx(-found["difference"])
    assert reverse["interval"] == pytest.approx([-limit for limit in found["interval"][::-1]])


def test_questions_that_one_file_lacks_are_left_out_and_said(tmp_path):
    path = write_plain(tmp_path / "a.feather", [True] * 10)  # q0 .. q9
    baseline = write_plain(tmp_path / "b.feather", [False] * 10, first=4)  # q4 .. q13
    report = make_report([path], baseline)
    found = report["files"][0]["comparison"]
    assert (found["pairs"], found["won"]) == (6, 6)
    lacks, has_more = report["notes"]
    assert f"{path} lacks 4 of the baseline's 10 uuids" in lacks
    assert f"the baseline lacks 4 of the 10 uuids of {path}" in has_more
    assert "over the 6 that both have" in " ".join(render_report(report).split())


def test_no_common_question_is_an_error(tmp_path):
    path = write_plain(tmp_path / "a.feather", [True])
    baseline = write_plain(tmp_path / "b.feather", [True], first=1)
    with pytest.raises(UserError, match=r"a\.feather.*b\.feather share no uuid"):
        make_report([path], baseline)


def test_one_uuid_for_two_questions_is_no_pair(tmp_path):
    """Counted uuids of two datasets look alike; their answers do not."""
    shared = {"uuids": ["0", "1"], "predictions": ["Lima", "Oslo"]}
    path = write_table(tmp_path / "a.feather", answers=[["Lima"], ["Oslo"]], **shared)
    same = write_table(tmp_path / "b.feather", answers=[["Lima"], ["Oslo"]], **shared)
    other = write_table(tmp_path / "c.feather", answers=[["Lima"], ["Rome"]], **shared)
    assert compare(score_predictions(path), score_predictions(same))["pairs"] == 2
    with pytest.raises(UserError, match=r"uuid 1 is another question in .*a\.feather"):
        compare(score_predictions(path), score_predictions(other))


def test_a_per_prompt_file_is_compared_by_its_mean(tmp_path):
    rng = np.random.default_rng(8)
    right, reference = rng.random((300, 5)) < 0.5, rng.random(300) < 0.6
    path = write_per_prompt(tmp_path / "per_prompt-5.feather", right)
    baseline = write_plain(tmp_path / "avg-5.feather", reference)
    found = compare(score_predictions(path), score_predictions(baseline))
    differences = right.mean(axis=1) - reference
    assert found["difference"] == pytest.approx(differences.mean())
    margin = Z * differences.std(ddof=1) / math.sqrt(300)  # cluster-robust, one cluster a question
    expected = differences.mean() - margin, differences.mean() + margin
    assert found["interval"] == pytest.approx(expected, abs=0.005)
    assert found["mcnemar_p"] is None


def test_a_per_prompt_baseline_is_its_first_paraphrase(tmp_path):
    right = [[1, 0], [0, 1], [0, 1], [0, 0]]
    baseline = write_per_prompt(tmp_path / "per_prompt-2.feather", right)
    path = write_plain(tmp_path / "avg-2.feather", [True, True, True, False])
    report = make_report([path, baseline], baseline)
    assert (report["baseline"]["paraphrase"], report["baseline"]["right"]) == (0, 1)
    assert report["files"][0]["comparison"]["won"] == 2
    assert report["files"][1]["comparison"]["difference"] == pytest.approx(3 / 8 - 1 / 4)
    assert any("the baseline is its paraphrase 0" in note for note in report["notes"])


# What users see


def test_tables_are_aligned_and_fit_in_100_columns(tmp_path):
    rng = np.random.default_rng(9)
    name = "flex_attention-concat-sequential-joint-with-a-long-name-5.feather"
    files = [
        write_plain(tmp_path / name, rng.random(300) < 0.6),
        write_plain(tmp_path / "avg-5.feather", rng.random(300) < 0.6),
        write_per_prompt(tmp_path / "per_prompt-5.feather", rng.random((300, 5)) < 0.5),
    ]
    text = render_report(make_report(files, files[1]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    [header] = [line for line in lines if line.startswith("file ")]
    rows = lines[lines.index(header) + 1 :][:3]
    assert {len(line) for line in rows} == {len(header)}
    assert rows[0].startswith("...t-sequential-joint-with-a-long-name-5 ")
    assert rows[1].startswith("avg-5 (baseline) ")
    assert rows[2].startswith("per_prompt-5 (mean of 5) ")


def test_tables_of_files_with_lemmas_fit_in_100_columns_too(tmp_path):
    rng = np.random.default_rng(12)
    files = []
    for name in ("first", "second", "third"):
        right = rng.random(200) < {"first": 0.1, "second": 0.9}.get(name, 0.5)
        rows = [("x", "y", "y") if r else ("x", "x", "y") for r in right]
        rel = [f"P{i % 7}" for i in range(200)]
        path = tmp_path / f"a-file-of-a-longer-name-than-any-table-has-room-for-{name}.parquet"
        files.append(write_lemmas(path, rows, rel=rel))
    text = render_report(make_report(files, files[2], match="one_way", by="rel"))
    assert max(map(len, text.splitlines())) <= 100
    for header in ("Holm p", "relations", "only 2-way", "rel  questions"):
        assert header in text


def test_relations_are_resampled_where_rows_carry_them(tmp_path):
    rng = np.random.default_rng(13)
    relations = np.repeat([f"P{i}" for i in range(10)], 30)
    # Whether the files differ hangs on the relation, so that 300 pairs are worth 10.
    mine = np.repeat(rng.random(10) < 0.5, 30)
    path = write_plain(tmp_path / "a.feather", mine)
    pd.read_feather(path).assign(rel=relations).to_feather(path)
    baseline = write_plain(tmp_path / "b.feather", [False] * 300)
    found = compare(score_predictions(path), score_predictions(baseline))
    assert found["relations"] == 10
    assert found["bootstrap"] == pytest.approx(found["interval"], abs=0.02)
    assert np.diff(found["relation_bootstrap"]) > 3 * np.diff(found["bootstrap"])
    reverse = compare(score_predictions(baseline), score_predictions(path))
    low, high = found["relation_bootstrap"]
    assert reverse["relation_bootstrap"] == pytest.approx((-high, -low), abs=0.01)
    shuffled = str(tmp_path / "c.feather")
    pd.read_feather(path).sample(frac=1, random_state=0).to_feather(shuffled)
    again = compare(score_predictions(baseline), score_predictions(shuffled))
    assert again["relation_bootstrap"] == reverse["relation_bootstrap"]
    none = compare(score_predictions(baseline), score_predictions(baseline))
    assert none["relations"] is none["relation_bootstrap"] is None


def test_p_values_are_adjusted_only_among_several(tmp_path):
    rng = np.random.default_rng(14)
    files = [write_plain(tmp_path / f"{i}.feather", rng.random(100) < 0.5) for i in range(4)]
    [alone] = make_report(files[1:2], files[0])["files"]
    assert alone["comparison"]["holm_p"] is None
    several = [f["comparison"] for f in make_report(files, files[0])["files"] if f["comparison"]]
    p_values = [c["mcnemar_p"] for c in several]
    assert [c["holm_p"] for c in several] == holm(p_values)


def test_by_splits_the_questions(tmp_path):
    mine, theirs = [1, 1, 0, 0, 1], [0, 1, 1, 0, 0]
    kind = ["b", "a", "a", None, "b"]
    path, baseline = (
        write_plain(tmp_path / name, right)
        for name, right in (("a.feather", mine), ("b.feather", theirs))
    )
    pd.read_feather(path).assign(kind=kind).to_feather(path)
    parts = make_report([path], baseline, by="kind")["files"][0]["by"]
    assert [part["value"] for part in parts] == ["(none)", "a", "b"]
    assert [part["right"] for part in parts] == [0, 1, 2]
    assert [part["comparison"]["lost"] for part in parts] == [0, 1, 0]
    assert [part["comparison"]["won"] for part in parts] == [0, 0, 2]
    with pytest.raises(UserError, match=r"b\.feather lacks the column `kind`"):
        make_report([baseline], None, by="kind")
    with pytest.raises(UserError, match=r"row 1: answers is a list"):
        make_report([path], None, by="answers")


def test_by_of_per_prompt_files_splits_questions_not_rows(tmp_path):
    path = write_per_prompt(tmp_path / "a.feather", [[1, 0], [1, 1], [0, 0]])
    pd.read_feather(path).assign(kind=[*"xxyyxx"]).to_feather(path)
    parts = make_report([path], path, by="kind")["files"][0]["by"]
    assert [(part["questions"], part["accuracy"]) for part in parts] == [(2, 0.25), (1, 1.0)]
    assert [part["per_prompt"]["any"]["right"] for part in parts] == [1, 1]
    with pytest.raises(UserError, match=r"row 2: paraphrase is .* in row 1 of the same question"):
        make_report([path], None, by="paraphrase")


def test_csv_has_a_row_a_file_and_a_row_a_value(tmp_path, capsys):
    path = write_lemmas(tmp_path / "a.parquet", LEMMA_ROWS, kind=[*"xyxyxy"])
    baseline = write_lemmas(tmp_path / "b.parquet", LEMMA_ROWS[:1] * 1)
    main(parse_args(["--csv", path, "--baseline", baseline, "--by", "kind", "--match", "two_way"]))
    whole, x, y = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (whole["file"], whole["value"], whole["questions"]) == (path, "", "6")
    assert (whole["accuracy"], whole["one_way"], whole["only_two_way"]) == ("0.5000", "0.3333", "1")
    assert (whole["pairs"], whole["difference"], whole["mcnemar_p"]) == ("1", "0.0000", "1")
    assert [(row["by"], row["value"], row["right"]) for row in (x, y)] == [
        ("kind", "x", "2"),
        ("kind", "y", "1"),
    ]
    assert y["pairs"] == y["baseline"] == ""  # none of its questions is the baseline's
    assert float(whole["low"]) < 0.5 < float(whole["high"])


def test_the_printed_figures(tmp_path, capsys):
    path = write_plain(tmp_path / "a.feather", [True] * 9 + [False])
    baseline = write_plain(tmp_path / "b.feather", [False] * 9 + [True])
    main(parse_args([path, "--baseline", baseline]))
    lines = capsys.readouterr().out.splitlines()
    low, high = tango_interval(9, 1, 10)
    assert lines[1].split() == ["b", "(baseline)", "10", "1", "0.1000", "[0.0179,", "0.4042]"]
    assert lines[2].split() == ["a", "10", "9", "0.9000", "[0.5958,", "0.9821]"]
    assert lines[5].split() == ["b", "0.1000", "0.1000", "0.1000", "-", "-", "0", "-", "-"]
    assert lines[6].split() == ["a", "0.9000", "0.9000", "0.9000", "-", "-", "0", "-", "-"]
    assert lines[9].split() == [
        *["a", "10", "9", "1", "+80.00"],
        *[f"[{100 * low:+.2f},", f"{100 * high:+.2f}]", "0.0215"],
    ]


def test_json_holds_what_the_tables_show(tmp_path, capsys):
    path = write_plain(tmp_path / "a.feather", [True, False, True])
    main(parse_args(["--json", path, "--baseline", path]))
    report = json.loads(capsys.readouterr().out)
    assert report["files"][0]["file"] == path
    assert report["files"][0]["accuracy"] == pytest.approx(2 / 3)
    assert report["baseline"]["right"] == 2
    assert report["notes"] == []


ROW = {"uuid": "u1", "prediction": "x", "answers": ["x"]}


@pytest.mark.parametrize(
    ("rows", "phrase"),
    [
        ([{"uuid": "u1", "answers": ["x"]}], "lacks the column `prediction`; it has uuid, answers"),
        ([{"uuid": "u1"}], "lacks the column `prediction` and `answers`"),
        ([ROW, ROW], "uuid u1 stands twice, in rows 1 and 2"),
        ([ROW, ROW | {"uuid": None}], "row 2: no uuid"),
        ([ROW | {"answers": []}], "row 1: no answers"),
        ([ROW | {"answers": None}], "row 1: no answers"),
        ([ROW | {"answers": ["x", 5]}], "row 1: answers is not a list of texts: ['x', 5]"),
        ([ROW | {"predict_lemma": "x", "answer_lemmas": [["x"]]}], "predict_lemma is not a list"),
        ([ROW | {"predict_lemma": ["x"], "answer_lemmas": ["x"]}], "row 1: answer_lemmas is not a"),
        ([ROW | {"prediction": 1912}], "row 1: prediction is not a text: 1912"),
    ],
)
def test_bad_files_are_named_with_the_value(tmp_path, rows, phrase):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as caught:
        score_predictions(str(path))
    assert str(path) in str(caught.value)
    assert phrase in str(caught.value)


def test_a_file_without_rows(tmp_path):
    path = tmp_path / "none.csv"
    path.write_text("prediction,answers\n")
    with pytest.raises(UserError, match=r"none\.csv has no rows"):
        score_predictions(str(path))


def run_script(*arguments, code=None):
    command = [sys.executable, *(["-c", code] if code else [str(ROOT / "score.py")]), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_mistakes_at_the_command_line_are_one_line_and_status_2(tmp_path):
    for arguments in (["nowhere.feather"], ["--plot", "x"], []):
        done = run_script(*arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
    assert "nowhere.feather" in run_script("nowhere.feather").stderr


def test_scoring_loads_no_model_library_and_help_loads_nothing_heavy(tmp_path):
    path = write_per_prompt(tmp_path / "a.feather", [[1, 0], [1, 1]])
    code = """
import sys
import score
assert not {"numpy", "pandas", "scipy", "pyarrow"} & set(sys.modules), "heavy import before use"
score.main(score.parse_args(sys.argv[1:]))
forbidden = {"torch", "transformers", "datasets", "spacy", "safetensors", "matplotlib"}
assert not forbidden & set(sys.modules), forbidden & set(sys.modules)
"""
    done = run_script(path, "--baseline", path, code=code)
    assert done.returncode == 0, done.stderr
    assert "baseline" in done.stdout
