"""Tables with a row a wording: the same records as lists give, whatever is odd about the rows."""

import csv
import json
import time
from decimal import Decimal
from itertools import zip_longest

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published import GSM_PLUS, KEEPING, POPQA_RECORDS, PROMPTSET, SEEDS, write_popqa
from writing import error_of, write

from self_ensemble import load_dataset
from self_ensemble.data import DatasetOptions, open_dataset, select_paraphrases
from self_ensemble.data.cells import parsed_list
from self_ensemble.data.hub_tables import is_hub_id
from self_ensemble.data.long_format import Columns
from self_ensemble.data.question_files import records_of
from self_ensemble.data.records import Dataset, Record
from self_ensemble.data.tables import TABLE_SUFFIXES
from self_ensemble.system.errors import UserError


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
@pytest.mark.parametrize("printed", [json.dumps, str], ids=["json", "python"])
def test_popqa_robustness(tmp_path, suffix, printed):
    path = write_popqa(tmp_path / f"PopQA_robustness{suffix}", printed)
    dataset = load_dataset(str(path), group_by="id", answer_column="possible_answers")
    assert dataset.records == POPQA_RECORDS
    assert dataset.name == "PopQA_robustness"


def test_promptset(tmp_path):
    path = write(tmp_path / "triviaqa.jsonl", PROMPTSET)
    dataset = load_dataset(
        str(path),
        group_by="reference_prompt_id",
        paraphrase_column="prompt",
        answer_column="expected_answer",
    )
    assert [r.uuid for r in dataset.records] == ["tc_11", "tc_43"]
    assert dataset.records[1].paraphrases == tuple(row["prompt"] for row in PROMPTSET[10:])
    assert dataset.records[1].answers == ("Bamako", "BAMAKO")


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_gsm_plus(tmp_path, suffix):
    path = write(tmp_path / f"testmini{suffix}", GSM_PLUS)
    kept = load_dataset(str(path), group_by="seed_question", where={"perturbation_type": KEEPING})
    assert [record.uuid for record in kept.records] == list(SEEDS)
    assert kept.records[1].paraphrases == tuple(f"{kind}: {SEEDS[1]}" for kind in KEEPING)
    assert kept.records[1].answers == ("3",)
    assert kept.name == "testmini-problem understanding-distraction insertion"
    sentence = error_of(load_dataset, str(path), group_by="seed_question")
    # In a CSV a solution's line break is a line of the file.
    places = {".jsonl": ("line 1", "line 2"), ".csv": ("line 2", "line 5")}
    first, second = places.get(suffix, ("row 1", "row 2"))
    assert sentence.startswith(f"{second} of {path}: the answer '13' is none in {first} of {path}")
    assert "--where leaves rows out" in sentence


# ---- the same as lists --------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8)
texts = texts.filter(lambda text: text.strip())
questions = st.fixed_dictionaries(
    {
        "paraphrases": st.lists(texts, min_size=1, max_size=4),
        "answers": st.lists(texts, max_size=3),
    },
    optional={"relation": st.sampled_from(["P36", "P17"]), "question": texts},
)


@st.composite
def both_forms(draw):
    """Rows of lists, and the same data with a row a wording, the questions' rows mixed."""
    number = st.integers(-5, 10**12)
    ids = draw(st.one_of(st.lists(kind, unique=True, max_size=6) for kind in (number, texts)))
    if all(isinstance(each, str) for each in ids):  # one id in two spellings is refused
        ids = list({each.strip(): each for each in ids}.values())
    answered = draw(st.booleans())
    lists = []
    for each in ids:
        row = draw(questions) | {"uuid": each}
        row["answers"] = (row["answers"] or ["x"]) if answered else []
        lists.append(row)
    turns = draw(st.permutations([i for i, row in enumerate(lists) for _ in row["paraphrases"]]))
    left = [list(row["paraphrases"]) for row in lists]
    long = []
    for i in turns:
        row = {name: value for name, value in lists[i].items() if name != "paraphrases"}
        as_text = draw(st.sampled_from([list, json.dumps, str]))
        row["answers"] = as_text(row["answers"])
        long.append(row | {"paraphrase": left[i].pop(0)})
    return [lists[i] for i in dict.fromkeys(turns)], long


