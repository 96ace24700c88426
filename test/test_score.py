"""Scores against scipy, figures worked out by hand and oracles written another way."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

import score
from answers import normalize_answer
from constants import UserError
from score import (
    Z,
    bootstrap_interval,
    compare,
    is_right,
    load_scored,
    main,
    make_report,
    mcnemar_p,
    pair_agreement,
    parse_args,
    render_report,
    summarize,
    tango_interval,
    wilson_interval,
)

ROOT = Path(__file__).resolve().parent.parent


def write_table(path, *, uuids, predictions, answers, paraphrases=None):
    frame = pd.DataFrame({"uuid": uuids, "prediction": predictions, "answers": answers})
    if paraphrases is not None:
        frame["paraphrase"] = paraphrases
    frame.to_feather(path)
    return str(path)


def write_plain(path, right, *, first=0):
    """A file whose question i is right where right[i]; uuids count from `first`."""
    return write_table(
        path,
        uuids=[f"q{first + i}" for i in range(len(right))],
        predictions=["Paris" if r else "Rome" for r in right],
        answers=[["Paris", "City of Light"]] * len(right),
    )


def write_per_prompt(path, right):
    """right: [Q][N]; a wrong answer is one of its own, so that only right ones agree."""
    cells = [(i, n, r) for i, row in enumerate(right) for n, r in enumerate(row)]
    return write_table(
        path,
        uuids=[f"q{i}" for i, _, _ in cells],
        predictions=["the Paris." if r else f"wrong {n}" for _, n, r in cells],
        answers=[["Paris"]] * len(cells),
        paraphrases=[f"wording {n} of {i}" for i, n, _ in cells],
    )


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
    assert load_scored(path).right[:, 0].tolist() == [False, False, False, True]


# Intervals and tests


def test_wilson_is_that_of_scipy():
    rng = np.random.default_rng(0)
    sizes = [1, 2, 3, 10, *rng.integers(4, 5000, 40).tolist()]
    for n in sizes:
        for right in {0, n, *rng.integers(0, n + 1, 4).tolist()}:
            expected = stats.binomtest(right, n).proportion_ci(method="wilson")
            assert wilson_interval(right, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("won", "lost", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (0, 5, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_by_hand(won, lost, expected):
    assert mcnemar_p(won, lost) == pytest.approx(expected)


def test_mcnemar_is_a_sum_of_binomial_terms():
    rng = np.random.default_rng(1)
    for won, lost in rng.integers(0, 60, (50, 2)).tolist():
        n = won + lost
        tail = sum(math.comb(n, k) for k in range(min(won, lost) + 1)) / 2**n
        assert mcnemar_p(won, lost) == pytest.approx(min(1.0, 2 * tail))
        assert mcnemar_p(won, lost) == mcnemar_p(lost, won)


def score_statistic(won, lost, n, delta):
    """Tango's test of `difference == delta`, its likelihood maximised by search, not by formula."""

    def surprise(loss):
        cells = (won, loss + delta), (lost, loss), (n - won - lost, 1 - 2 * loss - delta)
        return -sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

    bounds = max(0.0, -delta), (1 - delta) / 2
    loss = optimize.minimize_scalar(
        surprise, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    ).x
    return (won - lost - n * delta) / math.sqrt(n * (2 * loss + delta - delta**2))


def test_tango_limits_are_where_the_score_test_begins_to_refuse():
    rng = np.random.default_rng(2)
    for n in [5, 16, 100, 2000, *rng.integers(3, 500, 20).tolist()]:
        won = int(rng.integers(0, n))
        lost = int(rng.integers(0, n - won))
        low, high = tango_interval(won, lost, n)
        assert score_statistic(won, lost, n, low) == pytest.approx(Z, abs=1e-3)
        assert score_statistic(won, lost, n, high) == pytest.approx(-Z, abs=1e-3)


