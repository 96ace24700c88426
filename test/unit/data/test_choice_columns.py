"""The columns `choices` and `answer_index`, and files without answers."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from writing import error_of, write

from self_ensemble.data import Record, load_dataset, load_few_shot
from self_ensemble.data.records import require_choices
from self_ensemble.data.tables import TABLE_SUFFIXES

CHOICES = ["Lima", "Cusco", "Arequipa"]
ROWS = [
    {"uuid": "pe", "question": "Capital of Peru?", "choices": CHOICES, "answers": ["Lima"]},
    {"uuid": "ml", "question": "Towns of Mali?", "choices": ["Bamako", "Kayes", "Lyon"]}
    | {"answers": ["Bamako", "Kayes"]},
]


def load(path):
    return load_dataset(str(path))


def load_rows(tmp_path, *rows):
    return load(write(tmp_path / "own.jsonl", rows)).records


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_every_format_gives_the_same_choices(tmp_path, suffix):
    by_text = load(write(tmp_path / f"text{suffix}", ROWS))
    counted = [{k: v for k, v in row.items() if k != "answers"} for row in ROWS]
    counted = [row | {"answer_index": at} for row, at in zip(counted, ([0], [0, 1]), strict=True)]
    by_number = load(write(tmp_path / f"number{suffix}", counted))
    assert by_text.records == by_number.records
    assert [r.choices for r in by_text.records] == [tuple(row["choices"]) for row in ROWS]
    assert [r.answers for r in by_text.records] == [("Lima",), ("Bamako", "Kayes")]
    assert by_text.fingerprint == by_number.fingerprint
    assert by_text.choices_fingerprint == by_number.choices_fingerprint != ""
    require_choices(by_text.records)


def test_choices_are_no_part_of_the_fingerprint_that_the_last_release_knew(tmp_path):
    plain = [{k: v for k, v in row.items() if k != "choices"} for row in ROWS]
    before, after = (
        load(write(tmp_path / "a.jsonl", plain)),
        load(write(tmp_path / "b.jsonl", ROWS)),
    )
    assert before.fingerprint == after.fingerprint and before.choices_fingerprint == ""
    other = [ROWS[0] | {"choices": CHOICES[::-1]}, ROWS[1]]
    changed = load(write(tmp_path / "c.jsonl", other))
    assert changed.fingerprint == after.fingerprint
    assert changed.choices_fingerprint != after.choices_fingerprint
    # That of all, also where the first have none.
    mixed = load(write(tmp_path / "d.jsonl", [plain[0], ROWS[1]]))
    assert mixed.first(1).choices_fingerprint == mixed.choices_fingerprint != ""


@pytest.mark.parametrize(
    "value, right",
    [
        (1, ("Cusco",)),
        (2.0, ("Arequipa",)),
        ("2", ("Arequipa",)),
        (" 1.0 ", ("Cusco",)),
        ([0, 2], ("Lima", "Arequipa")),
        ([1.0], ("Cusco",)),
        ("[2, 0]", ("Arequipa", "Lima")),
        (None, ()),
        ("", ()),
        ([], ()),
        ("[]", ()),
    ],
)
def test_answer_index(tmp_path, value, right):
    [record] = load_rows(tmp_path, {"question": "q", "choices": CHOICES, "answer_index": value})
    assert record.answers == right and record.choices == tuple(CHOICES)


def test_answer_index_as_tables_with_gaps_and_of_small_types_have_it(tmp_path):
    for number, values in enumerate((pa.array([2.0, 0.0]), pa.array([2, 0], pa.int8()))):
        table = pa.table({"question": ["q", "r"], "choices": [CHOICES] * 2, "answer_index": values})
        path = tmp_path / f"{number}.parquet"
        pa.parquet.write_table(table, path)
        assert [r.answers for r in load(path).records] == [("Arequipa",), ("Lima",)]


@pytest.mark.parametrize(
    "row, choices, answers",
    [
        # Space around a choice would come between the prompt and it a second time.
        (
            {"choices": [" Lima", "Cusco\n"], "answers": [" Cusco"]},
            ("Lima", "Cusco"),
            ("Cusco",),
        ),
        # Texts that other readers take for missing, or for numbers.
        ({"choices": ["None", "NA", "nan", "3"], "answers": ["None"]}, None, ("None",)),
        # Other names of the right one: generated answers are compared with them.
        ({"choices": ["Lima", "Cusco"], "answers": ["Lima", "LIMA"]}, None, ("Lima", "LIMA")),
        ({"choices": ["Lima", "Cusco"], "answers": ["Ciudad de los Reyes"]}, None, None),
        ({"choices": ["no", "yes"], "answer": "yes"}, None, ("yes",)),
        ({"choices": ["A", "B", "C"], "answer": "B"}, None, ("B",)),
        ({"choices": ["Lima", "Cusco"], "answers": ["Lima"], "answer_index": 0}, None, ("Lima",)),
        ({"choices": None, "answers": ["Lima"]}, (), ("Lima",)),
    ],
)
def test_what_is_taken(tmp_path, row, choices, answers):
    [record] = load_rows(tmp_path, {"question": "q"} | row)
    assert record.choices == (tuple(row["choices"]) if choices is None else choices)
    assert record.answers == (tuple(row["answers"]) if answers is None else answers)


def test_csv(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "question,choices,answer_index\n"
        'q,"[""None"", ""a, b"", ""3""]",0\n'
        'r,"[""yes"", ""no""]",1.0\n'
    )
    records = load(path).records
    assert [r.choices for r in records] == [("None", "a, b", "3"), ("yes", "no")]
    assert [r.answers for r in records] == [("None",), ("no",)]


GOOD = {"question": "q", "choices": CHOICES}
BAD = {
    "one choice": ({"choices": ["Lima"], "answers": ["Lima"]}, ["two or more", "'Lima' alone"]),
    "no choice": ({"choices": []}, ["choices is an empty list"]),
    "an empty choice": ({"choices": ["#15", "#16", ""]}, ["choices[2] is empty"]),
    "a null choice": ({"choices": ["a", None]}, ["choices[1] is empty"]),
    "a choice twice": (
        {"choices": ["12", "-4", "4", " 12"], "answer_index": 2},
        ["choices[3] is '12', like choices[0]"],
    ),
    "the same but for a space that does not break": (
        {"choices": ["No change", "Increase", "Increase\u00a0"]},
        ["choices[2] is 'Increase', like choices[1]"],
    ),
    "numbers for choices": ({"choices": [1, 2]}, ["choices[0] must be a text, found 1"]),
    "one text for choices": ({"choices": "Lima, Cusco"}, ["choices must be a list", "'Lima, Cu"]),
    "a Python list with a gap": ({"choices": "['a', None]"}, ["choices looks like a list but is"]),
    "an array as NumPy prints it": ({"choices": "['a' 'b']"}, ["choices", "is not JSON"]),
    "a number that is not there": ({"answer_index": 3}, ["answer_index 3 is none of 0 to 2"]),
    "a negative number": ({"answer_index": -1}, ["answer_index -1", "leave it empty"]),
    "a huge number": ({"answer_index": 10**400}, ["answer_index", "none of 0 to 2"]),
    "a huge number in a text": ({"answer_index": "9" * 400}, ["answer_index", "found"]),
    "half a number": ({"answer_index": 1.5}, ["counted from 0", "found 1.5"]),
    "a letter": ({"answer_index": "B"}, ["the number of the right choice", "'B'"]),
    "a truth value": ({"answer_index": True}, ["the number of the right choice", "True"]),
    "a hole in the list": ({"answer_index": [0, None]}, ["number of the right choice", "None"]),
    "a number twice": ({"answer_index": [1, 1]}, ["names 1 twice"]),
    "an index that is no JSON": ({"answer_index": "[1 2]"}, ["answer_index", "not JSON"]),
    "an index out of range in a list": ({"answer_index": [0, 9]}, ["answer_index 9"]),
    "an index without choices": (
        {"choices": None, "answer_index": 0},
        ["answer_index counts choices", "no choices"],
    ),
    "two different answers": (
        {"answers": ["Lima"], "answer_index": 1},
        ["answer_index says Cusco", "Lima", "leave one of the two"],
    ),
    "a number for the answer": ({"answer": 2}, ["found 2", "goes into answer_index"]),
    "a float for the answer": ({"answer": 2.0}, ["found 2.0", "goes into answer_index"]),
    "a number as a text": ({"answer": "2"}, ["'2' is none of the choices", "answer_index"]),
    "a number from 1": ({"answer": "3"}, ["'3' is none of the choices", "answer_index"]),
    "a letter for the answer": ({"answer": "C"}, ["'C' is none of the choices", "answer_index"]),
    "a letter in brackets": ({"answer": "(b)"}, ["'(b)' is none of", "answer_index"]),
    # The article of the question is no letter that it shows.
    "a letter that is also a word": (
        {"question": "Is Lima a town?", "answer": "A"},
        ["'A' is none of", "answer_index"],
    ),
    "letters in a list": ({"answers": ["A", "C"]}, ["'A' is none of", "answer_index"]),
}


@pytest.mark.parametrize("row, named", BAD.values(), ids=BAD)
def test_what_is_refused(tmp_path, row, named):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(GOOD | {"uuid": "u7"} | row) + "\n")
    sentence = error_of(load, path)
    for part in [f"line 1 of {path} (uuid u7)", *named]:
        assert part in sentence, sentence


def test_answers_that_are_letters_which_the_question_shows(tmp_path):
    row = {"question": "Capital? A) Lima B) Cusco", "choices": ["Lima", "Cusco"], "answer": "B"}
    [record] = load_rows(tmp_path, row)
    assert record.answers == ("B",)
    sentence = error_of(require_choices, [record])
    assert "the answer 'B' is none of the choices: Lima, Cusco" in sentence


@pytest.mark.parametrize(
    "answers, is_told",
    [
        (("2", "1"), True),  # as MMLU counts, from 0, these would be the texts 3 and 2
        (("2", "17"), False),  # 17 counts nothing
        ((["2"], ["1"]), False),  # a list holds texts
    ],
)
def test_numbers_that_are_choices_and_could_count_them(tmp_path, answers, is_told):
    rows = [
        {"question": f"q{i}", "choices": ["1", "2", "3", "17"], "answer": answer}
        for i, answer in enumerate(answers)
    ]
    path = write(tmp_path / "own.jsonl", rows)
    if is_told:
        sentence = error_of(load, path)
        assert f"line 1 of {path}" in sentence
        assert "'2' is choices[1], and could count choices[2]: write answer_index" in sentence
    else:
        assert [r.answers[0] for r in load(path).records] == [*map("".join, answers)]


def test_how_many_questions_have_a_choice_twice_is_told_at_once(tmp_path):
    rows = [{"question": f"q{i}", "choices": ["a", "b", "a" * (i % 2 or 2)]} for i in range(6)]
    path = write(tmp_path / "own.jsonl", rows)
    sentence = error_of(load, path)
    assert f"line 2 of {path}" in sentence and "(3 questions have a choice twice)" in sentence


def test_the_same_question_with_other_choices(tmp_path):
    """Files of choices ask `Which of these is true?` many times."""
    rows = [
        {"question": "Which is true?", "choices": ["a", "b"], "answer_index": 0},
        {"question": "Which is false?", "choices": ["a", "b"], "answer_index": 0},
        {"question": "Which is true?", "choices": ["c", "d"], "answer_index": 0},
    ]
    records = load_rows(tmp_path, *rows)
    assert len({r.uuid for r in records}) == 3
    [alone] = load_rows(tmp_path, rows[1])
    assert alone.uuid == records[1].uuid
    # Their order does not matter, and one that is alone is not taken for one of the two.
    assert [r.uuid for r in load_rows(tmp_path, *rows[::-1])] == [r.uuid for r in records[::-1]]
    assert load_rows(tmp_path, rows[2])[0].uuid not in {r.uuid for r in records}
    sentence = error_of(load, write(tmp_path / "own.jsonl", [*rows, rows[0]]))
    assert "line 4" in sentence and "'Which is true?', without a uuid" in sentence


def test_scoring_needs_choices_everywhere_and_answers_among_them():
    record = Record("u1", ("q",), ("b",), choices=("a", "b"), place="line 1 of own.jsonl")
    require_choices([record, Record("u3", ("q",), (), choices=("a", "b"))])
    sentence = error_of(require_choices, [record, Record("u2", ("q",), ("b",))])
    assert sentence == "question u2 has no choices"
    wrong = Record("u4", ("q",), ("b", "B"), choices=("a", "b"), place="line 9 of own.jsonl")
    assert error_of(require_choices, [wrong]) == (
        "line 9 of own.jsonl (uuid u4): the answer 'B' is none of the choices: a, b"
    )


# Without answers


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
@pytest.mark.parametrize("answers", ["no column", "null", "empty list", "blank"])
def test_files_without_answers(tmp_path, suffix, answers):
    rows = [{"question": "who?", "uuid": "u0"}, {"question": "where?", "uuid": "u1"}]
    empty = {"null": None, "empty list": [], "blank": ""}
    if answers in empty:
        rows = [row | {"answers": empty[answers]} for row in rows]
    records = load(write(tmp_path / f"own{suffix}", rows)).records
    assert [(r.uuid, r.answers) for r in records] == [("u0", ()), ("u1", ())]


def test_a_file_with_answers_of_some_questions_alone(tmp_path):
    rows = [
        {"question": "a", "answers": ["x"]},
        {"question": "b"},
        {"question": "c", "answer": "x"},
    ]
    path = write(tmp_path / "own.jsonl", rows)
    sentence = error_of(load, path)
    assert sentence.startswith(f"line 2 of {path} (uuid ") and "has no answers" in sentence


# Few-shot demonstrations


@pytest.mark.parametrize(
    "row, answer",
    [
        ({"choices": CHOICES, "answer_index": 1}, "Cusco"),
        ({"choices": CHOICES, "answer_index": [2, 0]}, "Arequipa"),
        ({"choices": CHOICES, "answer": " Lima"}, "Lima"),
        ({"choices": CHOICES, "answers": ["Cusco", "Lima"]}, "Cusco"),
    ],
)
def test_demonstrations_with_choices(tmp_path, row, answer):
    [shot] = load_few_shot(write(tmp_path / "shots.jsonl", [{"question": "q"} | row]))
    assert shot.answer == answer


@pytest.mark.parametrize(
    "row, named",
    [
        ({"choices": CHOICES, "answer": 1}, ["line 1", "answer_index"]),
        ({"choices": CHOICES, "answer": "1"}, ["line 1", "answer_index"]),
        ({"choices": CHOICES, "answer_index": None}, ["line 1", "no answers"]),
        ({"choices": CHOICES, "label": 1}, ["rename label to answer_index"]),
        ({"options": CHOICES, "answer": "B"}, ["line 1", "rename options to choices"]),
    ],
)
def test_demonstrations_that_would_show_the_number_of_a_choice(tmp_path, row, named):
    sentence = error_of(load_few_shot, write(tmp_path / "shots.jsonl", [{"question": "q"} | row]))
    for part in [*named, "shots.jsonl"]:
        assert part in sentence, sentence