def records_from(rows, how=None):
    columns = list(dict.fromkeys(name for row in rows for name in row))
    placed = [(f"row {i}", row) for i, row in enumerate(rows, 1)]
    return records_of("t", *(how or Columns()).read("t", columns, placed))


@settings(max_examples=100, deadline=None)
@given(both_forms())
def test_long_rows_are_the_same_questions_as_lists(forms):
    lists, long = forms
    if not lists:
        return
    expected, found = records_from(lists), records_from(long, Columns(group_by="uuid"))
    assert found == expected
    assert Dataset("a", found).fingerprint == Dataset("b", expected).fingerprint


def many(suffix, tmp_path):
    """2,000 questions in five wordings each, as lists and as 10,000 mixed rows."""
    lists = [
        {
            "uuid": f"{i * 7919 % 2003:04d}",
            "paraphrases": [f"Wording {j} of {i}?" for j in range(5)],
            "answers": [f"answer {i}", f"{i}, or so"],
            "relation": f"P{i % 7}",
        }
        for i in range(2_000)
    ]
    blocks = [lists[i : i + 50] for i in range(0, 2_000, 50)]
    long = [
        {**{name: row[name] for name in ("uuid", "answers", "relation")}, "question": text}
        for block in blocks
        for wordings in zip_longest(*(row["paraphrases"] for row in block))
        for row, text in zip(block, wordings, strict=True)
    ]
    paths = write(tmp_path / f"lists{suffix}", lists), write(tmp_path / f"long{suffix}", long)
    return tuple(map(str, paths))


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_ten_thousand_rows(tmp_path, suffix):
    lists, long = many(suffix, tmp_path)
    begin = time.perf_counter()
    gathered = load_dataset(long, group_by="uuid")
    seconds = time.perf_counter() - begin
    assert gathered.fingerprint == load_dataset(lists).fingerprint
    assert seconds < 2  # 0.1 as measured
    assert len(gathered.first(20).records) == 20
    assert gathered.first(20).fingerprint == gathered.fingerprint


def test_questions_stand_in_the_order_of_their_first_rows(tmp_path):
    """Neither sorted, as `groupby` of pandas has it, nor only where rows stand together."""
    order = ["q9", "q10", "q1", "q9", "q1", "q10", "q9"]
    rows = [{"id": q, "question": f"{q} {i}", "answers": q} for i, q in enumerate(order)]
    records = load_dataset(str(write(tmp_path / "a.jsonl", rows)), group_by="id").records
    assert [r.uuid for r in records] == ["q9", "q10", "q1"]
    assert [r.paraphrases for r in records] == [
        ("q9 0", "q9 3", "q9 6"),
        ("q10 1", "q10 5"),
        ("q1 2", "q1 4"),
    ]
    assert (
        load_dataset(str(tmp_path / "a.jsonl"), group_by="id", max_samples=2).records
        == (records[:2])
    )


# ---- ids ----------------------------------------------------------------------------------------


def of_ids(path, *ids):
    return str(write(path, [{"id": v, "question": f"w {i}?"} for i, v in enumerate(ids)]))


@pytest.mark.parametrize(
    ("ids", "uuids"),
    [
        ((7, 8, 7), ["7", "8"]),
        (("007", "7", "007"), ["007", "7"]),  # texts stay as they are written
        ((7.0, 8.0, 7.0), ["7", "8"]),  # as pandas has whole numbers beside a gap
        ((7, 7.0, 8), ["7", "8"]),
        (("a b", "ä\nc"), ["a b", "ä\nc"]),
        ((0, -1), ["0", "-1"]),
    ],
)
def test_ids(tmp_path, ids, uuids):
    for suffix in (".jsonl", ".parquet"):
        if suffix == ".parquet" and len({type(each) for each in ids}) > 1:
            continue
        dataset = load_dataset(of_ids(tmp_path / f"a{suffix}", *ids), group_by="id")
        assert [record.uuid for record in dataset.records] == uuids


