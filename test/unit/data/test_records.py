"""Records, and which of their paraphrases are taken."""

from dataclasses import replace

import pytest
from writing import error_of, write

from self_ensemble.data import Dataset, Record, load_dataset, select_paraphrases
from self_ensemble.data.records import indexs_taken, original_wording


def records_of(*counts):
    return [
        Record(f"u{i}", tuple(f"{i}.{j}" for j in range(count)), ("a",), "q", "r")
        for i, count in enumerate(counts)
    ]


@pytest.mark.parametrize(
    "num_paraphrases, indexs, expected",
    [
        (1, None, ("0.0",)),
        (3, None, ("0.0", "0.1", "0.2")),
        (5, (2, 0), ("0.2", "0.0")),
        (1, [3], ("0.3",)),
    ],
)
def test_select_paraphrases(num_paraphrases, indexs, expected):
    records = records_of(4, 5)
    chosen = select_paraphrases(records, num_paraphrases=num_paraphrases, indexs=indexs)
    assert chosen[0] == replace(records[0], paraphrases=expected)
    assert [record.uuid for record in chosen] == ["u0", "u1"]
    assert records == records_of(4, 5)


@pytest.mark.parametrize(
    "num_paraphrases, indexs, named",
    [
        (5, None, ["5 paraphrases", "question u1 has 3 (2 questions have too few)"]),
        (3, None, ["3 paraphrases", "question u2 has 2: paraphrase.py makes more"]),
        (5, None, ["--num_paraphrases asks for fewer", "--fewer use", "--fewer skip"]),
        (1, (0, 3), ["paraphrase 3 (counted from 0)", "question u1 has 3", "--indexs"]),
        (1, (0, -1), ["-1", "negative"]),
        (1, (2, 0, 2), ["2", "twice"]),
    ],
)
def test_select_paraphrases_refuses(num_paraphrases, indexs, named):
    sentence = error_of(
        select_paraphrases,
        records_of(5, 3, 2),
        num_paraphrases=num_paraphrases,
        indexs=indexs,
    )
    for part in named:
        assert part in sentence, sentence


@pytest.mark.parametrize(
    "fewer, num_paraphrases, indexs, expected",
    [
        ("use", 3, None, {"u0": "012", "u1": "012", "u3": "01"}),
        ("skip", 3, None, {"u0": "012", "u1": "012"}),
        ("use", 1, (3, 1, 2), {"u0": "312", "u1": "12", "u3": "1"}),
        ("skip", 1, (3, 1, 2), {"u0": "312"}),
        # Of what is asked for, u1 and u3 have nothing: there is nothing to use.
        ("use", 1, (4, 3), {"u0": "43"}),
        ("use", 1, None, {"u0": "0", "u1": "0", "u3": "0"}),
    ],
)
def test_fewer_paraphrases_than_asked_for(fewer, num_paraphrases, indexs, expected):
    records = records_of(5, 3, 0, 2)
    chosen = select_paraphrases(
        records, num_paraphrases=num_paraphrases, indexs=indexs, fewer=fewer
    )
    assert {r.uuid: "".join(text[-1] for text in r.paraphrases) for r in chosen} == expected
    for record in chosen:
        if indexs is not None:
            taken = indexs_taken(indexs, len(record.paraphrases))
            assert "".join(map(str, taken)) == expected[record.uuid]
    with pytest.raises(AssertionError):
        select_paraphrases(records, num_paraphrases=1, indexs=None, fewer="some")


def test_where_all_have_enough_it_does_not_matter_what_fewer_is():
    chosen = [
        select_paraphrases(records_of(4, 5), num_paraphrases=3, indexs=None, fewer=fewer)
        for fewer in ("error", "use", "skip")
    ]
    assert chosen[0] == chosen[1] == chosen[2]


