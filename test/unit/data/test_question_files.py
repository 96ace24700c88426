"""The records, prompts and error sentences of dataset.py, on small files made here."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from writing import error_of, write

from self_ensemble.data import (
    FewShot,
    Record,
    load_dataset,
    load_few_shot,
)
from self_ensemble.data.names import DEFAULT_INSTRUCTION
from self_ensemble.data.registry import dataset_names
from self_ensemble.data.tables import TABLE_SUFFIXES
from self_ensemble.system.bundled import DEMO_FEW_SHOT, DEMO_QUESTIONS

ROOT = Path(__file__).parents[3]

# The schema of a table of facts: one list of paraphrases, a relation, columns we do not use.
FACTS = [
    {
        "uuid": f"fact-{i}",
        "relation": "P36",
        "subject": land,
        "answers": answers,
        "paraphrases": [
            f"What is the capital of {land}? [MASK].",
            f"[MASK] is {land}’s capital.",
            f"{land}, “governed” from [MASK].",
        ],
    }
    for i, (land, answers) in enumerate(
        [("Peru", ["Lima"]), ("Côte d’Ivoire", ["Yamoussoukro", "NA"]), ("日本", ["東京", "Tokyo"])]
    )
]
# The schema of MyriadLAMA: manual and automatic paraphrases apart.
MYRIAD = [
    {
        "uuid": "5d-15",
        "rel": "P449",
        "answers": ["NBC", "National Broadcasting Company"],
        "manual_paraphrases": ["It was aired on [MASK].", "[MASK] aired it."],
        "auto_paraphrases": ["The launch was on [MASK].", "It hit [MASK]."],
        "sub_ent": "It",
        "n_manual_observed": 2,
    }
]
# The schema of WebQuestions: one wording.
WEBQ = [
    {"url": "http://a/b", "question": "who rules peru?", "answers": ["Nobody", "Somebody"]},
    {"url": "http://a/c", "question": "where is lima?", "answers": ["Peru"]},
]


def load(path, max_samples=None):
    return load_dataset(str(path), max_samples=max_samples)


def load_rows(tmp_path, *rows):
    return load(write(tmp_path / "own.jsonl", rows)).records


# Good files


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
@pytest.mark.parametrize("rows", [FACTS, MYRIAD, WEBQ], ids=["facts", "myriadlama", "webquestions"])
def test_every_format_gives_the_same_plain_records(tmp_path, rows, suffix):
    loaded = load(write(tmp_path / f"own{suffix}", rows))
    expected = [
        Record(
            uuid=row.get("uuid", record.uuid),
            paraphrases=tuple(
                row.get("paraphrases")
                or row.get("manual_paraphrases", []) + row.get("auto_paraphrases", [])
                or [row["question"]]
            ),
            answers=tuple(row["answers"]),
            question=row.get("question"),
            relation=row.get("relation") or row.get("rel"),
        )
        for row, record in zip(rows, loaded.records, strict=True)
    ]
    assert loaded.records == expected
    for record in loaded.records:
        texts = [record.uuid, *record.paraphrases, *record.answers]
        assert {type(text) for text in texts} == {str}
        assert type(record.paraphrases) is type(record.answers) is tuple
    in_jsonl = load(write(tmp_path / "again.jsonl", rows))
    assert loaded.fingerprint == in_jsonl.fingerprint
    assert (loaded.name, loaded.few_shot, loaded.instruction) == ("own", (), DEFAULT_INSTRUCTION)


PARAPHRASE_CASES = {
    "list": ({"paraphrases": ["a", "b"]}, ("a", "b")),
    "list beside the question": ({"question": "q", "paraphrases": ["a"]}, ("a",)),
    "list before all others": (
        {"paraphrases": ["a"], "manual_paraphrases": ["m"], "paraphrase0": "n", "question": "q"},
        ("a",),
    ),
    "manual first": ({"auto_paraphrases": ["x"], "manual_paraphrases": ["m"]}, ("m", "x")),
    "manual only": ({"manual_paraphrases": ["m"], "auto_paraphrases": []}, ("m",)),
    "auto only": ({"manual_paraphrases": None, "auto_paraphrases": ["x"]}, ("x",)),
    "numbered, by number": (
        {f"paraphrase{i}": f"p{i}" for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)},
        tuple(f"p{i}" for i in range(11)),
    ),
    "numbered, the last cells empty": (
        {"paraphrase0": "a", "paraphrase1": "b", "paraphrase2": " ", "paraphrase3": None},
        ("a", "b"),
    ),
    "numbered beside the question": ({"question": "q", "paraphrase0": "a"}, ("a",)),
    "question": ({"question": "q?"}, ("q?",)),
    "blanks are kept": ({"paraphrases": [" a  b "]}, (" a  b ",)),
    "json": ({"paraphrases": '["a", "[MASK] b"]'}, ("a", "[MASK] b")),
}


@pytest.mark.parametrize("row, expected", PARAPHRASE_CASES.values(), ids=PARAPHRASE_CASES)
def test_paraphrases(tmp_path, row, expected):
    [record] = load_rows(tmp_path, {"answers": ["x"], **row})
    assert record.paraphrases == expected
    assert record.question == row.get("question")


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"answers": ["a", "b"]}, ("a", "b")),
        ({"answers": "a"}, ("a",)),
        ({"answers": "a, b"}, ("a, b",)),
        ({"answers": '["a, b", "c"]'}, ("a, b", "c")),
        ({"answer": "a"}, ("a",)),
        ({"answer": ["a", "b"]}, ("a", "b")),
        ({"answers": None, "answer": "a"}, ("a",)),
        ({"answers": "[sic"}, ("[sic",)),
    ],
)
def test_answers(tmp_path, row, expected):
    [record] = load_rows(tmp_path, {"question": "q", **row})
    assert record.answers == expected


@pytest.mark.parametrize("text", ["NA", "null", "nan", "007", "1e3", "True", "-"])
def test_csv_texts_are_taken_as_they_stand(tmp_path, text):
    path = tmp_path / "own.csv"
    path.write_text(f"answers,question\n{text},{text}?\n")
    [record] = load(path).records
    assert (record.answers, record.paraphrases) == ((text,), (f"{text}?",))


def test_csv_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / "own.csv"
    path.write_bytes(
        "\ufeffquestion,answer,\r\n"
        '"two\r\nlines?",a,0\r\n'
        "\r\n"
        '"commas, and ""quotes""?",b,1\r\n'.encode()
    )
    records = load(path).records
    assert [r.paraphrases for r in records] == [("two\r\nlines?",), ('commas, and "quotes"?',)]


def test_jsonl_is_split_at_line_feeds_only(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a\xe2\x80\xa8b", "answer": "c"}\r\n\n')
    assert load(path).records[0].paraphrases == ("a\u2028b",)


def test_columns_of_other_types_and_folders_like_partitions_do_not_matter(tmp_path):
    folder = tmp_path / "answers=3"
    folder.mkdir()
    table = pa.Table.from_pylist(WEBQ).append_column("when", pa.array([1, 2], pa.timestamp("ns")))
    table = table.set_column(1, "question", table["question"].dictionary_encode())
    pa.parquet.write_table(table, folder / "own.parquet")
    assert [r.question for r in load(folder / "own.parquet").records] == [
        row["question"] for row in WEBQ
    ]


def test_uuids_are_made_of_the_content(tmp_path):
    rows = [
        {"question": "q", "answer": "a", "paraphrases": ["x"]},
        {"paraphrases": ["x", "y"], "answer": "a"},
        {"paraphrases": ["x", "y"], "answer": "b"},
        {"paraphrases": ["x", "y"], "answer": "b", "uuid": 7},
    ]
    uuids = [record.uuid for record in load_rows(tmp_path, *rows)]
    assert len(set(uuids)) == 4 and uuids[3] == "7"
    assert uuids == [record.uuid for record in load_rows(tmp_path, *rows)]
    # A question's is its own, whatever else changes.
    [record] = load_rows(tmp_path, {"question": "q", "answer": "other"})
    assert record.uuid == uuids[0] == hashlib.sha256(b"q").hexdigest()[:32]


def test_max_samples_keeps_the_first_and_the_fingerprint(tmp_path):
    path = write(tmp_path / "own.parquet", FACTS)
    whole, two, many = load(path), load(path, 2), load(path, 99)
    assert two.records == whole.records[:2] and many.records == whole.records
    assert two.fingerprint == many.fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": "other"},
        {"answers": ["Lima", "lima"]},
        {"paraphrases": FACTS[0]["paraphrases"][::-1]},
        {"relation": "P17"},
        {"question": "q"},
    ],
)
def test_fingerprint_sees_every_field(tmp_path, change):
    before = load(write(tmp_path / "a.jsonl", FACTS)).fingerprint
    rows = [FACTS[0] | change, *FACTS[1:]]
    assert load(write(tmp_path / "a.jsonl", rows)).fingerprint != before
    assert load(write(tmp_path / "a.jsonl", FACTS[::-1])).fingerprint != before


def test_demo():
    demo, questions = load("demo", 1), load(DEMO_QUESTIONS)
    assert (demo.name, demo.records) == ("demo", questions.records[:1])
    assert demo.fingerprint == questions.fingerprint
    assert demo.few_shot == load_few_shot(DEMO_FEW_SHOT) and demo.few_shot
    assert demo.instruction != questions.instruction


# Bad files: what the sentence must name

GOOD = {"question": "q", "answer": "a"}
BAD_ROWS = {
    "no answers": ({"question": "q", "answer": None}, ["line 2", "no answers"]),
    "blank answer": ({"question": "q", "answer": " "}, ["line 2", "no answers"]),
    "empty answers": ({"question": "q", "answers": []}, ["line 2", "no answers"]),
    "one empty answer": (GOOD | {"answers": ["a", ""]}, ["line 2", "answers[1]", "empty"]),
    "null answer": (GOOD | {"answers": ["a", None]}, ["line 2", "answers[1]", "empty"]),
    "number for answers": (GOOD | {"answers": 1969}, ["line 2", "answers", "1969"]),
    "number in answers": (GOOD | {"answers": [1969]}, ["line 2", "answers[0]", "1969"]),
    "numpy array": (GOOD | {"answers": "['a' 'b']"}, ["line 2", "not JSON", "['a' 'b']"]),
    "object for answers": (GOOD | {"answers": {"a": 1}}, ["line 2", "answers", "{'a': 1}"]),
    "number for paraphrases": (GOOD | {"paraphrases": 3}, ["line 2", "paraphrases", "3"]),
    "text for paraphrases": (GOOD | {"paraphrases": "one"}, ["line 2", "paraphrases", "'one'"]),
    "empty paraphrase": (GOOD | {"paraphrases": ["a", " "]}, ["line 2", "paraphrases[1]"]),
    "list in paraphrases": (GOOD | {"paraphrases": [["a"]]}, ["line 2", "paraphrases[0]", "['a']"]),
    "truth value": (GOOD | {"manual_paraphrases": [True]}, ["manual_paraphrases[0]", "True"]),
    "gap in numbered": (
        GOOD | {"paraphrase0": "", "paraphrase1": "b"},
        ["line 2", "paraphrase0", "empty"],
    ),
    "number in numbered": (GOOD | {"paraphrase0": 5}, ["line 2", "paraphrase0", "5"]),
    "number for question": ({"question": 5, "answer": "a"}, ["line 2", "question", "5"]),
    "nothing to ask": ({"question": "", "answer": "a"}, ["line 2", "no paraphrases"]),
    "truth value for uuid": (GOOD | {"uuid": True}, ["line 2", "uuid", "True"]),
    "half a character": (GOOD | {"paraphrases": ["\ud83d"]}, ["line 2", "paraphrases[0]", "ud83d"]),
    "same question": ({"question": "first", "answer": "b"}, ["line 2", "'first'", "line 1"]),
    "same uuid": (GOOD | {"uuid": "one"}, ["line 2", "uuid one", "line 1"]),
}


@pytest.mark.parametrize("row, named", BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row(tmp_path, row, named):
    path = tmp_path / "own.jsonl"
    first = {"question": "first", "answer": "a"}
    if row.get("uuid") == "one":
        first["uuid"] = "one"
    path.write_text(json.dumps(first) + "\n" + json.dumps(row) + "\n")
    sentence = error_of(load, path)
    for part in [*named, str(path)]:
        assert part in sentence, sentence


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_bad_row_is_named_with_its_place_and_uuid(tmp_path, suffix):
    rows = [*FACTS[:2], FACTS[2] | {"answers": []}]
    sentence = error_of(load, write(tmp_path / f"own{suffix}", rows))
    place = {".csv": "line 4", ".jsonl": "line 3"}.get(suffix, "row 3")
    assert sentence.startswith(f"{place} of {tmp_path}/own{suffix} (uuid fact-2) has no answers")


def test_csv_rows_are_named_by_the_line_where_they_start(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text('question,answer\n"a\nb",x\n\n"c\nd",\n')
    assert error_of(load, path).startswith("line 5 of")


BAD_FILES = {
    "empty.parquet": (b"", ["is empty"]),
    "text.parquet": (b"question,answer\n", ["parquet"]),
    "text.feather": (b"question,answer\n", ["feather"]),
    "blank.jsonl": (b"\n \n", ["no rows"]),
    "header.csv": (b"question,answer\n", ["no rows"]),
    "comma.jsonl": (b'{"question": "q", "answer": "a"}\n{"question" "q"}\n', ["line 2", "JSON"]),
    "list.jsonl": (b'{"question": "q", "answer": "a"}\n["q"]\n', ["line 2", "object", "['q']"]),
    "deep.jsonl": (b"[" * 200_000, ["line 1", "JSON"]),
    "number.jsonl": (b'{"uuid": ' + b"9" * 5000 + b"}", ["line 1", "JSON"]),
    "latin.jsonl": (b'{"question": "q", "answer": "a"}\n{"question": "\xe9"}', ["line 2", "UTF-8"]),
    "latin.csv": (b"question,answer\na,b\n\xe9,c\n", ["line 3", "UTF-8"]),
    "quote.csv": (b'question,answer\na,b\n"c,d\n', ["line 3", "CSV"]),
    "cells.csv": (b"question,answer\na,b\nc,d,e\n", ["line 3", "3 cells"]),
    "doubled.csv": (b"question,answer,answer\na,b,c\n", ["two columns", "'answer'"]),
    "other.csv": (b"query,reply\na,b\n", ["question", "query, reply", "rename query to question"]),
    "nothing.csv": (b"query,answer\na,b\n", ["paraphrases", "question", "query, answer"]),
    "gap.csv": (b"answer,paraphrase0,paraphrase2\na,b,c\n", ["paraphrase2", "no paraphrase1"]),
    "from1.csv": (b"answer,paraphrase1,paraphrase2\na,b,c\n", ["paraphrase1", "no paraphrase0"]),
    "table.xlsx": (b"PK", ["'.xlsx'", ".parquet, .feather, .jsonl, .csv"]),
    "table": (b"x", [".parquet, .feather, .jsonl, .csv"]),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file(tmp_path, name):
    content, named = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    sentence = error_of(load, path)
    for part in [*named, str(path)]:
        assert part in sentence, sentence


def test_missing_files_and_folders(tmp_path):
    assert error_of(load, tmp_path / "no.csv") == f"there is no file {tmp_path}/no.csv"
    assert "folder" in error_of(load, tmp_path)
    (tmp_path / "a.csv").mkdir()
    assert "folder" in error_of(load, tmp_path / "a.csv")
    assert "no file" in error_of(load, tmp_path / ("long" * 65 + ".csv"))


@pytest.mark.parametrize(
    "name, shown", [("web_qa", "'web_qa'"), ("Demo", "'Demo'"), ("x" * 300, f"'{'x' * 56}...")]
)
def test_unknown_name_lists_what_there_is(name, shown):
    sentence = error_of(load, name)
    assert sentence.startswith(f"unknown dataset {shown}: there is {', '.join(dataset_names())}, ")
    assert ".parquet" in sentence


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_cut_table(tmp_path, suffix):
    path = write(tmp_path / f"own{suffix}", FACTS)
    whole = path.read_bytes()
    for length in (1, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert str(path) in error_of(load, path)


@pytest.mark.parametrize("suffix", [".parquet", ".feather"])
def test_table_that_is_not_utf8(tmp_path, suffix):
    texts = pa.array([b"good", b"caf\xe9"]).view(pa.binary())
    offsets = texts.buffers()[1:]
    broken = pa.Array.from_buffers(pa.utf8(), 2, [None, *offsets])
    table = pa.table({"question": ["a", "b"], "answer": broken})
    path = tmp_path / f"own{suffix}"
    writer = pa.parquet.write_table if suffix == ".parquet" else pa.feather.write_feather
    writer(table, path)
    assert error_of(load, path) == f"row 2 of {path}: answer is not valid UTF-8"


def test_damaged_feather_is_no_crash(tmp_path):
    # Offsets that point outside the text: reading them unchecked ends the interpreter.
    path = tmp_path / "own.feather"
    table = pa.table({"question": ["a", "b"], "answer": ["c", "d" * 30]})
    pa.feather.write_feather(table, path, compression="uncompressed")
    offsets = b"".join(i.to_bytes(4, "little") for i in (0, 1, 31))
    content = path.read_bytes()
    assert content.count(offsets) == 1
    far = b"".join(i.to_bytes(4, "little") for i in (0, 1, 2**31 - 1))
    path.write_bytes(content.replace(offsets, far))
    assert "answer is damaged" in error_of(load, path)


# Few-shot examples and prompts


def test_few_shot(tmp_path):
    rows = [
        {"question": "q0", "answer": "a0"},
        {"paraphrases": ["q1", "x"], "answer": "a1"},
        {"question": "q2", "answers": ["a2", "x"]},
        {"question": "q3", "paraphrases": ["x"], "answer": "a3", "answers": ["x"]},
    ]
    shots = load_few_shot(write(tmp_path / "shots.jsonl", rows))
    assert shots == tuple(FewShot(f"q{i}", f"a{i}") for i in range(4))


@pytest.mark.parametrize(
    "row, named",
    [
        ({"question": "q"}, ["answers", "its columns are question"]),
        ({"answer": "a"}, ["question, paraphrases", "its columns are answer"]),
        ({"question": "q", "answer": None}, ["line 1", "no answers"]),
        ({"question": "q", "answer": 3}, ["line 1", "answer", "3"]),
        ({"paraphrases": [], "answer": "a"}, ["line 1", "paraphrases", "empty"]),
        ({"question": None, "answer": "a"}, ["line 1"]),
    ],
)
def test_bad_few_shot(tmp_path, row, named):
    sentence = error_of(load_few_shot, write(tmp_path / "shots.jsonl", [row]))
    for part in [*named, "shots.jsonl"]:
        assert part in sentence, sentence