BAD_IDS = {
    "null": ((1, None), "line 2 of {path}: id is empty"),  # pandas leaves such rows out
    "nan": ((1.0, float("nan")), "line 2 of {path}: id is empty"),
    "blank": (("a", "  "), "line 2 of {path}: id is empty"),
    "text and number": ((7, 8, "7"), "line 3 of {path}: id is '7', and 7 in line 1 of {path}"),
    "blank around": (("7", "7 "), "line 2 of {path}: id is '7 ', and '7' in line 1 of {path}"),
    "decimals": (("7", "7.0"), "line 2 of {path}: id is '7.0', and '7' in line 1 of {path}"),
    "accents": (("e\u0301", "\u00e9"), "line 2 of {path}: id is 'é', and 'e\u0301' in line 1 of"),
    "truth value": ((True, False), "line 1 of {path}: id must be a text or a whole number"),
    "fraction": ((1.5, 1.5), "line 1 of {path}: id must be a text or a whole number"),
    "infinite": ((float("inf"), 1), "line 1 of {path}: id must be a text or a whole number"),
    "list": (([1], [1]), "line 1 of {path}: id must be a text or a whole number"),
    "large float": ((2.0**53, 1.0), "line 1 of {path}: id is 9007199254740992.0, a number that"),
    "half a character": (("\ud800", "a"), "line 1 of {path}: id holds half a character"),
}