def test_tango_properties():
    rng = np.random.default_rng(3)
    for _ in range(300):
        n = int(rng.integers(1, 300))
        won = int(rng.integers(0, n + 1))
        lost = int(rng.integers(0, n - won + 1))
        low, high = tango_interval(won, lost, n)
        assert -1 <= low <= (won - lost) / n <= high <= 1
        assert low < high
        assert tango_interval(lost, won, n) == pytest.approx((-high, -low), abs=1e-8)
        chi_squared = (won - lost) ** 2 / (won + lost) if won + lost else 0.0
        assert (low > 0 or high < 0) == (chi_squared > Z**2), (won, lost, n)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_tango_keeps_its_width_where_all_pairs_fall_one_way(n):
    width = Z**2 / (n + Z**2)  # of two files that never differ, solved on paper
    assert tango_interval(0, 0, n) == pytest.approx((-width, width))
    low, high = tango_interval(n, 0, n)
    assert high == 1
    assert low == pytest.approx((n - Z**2) / (n + Z**2))


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(4).choice([0.0, 0.2, 0.6, 1.0], 400, p=[0.4, 0.2, 0.1, 0.3])
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, batch=1000, random_state=1
    ).confidence_interval
    found = bootstrap_interval(values, resamples=20_000, seed=0)
    assert found == pytest.approx(tuple(expected), abs=0.003)
    assert found == bootstrap_interval(values[::-1], resamples=20_000, seed=0)


def test_five_paraphrases_that_always_agree_are_worth_one(tmp_path):
    """The interval is of questions, not of rows: repeating each answer makes it no narrower."""
    right = np.random.default_rng(5).random(500) < 0.6
    repeated = np.repeat(right[:, None], 5, axis=1)
    path = write_per_prompt(tmp_path / "per_prompt-5.feather", repeated)
    clustered = summarize(load_scored(path))["interval"]
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
    summary = summarize(load_scored(path))
    assert summary["questions"] == 4
    assert summary["right"] == 3
    assert summary["exact_match"] == 0.75
    assert summary["interval"] == pytest.approx(wilson_interval(3, 4))
    assert summary["per_prompt"] is None