@pytest.mark.parametrize(
    "fewer, asked, named",
    [
        ("skip", {"num_paraphrases": 4, "indexs": None}, "as many paraphrases; question u0 has 3"),
        ("use", {"num_paraphrases": 4, "indexs": (3,)}, "any paraphrase; question u0 has 3"),
        ("error", {"num_paraphrases": 1, "indexs": None}, "question u1 has none: paraphrase.py"),
    ],
)
def test_no_question_left(fewer, asked, named):
    sentence = error_of(select_paraphrases, records_of(3, 0), fewer=fewer, **asked)
    assert named in sentence, sentence
    assert fewer == "error" or sentence.startswith(f"--fewer {fewer} leaves no question: none of 2")


@pytest.mark.parametrize(
    "suffix, place", [(".jsonl", "line 3"), (".csv", "line 4"), (".parquet", "row 3")]
)
def test_file_and_line_of_a_question_with_too_few(tmp_path, suffix, place):
    rows = [{"uuid": f"u{i}", "answers": ["x"], "paraphrases": [f"{i}?"] * 2} for i in range(4)]
    rows[2]["paraphrases"] = ["2?"]
    path = write(tmp_path / f"own{suffix}", rows)
    records = load_dataset(str(path)).records
    sentence = error_of(select_paraphrases, records, num_paraphrases=2, indexs=None)
    assert f"2 paraphrases were asked for, but {place} of {path} (uuid u2) has 1:" in sentence


def test_where_a_question_stands_is_no_part_of_it():
    here, there = (Record("u", ("a",), ("b",), place=place) for place in ("line 1", "line 2"))
    assert here == there and hash(here) == hash(there) and "line" not in repr(here)
    assert Dataset("d", [here]).fingerprint == Dataset("d", [there]).fingerprint
    assert replace(here, paraphrases=("c",)).where == "line 1 (uuid u)"


EMPTY = {
    "an empty list": {"paraphrases": []},
    "two empty lists": {"manual_paraphrases": [], "auto_paraphrases": []},
    "empty cells": {"paraphrase0": "", "paraphrase1": " "},
    "an empty list as JSON": {"paraphrases": "[]"},
}


@pytest.mark.parametrize("fields", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("uuid", [{"uuid": "u1"}, {}])
def test_questions_without_any_paraphrase(tmp_path, fields, uuid):
    """They are told of with their line, or left out, one by one."""
    full = {name: "a?" if name[-1].isdigit() else ["a?"] for name in fields}
    rows = [full, fields | uuid, dict.fromkeys(fields) | {"question": "c?"}]
    if "paraphrases" in fields:
        rows[2] = {"paraphrases": ["c?"]}
    path = write(tmp_path / "own.jsonl", [row | {"answers": ["x"]} for row in rows])
    records = load_dataset(str(path)).records
    assert [len(r.paraphrases) for r in records][1:] == [0, 1]
    assert len({r.uuid for r in records}) == 3
    sentence = error_of(select_paraphrases, records, num_paraphrases=1, indexs=None)
    assert f"but line 2 of {path} (uuid {records[1].uuid}) has none: " in sentence
    for fewer in ("use", "skip"):
        left = select_paraphrases(records, num_paraphrases=1, indexs=None, fewer=fewer)
        assert [r.uuid for r in left] == [records[0].uuid, records[2].uuid]
    assert f"line 2 of {path}" in error_of(original_wording, records[1])


def test_two_questions_without_any_wording_are_two(tmp_path):
    rows = [{"paraphrase0": text, "answers": ["x"]} for text in ("", "a?", "")]
    records = load_dataset(str(write(tmp_path / "own.csv", rows))).records
    assert len({r.uuid for r in records}) == 3
    left = select_paraphrases(records, num_paraphrases=1, indexs=None, fewer="skip")
    assert [r.paraphrases for r in left] == [("a?",)]


def test_the_original_wording_of_a_question_without_paraphrases():
    assert original_wording(Record("u", (), question="q?")) == "q?"
    assert original_wording(Record("u", ("p?", "r?"))) == "p?"


def test_lists_become_tuples_and_one_text_is_no_list_of_them():
    record = Record("u", ["a", "b"], ["c"])
    assert record == Record("u", ("a", "b"), ("c",))
    with pytest.raises(AssertionError, match="paraphrases is one text"):
        Record("u", "a", ["c"])