@pytest.mark.parametrize("name", BAD_IDS)
def test_ids_that_do_not_do(tmp_path, name):
    ids, named = BAD_IDS[name]
    path = tmp_path / "a.jsonl"
    rows = [{"id": value, "question": f"w {i}?"} for i, value in enumerate(ids)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert named.format(path=path) in error_of(load_dataset, str(path), group_by="id")


def test_ids_of_a_frame_with_a_gap_and_decimals(tmp_path):
    pd.DataFrame({"id": [1, None, 1], "question": ["a", "b", "c"]}).to_parquet(
        tmp_path / "a.parquet"
    )
    sentence = error_of(load_dataset, str(tmp_path / "a.parquet"), group_by="id")
    assert sentence.startswith(f"row 2 of {tmp_path / 'a.parquet'}: id is empty")
    table = pa.table({"id": pa.array([Decimal("1.00")] * 2), "question": ["a", "b"]})
    pa.parquet.write_table(table, tmp_path / "b.parquet")
    sentence = error_of(load_dataset, str(tmp_path / "b.parquet"), group_by="id")
    assert "must be a text or a whole number" in sentence
    # Large whole numbers are exact where they are whole numbers.
    path = of_ids(tmp_path / "c.parquet", 2**53 + 1, 2**53)
    uuids = [record.uuid for record in load_dataset(path, group_by="id").records]
    assert uuids == [str(2**53 + 1), str(2**53)]


def test_rows_by_the_question_itself_have_the_uuid_that_it_makes(tmp_path):
    lists = [{"question": "Peru?", "paraphrases": ["a", "b"], "answers": ["Lima"]}]
    long = [{"question": "Peru?", "paraphrase": text, "answer": "Lima"} for text in "ab"]
    expected = load_dataset(str(write(tmp_path / "lists.csv", lists)))
    found = load_dataset(str(write(tmp_path / "long.csv", long)), group_by="question")
    assert found.records == expected.records
    assert found.fingerprint == expected.fingerprint


# ---- what belongs to the question ---------------------------------------------------------------

ROW = {
    "id": "q",
    "question": "Peru?",
    "paraphrase": "w",
    "answers": ["Lima", "x"],
    "choices": ["Lima", "x", "Cusco"],
    "relation": "P36",
}


def load_rows(tmp_path, *changes, by="id", **how):
    rows = [ROW | {"paraphrase": f"w{i}"} | change for i, change in enumerate(changes)]
    return load_dataset(str(write(tmp_path / "t.jsonl", rows)), group_by=by, **how)


AGREEING = [
    {"answers": ["x", "Lima"]},
    {"answers": '["x", "Lima"]'},
    {"answers": "['Lima', 'x']"},
    {"answers": [" Lima", "x", "x"]},  # the choices' texts
    {"answers": None, "answer_index": [0, 1]},
    {"answers": None, "answer": ["x", "Lima"]},
    {"choices": '["Lima", "x", "Cusco"]'},
    {"relation": None, "rel": "P36"},
]


@pytest.mark.parametrize("change", AGREEING)
def test_rows_that_say_the_same_in_another_way(tmp_path, change):
    (record,) = load_rows(tmp_path, {}, change).records
    assert record == Record(
        "q", ("w0", "w1"), ("Lima", "x"), "Peru?", "P36", ("Lima", "x", "Cusco")
    )


DISAGREEING = {
    "another answer": ({"answers": ["Lima", "Cusco"]}, ": the answer 'Cusco' is none in line 1 of"),
    "one answer less": ({"answers": ["Lima"]}, " lacks the answer 'x' of line 1 of"),
    "no answers": ({"answers": None}, " lacks the answer 'Lima' of line 1 of"),
    "counted": ({"answers": None, "answer_index": 2}, ": the answer 'Cusco' is none in line 1 of"),
    "choices": ({"choices": ["x", "Lima", "Cusco"]}, ": choices is ['x', 'Lima', 'Cusco'], and ["),
    "no choices": ({"choices": None}, ": choices is none, and ['Lima', 'x', 'Cusco'] in line 1 of"),
    "relation": ({"relation": "P17"}, ": relation is 'P17', and 'P36' in line 1 of"),
    "question": ({"question": "Peru?!"}, ": question is 'Peru?!', and 'Peru?' in line 1 of"),
    "no question": ({"question": " "}, ": question is none, and 'Peru?' in line 1 of"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_rows_of_a_question_that_disagree_are_both_named(tmp_path, name):
    change, named = DISAGREEING[name]
    sentence = error_of(load_rows, tmp_path, {}, {"id": "other"}, change)
    assert sentence.startswith(f"line 3 of {tmp_path / 't.jsonl'}{named}"), sentence
    assert "rows of one question must agree" in sentence


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"paraphrase": " "}, "line 2 of {path}: paraphrase is empty"),
        ({"paraphrase": 7}, "line 2 of {path}: paraphrase must be a text"),
        ({"answers": ["a", ""]}, "line 2 of {path}: answers[1] is empty"),
        ({"answers": "['a' 'b']"}, "line 2 of {path}: answers looks like a list but is not JSON"),
        ({"choices": ["Lima"]}, "line 2 of {path}: choices is ['Lima'], and"),
    ],
)
def test_a_damaged_cell_is_told_with_its_own_row(tmp_path, change, named):
    sentence = error_of(load_rows, tmp_path, {}, change)
    assert named.format(path=tmp_path / "t.jsonl") in sentence


def test_without_answers_or_with_some(tmp_path):
    (record,) = load_rows(tmp_path, {"answers": None}, {"answers": []}).records
    assert record.answers == () and record.paraphrases == ("w0", "w1")
    sentence = error_of(load_rows, tmp_path, {}, {"id": "r", "answers": None})
    assert sentence.startswith(f"line 2 of {tmp_path / 't.jsonl'} (uuid r) has no answers")


def test_a_group_of_one_is_told_of_where_more_are_asked_for(tmp_path, capsys):
    records = load_rows(tmp_path, {}, {"id": "r"}, {}).records
    sentence = error_of(select_paraphrases, records, num_paraphrases=2, indexs=None)
    assert f"line 2 of {tmp_path / 't.jsonl'} (uuid r) has 1" in sentence
    used = select_paraphrases(records, num_paraphrases=2, indexs=None, fewer="use")
    assert [len(record.paraphrases) for record in used] == [2, 1]
    assert capsys.readouterr().err == ""


