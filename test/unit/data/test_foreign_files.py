"""Files with the columns of published datasets: read as they are meant, or refused with what to do.

Their content is made here; columns and types are theirs. Nothing may be taken for what it is not,
such as the number of a choice for the right text.
"""

import json

import pandas as pd
import pytest
from writing import error_of, write

from self_ensemble.data import load_dataset
from self_ensemble.data.records import require_choices
from self_ensemble.data.tables import TABLE_SUFFIXES

ARC = [
    {
        "id": "Mercury_1",
        "question": "Which of these gives light of its own?",
        "choices": {"text": ["the Moon", "the Sun", "Mars"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    {
        "id": "NYS_2",
        "question": "What do plants take from the air?",
        "choices": {"text": ["iron", "sand", "carbon dioxide"], "label": ["1", "2", "3"]},
        "answerKey": "3",
    },
]
MMLU = [
    {"question": "What is 7 - 5?", "subject": "arithmetic"}
    | {"choices": ["1", "2", "3", "4"], "answer": 1},
    {"question": "Which is prime?", "subject": "arithmetic"}
    | {"choices": ["4", "1", "3", "2"], "answer": 2},
]
BOOLQ = [
    {"question": "is iron a metal", "answer": True, "passage": "Iron is a metal."},
    {"question": "is salt a metal", "answer": False, "passage": "Salt is a mineral."},
]
HELLASWAG = [
    {
        "ind": 4,
        "activity_label": "Cooking",
        "ctx_a": "A man cuts an onion.",
        "ctx_b": "he",
        "ctx": "A man cuts an onion. he",
        "endings": ["flies away.", "reads a map.", "puts it into a pan.", "swims."],
        "source_id": "x~1",
        "split": "val",
        "split_type": "indomain",
        "label": "2",
    }
]
WINOGRANDE = [
    {"sentence": "The cup did not fit into the box, for the _ was too large.", "option1": "cup"}
    | {"option2": "box", "answer": "1"}
]
PIQA = [{"goal": "dry a cup", "sol1": "Use a towel.", "sol2": "Use water.", "label": 0}]
SIQA = [
    {"context": "Ann fell.", "question": "How did Ann feel?", "answerA": "hurt"}
    | {"answerB": "proud", "answerC": "rich", "label": "1"}
]
RACE = [
    {"example_id": "m1", "article": "Tom likes tea.", "question": "What does Tom like?"}
    | {"options": ["milk", "tea", "beer", "water"], "answer": "B"}
]
MMLU_PRO = [
    {"question_id": 7, "question": "What is 2 + 2?", "options": ["1", "2", "3", "4", "5"]}
    | {"answer": "D", "answer_index": 3, "category": "math"}
]
CEVAL = [{"id": 0, "question": "Two plus two?", "A": "3", "B": "4", "C": "5", "D": "6"}]
MEDMCQA = [{"question": "Which is a bone?", "opa": "femur", "opb": "liver", "opc": "eye", "cop": 0}]
OPENBOOK = [
    {"id": "8-1", "question_stem": "Ice is", "answerKey": "A"}
    | {"choices": {"text": ["cold", "hot"], "label": ["A", "B"]}}
]
TRUTHFUL = [
    {"question": "Is the Earth flat?", "best_answer": "No", "correct_answers": ["No", "It is not"]}
    | {"incorrect_answers": ["Yes"]}
]
SQUAD = [
    {"id": "5", "title": "Peru", "context": "Lima is Peru's capital."}
    | {"question": "Peru's capital?", "answers": {"text": ["Lima"], "answer_start": [0]}}
]
SCIQ = [{"question": "What is NaCl?", "distractor1": "sand", "correct_answer": "salt"}]
GSM8K = [{"question": "What is 7 - 5?", "answer": "7 - 5 = <<7-5=2>>2\n#### 2"}]
NQ = [{"question": "who rules peru", "answer": ["Nobody", "no one"]}]


def load(path):
    return load_dataset(str(path))


def save(path, rows):
    """As pandas writes it: in a .csv, lists, objects and truth values as Python prints them."""
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_feather(path)
    return path


REFUSED = {
    "arc": (ARC, ["no column answers", "rename answerKey to answer_index (numbers"]),
    "openbook": (OPENBOOK, ["question", "rename question_stem to question, answerKey to"]),
    "boolq": (BOOLQ, ["True", "write what is to be said, such as yes or no"]),
    "hellaswag": (
        HELLASWAG,
        ["rename ctx to question, endings to choices (a list), label to answer_index (numbers, "],
    ),
    "winogrande": (WINOGRANDE, ["rename sentence to question, option1, option2 to one list, choi"]),
    "piqa": (PIQA, ["rename goal to question, sol1, sol2 to one list, choices, label to answer_"]),
    "siqa": (SIQA, ["rename answerA, answerB, answerC to one list, choices, label to answer_in"]),
    "race": (RACE, ["'B' seems to count the choices in options", "rename options to choices (a"]),
    "mmlu_pro": (MMLU_PRO, ["answer_index, and no column choices; rename options to choices"]),
    "ceval": ([CEVAL[0] | {"answer": "B"}], ["'B' seems to count the choices in A, B, C, D"]),
    "medmcqa": (MEDMCQA, ["no column answers; rename opa, opb, opc to one list, choices, cop to"]),
    "truthful": (TRUTHFUL, ["no column answers; rename correct_answers to answers, or leave"]),
    "sciq": (SCIQ, ["no column answers; rename correct_answer to answers"]),
}


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_says_what_to_rename(tmp_path, name, suffix):
    rows, named = REFUSED[name]
    sentence = error_of(load, save(tmp_path / f"{name}{suffix}", rows))
    for part in [f"{name}{suffix}", *named]:
        assert part in sentence, sentence


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_mmlu(tmp_path, suffix):
    """`answer` counts from 0: the 1 of the first row is the text 2, and 1 is another choice."""
    sentence = error_of(load, save(tmp_path / f"mmlu{suffix}", MMLU))
    is_csv = suffix == ".csv"
    told = "answer_index" if is_csv else "goes into answer_index"  # in CSV the numbers are texts
    assert told in sentence, sentence
    # With lists as JSON, as a .csv is to have them, the numbers are texts.
    path = write(tmp_path / f"json{suffix}", MMLU)
    sentence = error_of(load, path)
    assert "answer_index" in sentence
    if is_csv:
        assert f"line 2 of {path}" in sentence and "could count choices[1]" in sentence
    renamed = [{("answer_index" if k == "answer" else k): v for k, v in r.items()} for r in MMLU]
    records = load(write(tmp_path / f"renamed{suffix}", renamed)).records
    assert [r.answers for r in records] == [("2",), ("3",)]
    require_choices(records)


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".jsonl"])
def test_choices_that_are_objects(tmp_path, suffix):
    """ARC once answerKey is gone, and what is to be made of it."""
    rows = [{k: v for k, v in row.items() if k != "answerKey"} for row in ARC]
    sentence = error_of(load, save(tmp_path / f"arc{suffix}", rows))
    assert "choices must be a list of texts, found an object with text, label" in sentence
    for row in rows:
        key = next(each["answerKey"] for each in ARC if each["id"] == row["id"])
        row["answer_index"] = row["choices"]["label"].index(key)
        row["choices"] = row["choices"]["text"]
    records = load(save(tmp_path / f"list{suffix}", rows)).records
    assert [r.answers for r in records] == [("the Sun",), ("carbon dioxide",)]


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_hellaswag_renamed(tmp_path, suffix):
    """Its label is a text, "2"; in the test split, the empty one."""
    names = {"ctx": "question", "endings": "choices", "label": "answer_index"}
    rows = [{names.get(k, k): v for k, v in row.items()} for row in HELLASWAG]
    [record] = load(write(tmp_path / f"own{suffix}", rows)).records
    assert record.paraphrases == ("A man cuts an onion. he",)
    assert record.answers == ("puts it into a pan.",) and len(record.choices) == 4
    [record] = load(write(tmp_path / f"t{suffix}", [rows[0] | {"answer_index": ""}])).records
    assert record.answers == () and len(record.choices) == 4


def test_boolq_in_a_csv(tmp_path):
    """Its truth values are the texts True and False there, which a question may also ask for."""
    path = save(tmp_path / "boolq.csv", BOOLQ)
    sentence = error_of(load, path)
    assert f"line 2 of {path}" in sentence and "seems to be a truth value" in sentence
    said = [row | {"answer": "yes" if row["answer"] else "no"} for row in BOOLQ]
    assert load(save(path, said)).records[0].answers == ("yes",)
    asked = [row | {"question": f"True or false: {row['question']}"} for row in BOOLQ]
    assert load(save(path, asked)).records[1].answers == ("False",)
    listed = [row | {"answer": json.dumps([str(row["answer"])])} for row in BOOLQ]
    assert load(save(path, listed)).records[0].answers == ("True",)
    chosen = [row | {"choices": '["False", "True"]'} for row in BOOLQ]
    assert load(save(path, chosen)).records[0].answers == ("True",)


@pytest.mark.parametrize("suffix", [".parquet", ".feather", ".jsonl"])
def test_answers_that_are_objects(tmp_path, suffix):
    sentence = error_of(load, save(tmp_path / f"squad{suffix}", SQUAD))
    assert "answers must be a text or a list of texts" in sentence
    assert sentence.endswith(": make its list of texts the column")


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_what_is_read_as_it_is(tmp_path, suffix):
    [record] = load(save(tmp_path / f"gsm{suffix}", GSM8K)).records
    assert record.answers == (GSM8K[0]["answer"],)
    [record] = load(write(tmp_path / f"nq{suffix}", NQ)).records
    assert record.answers == ("Nobody", "no one")


def test_letters_that_the_questions_show_are_answers(tmp_path):
    """A question that shows its choices is answered by a letter; `options` is then of no use."""
    [row] = RACE
    shown = row | {"question": f"{row['question']} A) milk B) tea C) beer D) water"}
    [record] = load(write(tmp_path / "own.jsonl", [shown])).records
    assert record.answers == ("B",) and record.choices == ()


def test_a_column_of_another_meaning_is_no_choice(tmp_path):
    rows = [{"question": "3 + 4?", "a": 3, "b": 4, "answer": "7"}]
    assert load(write(tmp_path / "sums.csv", rows)).records[0].answers == ("7",)
    rows = [
        {"question": f"{n}?", "options": ["x"], "answer": t} for n, t in enumerate(["B", "Lima"])
    ]
    assert load(write(tmp_path / "own.jsonl", rows)).records[1].answers == ("Lima",)