def test_a_file_needs_no_uuid_unless_it_is_compared(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prediction": "Paris", "answers": ["paris"]}\n' * 2)
    assert summarize(load_scored(str(path)))["right"] == 2
    other = write_plain(tmp_path / "b.feather", [True])
    for files, baseline in (([str(path)], other), ([other], str(path))):
        with pytest.raises(UserError, match=r"a\.jsonl has no column `uuid`"):
            make_report(files, baseline)


def test_one_text_stands_for_a_list_of_one_answer(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prediction,answers\nNA,NA\nparis,"[""Rome"", ""Paris""]"\n')
    assert load_scored(str(path)).right.all()


def test_per_prompt_figures_by_hand(tmp_path):
    right = [[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]]
    path = write_per_prompt(tmp_path / "per_prompt-3.feather", right)
    summary = summarize(load_scored(path))
    assert (summary["questions"], summary["paraphrases"]) == (4, 3)
    assert summary["exact_match"] == pytest.approx(6 / 12)
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
    one, other = (load_scored(str(tmp_path / name)) for name in ("a.feather", "b.feather"))
    assert (one.right == right).all()
    assert (other.right == right).all()


def test_a_single_paraphrase_is_a_plain_file_with_one_line_of_detail(tmp_path):
    path = write_per_prompt(tmp_path / "per_prompt-1.feather", [[1], [0]])
    summary = summarize(load_scored(path))
    assert summary["interval"] == pytest.approx(wilson_interval(1, 2))
    assert summary["per_prompt"]["pairs_agree"] is None
    assert "any of them" in render_report(make_report([path], path))


# Comparison


def test_pairs_are_found_by_uuid_not_by_place(tmp_path):
    rng = np.random.default_rng(7)
    mine = rng.random(200) < 0.6
    theirs = mine ^ (rng.random(200) < 0.1)  # alike, so that wrong pairs would differ far more
    path = write_plain(tmp_path / "a.feather", mine)
    other = write_plain(tmp_path / "b.feather", theirs)
    shuffled = str(tmp_path / "c.feather")
    pd.read_feather(other).sample(frac=1, random_state=0).to_feather(shuffled)
    found = compare(load_scored(path), load_scored(shuffled))
    assert found["pairs"] == 200
    assert found["won"] == (mine & ~theirs).sum()
    assert found["lost"] == (~mine & theirs).sum()
    assert found["difference"] == pytest.approx(mine.mean() - theirs.mean())
    assert found["mcnemar_p"] == mcnemar_p(found["won"], found["lost"])
    assert found["interval"] == tango_interval(found["won"], found["lost"], 200)
    reverse = compare(load_scored(shuffled), load_scored(path))
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


def test_a_per_prompt_file_is_compared_by_its_mean(tmp_path):
    rng = np.random.default_rng(8)
    right, reference = rng.random((300, 5)) < 0.5, rng.random(300) < 0.6
    path = write_per_prompt(tmp_path / "per_prompt-5.feather", right)
    baseline = write_plain(tmp_path / "avg-5.feather", reference)
    found = compare(load_scored(path), load_scored(baseline))
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


def test_the_printed_figures(tmp_path, capsys):
    path = write_plain(tmp_path / "a.feather", [True] * 9 + [False])
    baseline = write_plain(tmp_path / "b.feather", [False] * 9 + [True])
    main(parse_args([path, "--baseline", baseline]))
    lines = capsys.readouterr().out.splitlines()
    low, high = (100 * limit for limit in tango_interval(9, 1, 10))
    assert lines[1].split() == ["b", "(baseline)", "10", "1", "10.00", "[1.79,", "40.42]"]
    assert lines[2].split() == ["a", "10", "9", "90.00", "[59.58,", "98.21]"]
    assert lines[5].split() == [
        *["a", "10", "9", "1", "+80.00"],
        *[f"[{low:+.2f},", f"{high:+.2f}]", "0.0215"],
    ]


def test_json_holds_what_the_tables_show(tmp_path, capsys):
    path = write_plain(tmp_path / "a.feather", [True, False, True])
    main(parse_args(["--json", path, "--baseline", path]))
    report = json.loads(capsys.readouterr().out)
    assert report["files"][0]["file"] == path
    assert report["files"][0]["exact_match"] == pytest.approx(2 / 3)
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
        ([ROW | {"answers": None}], "row 1: answers is not a list of texts: None"),
        ([ROW | {"answers": ["x", 5]}], "row 1: answers is not a list of texts: ['x', 5]"),
        ([ROW | {"prediction": 1912}], "row 1: prediction is not a text: 1912"),
        (
            [ROW | {"paraphrase": "a"}, ROW | {"paraphrase": "b"}, ROW | {"uuid": "u2"}],
            "uuid u2 has 1 rows, u1 has 2",
        ),
    ],
)
def test_bad_files_are_named_with_the_value(tmp_path, rows, phrase):
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError) as caught:
        load_scored(str(path))
    assert str(path) in str(caught.value)
    assert phrase in str(caught.value)


def test_a_file_without_rows(tmp_path):
    path = tmp_path / "none.csv"
    path.write_text("prediction,answers\n")
    with pytest.raises(UserError, match=r"none\.csv has no rows"):
        load_scored(str(path))


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
forbidden = {"torch", "transformers", "datasets", "spacy", "safetensors"}
assert not forbidden & set(sys.modules), forbidden & set(sys.modules)
"""
    done = run_script(path, "--baseline", path, code=code)
    assert done.returncode == 0, done.stderr
    assert "baseline" in done.stdout


def test_constants_are_the_usual_ones():
    assert pytest.approx(1.959964, abs=1e-6) == Z
    assert score.CONFIDENCE == 0.95