def test_what_may_not_be_meant_is_told(tmp_path, capsys):
    load_rows(tmp_path, {}, {"id": "r"}, {"id": "s"})
    told = capsys.readouterr().err
    assert "no two rows have the same id: each is a question of one wording" in told
    records = load_rows(tmp_path, {}, {"id": "r"}, {"paraphrase": "w0"}).records
    assert records[0].paraphrases == ("w0", "w0")  # as a list has it
    path = tmp_path / "t.jsonl"
    told = capsys.readouterr().err
    assert f"1 question has a wording more than once, such as line 3 of {path} and line 1" in told


# ---- columns and rows that are named ------------------------------------------------------------


def test_named_columns_without_groups(tmp_path):
    rows = [{"prompt": "Peru?", "gold text": "Lima", "answer": "wrong", "n": 1}]
    rows += [{"prompt": ["a", "b"], "gold text": ["x"], "answer": "wrong", "n": 2}]
    path = str(write(tmp_path / "t.jsonl", rows))
    named = {"paraphrase_column": "prompt", "answer_column": "gold text"}
    records = load_dataset(path, **named).records
    assert [(r.paraphrases, r.answers) for r in records] == [
        (("Peru?",), ("Lima",)),
        (("a", "b"), ("x",)),
    ]
    assert load_dataset(path, where={"n": "2"}, **named).records == records[1:]
    blank = [row | {"gold text": None, "prompt": "x"} for row in rows[:1]]
    (record,) = load_dataset(str(write(tmp_path / "u.jsonl", blank)), **named).records
    assert record.answers == ()  # not those of the column that has the usual name
    rows[1]["prompt"] = None
    sentence = error_of(load_dataset, str(write(tmp_path / "t.jsonl", rows)), **named)
    assert sentence.startswith(f"line 2 of {path}: prompt must be a list of texts, found None")


MISTAKES = {
    "group_by": ({"group_by": "qid"}, "--group_by: {path} has no column 'qid'; its columns are id"),
    "paraphrase_column": (
        {"group_by": "id", "paraphrase_column": "prompt"},
        "--paraphrase_column: {path} has no column 'prompt'",
    ),
    "answer_column": ({"answer_column": "gold"}, "--answer_column: {path} has no column 'gold'"),
    "where": ({"where": {"kind": "a"}}, "--where: {path} has no column 'kind'"),
    "number": ({"where": {"id": 2}}, "where: 'id' takes a text or a list of texts, found 2; write"),
    "numbers": ({"where": {"id": [True]}}, "where: 'id' takes a text or a list of texts, found"),
    "value": ({"where": {"id": ["q", "z"]}}, "--where: no row of {path} has id=z; its values"),
    "at once": (
        {"where": {"id": "q", "paraphrase": "w1"}},
        "--where: no row of {path} has id=q and paraphrase=w1 at once",
    ),
    "itself": (
        {"group_by": "id", "paraphrase_column": "id"},
        "--group_by id: the same column has the wordings",
    ),
    "answers": ({"group_by": "answers"}, "--group_by answers: questions of one answer are"),
    "twice": (
        {"paraphrase_column": "paraphrase", "answer_column": "paraphrase"},
        "--paraphrase_column and --answer_column are both paraphrase",
    ),
    "named answers": (
        {"group_by": "relation", "answer_column": "relation"},
        "--group_by relation: questions of one answer are",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(tmp_path, name):
    how, named = MISTAKES[name]
    rows = [ROW | {"paraphrase": "w0"}, ROW | {"id": "r", "paraphrase": "w1"}]
    path = write(tmp_path / "t.jsonl", rows)
    sentence = error_of(load_dataset, str(path), **how)
    assert sentence.startswith(named.format(path=path)), sentence


@pytest.mark.parametrize("name", ["paraphrases", "auto_paraphrases", "paraphrase0"])
def test_a_table_with_a_row_a_question_is_not_gathered(tmp_path, name):
    """Its question alone would be asked, and its other wordings left out in silence."""
    value = "a" if name == "paraphrase0" else ["a", "b"]
    path = write(tmp_path / "t.jsonl", [{"id": 1, "question": "q", name: value}])
    sentence = error_of(load_dataset, str(path), group_by="id")
    assert f"{path} has several wordings a row, in {name}: leave --group_by out" in sentence
    named = load_dataset(str(path), group_by="id", paraphrase_column="question")
    assert named.records[0].paraphrases == ("q",)


def test_where_no_column_has_wordings(tmp_path):
    path = write(tmp_path / "t.csv", [{"id": 1, "prompt": "a"}])
    sentence = error_of(load_dataset, str(path), group_by="id")
    assert "has no column paraphrase or question" in sentence
    assert "--paraphrase_column names it, of id, prompt" in sentence
    path = write(tmp_path / "u.csv", [{"question": "a", "possible_answers": "b"}])
    assert "--answer_column possible_answers reads it" in error_of(load_dataset, str(path))


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        (
            "demo",
            {"group_by": "uuid"},
            "--group_by belongs to --dataset FILE and ORGANISATION/NAME",
        ),
        ("demo", {"where": [("a", "b")]}, "--where belongs to --dataset FILE and"),
        ("webqa", {"answer_column": "a"}, "--answer_column belongs to --dataset FILE and"),
        ("demo", {"split": "test"}, "--split belongs to --dataset ORGANISATION/NAME"),
        ("a/b.csv", {"split": "test"}, "--split belongs to --dataset ORGANISATION/NAME; a/b.csv"),
        ("a.csv", {"dataset_revision": "v1"}, "webqa, myriadlama and ORGANISATION/NAME; a.csv"),
        ("org/name", {"data_dir": "d"}, "--data_dir belongs to --dataset webqa, myriadlama and"),
    ],
)
def test_options_of_other_datasets(name, options, named):
    assert named in error_of(open_dataset, name, DatasetOptions(**options))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("ibm-research/PopQA_robustness", True),
        ("org/name-v1.5", True),
        ("org/wiki.en", True),
        ("org/name.csv", False),
        ("org/name.JSONL", False),
        ("data/q.tsv", False),
        ("name", False),
        ("a/b/c", False),
        ("./a", False),
        ("../a", False),
        ("/a/b", False),
        ("a/", False),
        ("a b/c", False),
    ],
)
def test_hub_ids(name, is_one):
    assert is_hub_id(name) is is_one


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("['a', \"it's\"]", ["a", "it's"]),
        (r"['\n\\ \'\x41é\u00e9']", ["\n\\ 'Aéé"]),
        ("[]", []),
        ('["a", "b"]', ["a", "b"]),
        ("['a' 'b']", None),  # Python joins them; NumPy means two
        ("['a'\n 'b']", None),
        ("['a', None]", None),
        ("['a', ['b']]", None),
        ("[f'a']", None),
        ("['a'", None),
        (r"['\d']", None),
        (r"['\U99999999']", None),
        ("[" * 100_000, None),
        ("['a', " * 20_000 + "]", None),
    ],
)
def test_lists_as_python_prints_them(text, meant):
    if meant is None:
        with pytest.raises(ValueError):
            parsed_list(text)
    else:
        assert parsed_list(text) == meant


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=4))
def test_every_list_that_python_prints_is_read(texts):
    assert parsed_list(str(texts)) == texts


# ---- whatever stands there ----------------------------------------------------------------------

cells = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([1.0, 0.5, float("nan"), float("inf"), 2.0**60]),
    st.sampled_from(["", " ", "a", "b", "a ", "1", "True", "[", "[]", "['a']", '["a"]', "[MASK]"]),
    st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", ""])), max_size=3),
    st.dictionaries(st.sampled_from(["text", "label"]), st.none(), max_size=1),
)
names = ("id", "question", "paraphrase", "answers", "answer", "choices", "answer_index", "rel")
tables = st.lists(st.dictionaries(st.sampled_from(names), cells), min_size=1, max_size=5)
named = st.one_of(st.none(), st.sampled_from(names))
pairs = st.lists(st.tuples(st.sampled_from(names), st.sampled_from(["a", "1", ""])), max_size=2)


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tables, named, named, named, pairs)
def test_whatever_stands_there_is_questions_or_one_sentence(table, by, wording, answers, where):
    how = Columns(group_by=by, paraphrase_column=wording, answer_column=answers, where=tuple(where))
    try:
        records = records_from(table, how)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return
    assert len({record.uuid for record in records}) == len(records) >= 1
    for record in records:
        assert all(text.strip() for text in (*record.paraphrases, *record.answers))
    if by is not None:
        assert sum(len(record.paraphrases) for record in records) <= len(table)


def test_a_file_of_a_row_a_wording_that_a_spreadsheet_saved(tmp_path):
    """Ids with leading zeros and cells NA are texts: nothing is taken for a number or a gap."""
    path = tmp_path / "t.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "question", "answer"], ["01", "NA", "NA"], ["01", "null", "NA"]])
    (record,) = load_dataset(str(path), group_by="id").records
    assert record == Record("01", ("NA", "null"), ("NA",))


SEVERAL = {
    "list": "['a', 'b']",
    "json": '["a", "b"]',
    "nothing": "[]",
    "tuple": "('a', 'b')",
    "tuple of one": "('a',)",
    "set": "{'a', \"it's\"}",
    "mapping": "{'text': array(['a', 'b'], dtype=object), 'answer_start': [3]}",
}


@pytest.mark.parametrize("text", SEVERAL.values(), ids=SEVERAL.keys())
@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_several_texts_that_are_written_into_one_are_no_wording(tmp_path, suffix, text):
    """The model would be asked a printed list."""
    row = {"id": "q", "paraphrase": text, "answers": ["x"]}
    path = str(write(tmp_path / f"t{suffix}", [row]))
    said = f"paraphrase must be a single text, found several written into one: {text!r:.20}"
    assert said in error_of(load_dataset, path, group_by="id")
    for column in ("question", "paraphrase0"):
        path = str(write(tmp_path / f"s{suffix}", [{column: text, "answers": ["x"]}]))
        said = f"{column} must be a single text, found several written into one"
        assert said in error_of(load_dataset, path)


@pytest.mark.parametrize("name", ["tuple", "tuple of one", "set", "mapping"])
def test_several_texts_that_are_written_into_one_are_no_answer(tmp_path, name):
    """Nothing that is generated would be equal to them."""
    rows = [{"question": "q", "answers": SEVERAL[name]}]
    path = str(write(tmp_path / "t.csv", rows))
    said = "answers must be a single text, found several written into one"
    assert said in error_of(load_dataset, path)
    path = str(write(tmp_path / "t.jsonl", [{"question": "q", "answers": [SEVERAL[name]]}]))
    assert load_dataset(path).records[0].answers == (SEVERAL[name],)  # a list says it is meant


@pytest.mark.parametrize(
    "text", ["(a, b)", "{x: 1}", "[a]", "[1, 2]", "(1, 2)", "('a')", "('a', b)"]
)
def test_brackets_alone_are_texts(tmp_path, text):
    row = {"id": "q", "paraphrase": text, "answers": ["x"]}
    path = str(write(tmp_path / "t.jsonl", [row]))
    assert load_dataset(path, group_by="id").records[0].paraphrases == (text,)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_table_of_other_separators(tmp_path, separator):
    path = tmp_path / "t.csv"
    lines = [separator.join(cells) for cells in (("id", "question"), ("7", "One, two?"))]
    path.write_text("\r\n".join(lines), encoding="utf-8-sig")
    sentence = error_of(load_dataset, str(path), group_by="id")
    assert sentence.startswith(f"the header of {path} has no comma: 'id")
