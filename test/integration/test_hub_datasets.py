"""WebQuestions and MyriadLAMA: the same records from every source, and what is refused."""

import errno
import random
import shlex
import sys
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pytest
from small import run_script
from writing import error_of, write

import flex_attention_generate
import generate
import paraphrase
from self_ensemble.data import (
    DatasetOptions,
    FewShot,
    hub_tables,
    load_dataset,
    open_dataset,
    prompt_template,
    select_paraphrases,
)
from self_ensemble.data.cloze import INSTRUCTION as MYRIADLAMA_INSTRUCTION
from self_ensemble.data.cloze import fill
from self_ensemble.data.datasets import myriadlama as myriadlama_module
from self_ensemble.data.datasets.myriadlama import Draw, Fact, MyriadLamaDataset
from self_ensemble.data.datasets.webqa import INSTRUCTION as WEBQA_INSTRUCTION
from self_ensemble.data.datasets.webqa import WebQADataset
from self_ensemble.data.hub_tables import draw_examples
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.paraphrasing import candidates
from self_ensemble.paraphrasing.rejections import Rejection

TEST = [
    {"url": "http://a/b", "question": "who rules peru?", "answers": ["Nobody", "Somebody"]},
    {"url": "http://a/c", "question": "where is lima?", "answers": ["Peru"]},
    {"url": "http://a/d", "question": "what is “é”?", "answers": ["a \\/ b"]},
]
TRAIN = [
    {"url": f"http://t/{i}", "question": f"what is {i}?", "answers": [f"{i}", "other"]}
    for i in range(30)
]

MANUAL = ["[X] is in [Y].", "[Y] holds [X]!", "Where is [X]? [Y]."]
AUTO = [f"{word} [Y] one finds [X]." for word in ("In", "Inside", "Within", "Around")]
NUM_TEST = 12
COMMAND = "python paraphrase.py --dataset webqa --model"


def fact_rows(count=30):
    """A row a template, as the hub has it; the columns that are not used too."""
    return [
        {
            "uuid": f"{number * 7919 % 1000:03d}-{number:03d}",
            "rel_uri": f"P{number % 3}",
            "sub_ent": f"Côte {number}",
            "sub_uri": "Q1",
            "obj_aliases": [f"land {number}", "x"],
            "template": template,
            "is_manual": template in MANUAL,
        }
        for number in range(count)
        for template in [*MANUAL, *AUTO]
    ]


SAMPLE = [
    {
        "uuid": f"5d-{number}",
        "rel": "P36",
        "answers": [f"city {number}", "x"],
        "manual_paraphrases": [f"m{i} {number} [MASK]." for i in range(5)],
        "auto_paraphrases": [f"a{i} {number} [MASK]." for i in range(5 + number % 3)],
        "sub_ent": str(number),
        "n_manual_observed": 5,
    }
    for number in range(6)
]


@pytest.fixture
def webqa(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    write(folder / "web_questions_test.parquet", TEST)
    write(folder / "web_questions_train.parquet", TRAIN)
    return folder


@pytest.fixture
def myriadlama(tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    write(folder / "myriadlama_sample.parquet", SAMPLE)
    shots = [{"paraphrases": [f"q{i} [MASK].", "other"], "answer": f"a{i}"} for i in range(6)]
    write(folder / "myriadlama_fewshot_examples.jsonl", shots)
    return folder


@pytest.fixture
def few_test_facts(monkeypatch):
    monkeypatch.setattr(myriadlama_module, "NUM_TEST_FACTS", NUM_TEST)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """`data/` and `results/` of the tests lie below a folder of their own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def paraphrased(records, count=3):
    return [
        {
            "uuid": record.uuid,
            "question": record.question,
            "paraphrases": [f"{record.question} ({i})" for i in range(count)],
        }
        for record in records
    ]


def write_paraphrases(here, rows, model="tiny"):
    path = here / "data" / "webqa" / model / "paraphrases.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, rows)


# WebQuestions


def test_webqa_has_the_questions_in_order_and_examples_from_train(webqa, tmp_path):
    loaded = WebQADataset(data_dir=webqa).load()
    own = load_dataset(str(write(tmp_path / "own.jsonl", TEST)), max_samples=None)
    # The records of a user's own file with the same columns: the same uuids.
    assert loaded.records == own.records and loaded.fingerprint == own.fingerprint
    assert [record.question for record in loaded.records] == [row["question"] for row in TEST]
    assert loaded.name == "webqa" and loaded.instruction == WEBQA_INSTRUCTION
    drawn = random.Random(42).sample(range(30), 30)
    assert loaded.few_shot == tuple(FewShot(f"what is {i}?", str(i)) for i in drawn)


@pytest.mark.parametrize("count", [1_776, 3_778, 22_643])
def test_five_examples_are_those_of_a_draw_of_five(count):
    assert draw_examples(count)[:5] == random.Random(42).sample(range(count), 5)
    assert len(set(draw_examples(count))) == 64


def test_examples_of_the_published_prompts():
    """Which of MyriadLAMA's 22,643 training facts the published prompts show."""
    assert draw_examples(22_643)[:5] == [20952, 3648, 819, 9012, 8024]


@pytest.mark.parametrize(
    "test, train",
    [
        ("test.parquet", "train.jsonl"),
        ("web_questions_test.csv", "web_questions_train.feather"),
        ("data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"),
    ],
)
def test_webqa_from_other_files(webqa, tmp_path, test, train):
    folder = tmp_path / "other"
    (folder / "data").mkdir(parents=True)
    write(folder / test, TEST)
    write(folder / train, TRAIN)
    assert WebQADataset(data_dir=folder).load() == WebQADataset(data_dir=webqa).load()


def test_parts_are_joined_in_order_and_a_missing_one_is_told(tmp_path, webqa):
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "train.jsonl", TRAIN)
    write(folder / "test-00001-of-00002.parquet", TEST[2:])
    assert "1 of the 2 parts of test.parquet" in error_of(WebQADataset(data_dir=folder).load)
    write(folder / "test-00000-of-00002.parquet", TEST[:2])
    assert WebQADataset(data_dir=folder).load() == WebQADataset(data_dir=webqa).load()


def test_folders_that_do_not_do(tmp_path, webqa):
    def sentence(folder, **settings):
        return error_of(WebQADataset(data_dir=folder).load, **settings)

    assert sentence(tmp_path / "no") == f"--data_dir: there is no folder {tmp_path}/no"
    (webqa / "web_questions_train.parquet").unlink()
    assert WebQADataset(data_dir=webqa).load(needs_few_shot=False).few_shot == ()
    assert all(flag in sentence(webqa) for flag in ("--few_shot FILE", "--num_few_shot 0"))
    write(webqa / "test.csv", TEST)
    told = sentence(webqa)
    assert "web_questions_test.parquet and test.csv" in told and str(webqa) in told
    for path in webqa.iterdir():
        path.unlink()
    assert "web_questions_test or test (.parquet, " in sentence(webqa)


def test_paraphrases_of_a_model(webqa, here):
    questions = WebQADataset(data_dir=webqa).load()
    write_paraphrases(here, paraphrased(questions.records)[::-1])
    source = WebQADataset(data_dir=webqa, paraphrase_model="tiny", run_model="tiny")
    loaded = source.load()
    for record, before in zip(loaded.records, questions.records, strict=True):
        texts = tuple(f"{before.question} ({i})" for i in range(3))
        assert record == replace(before, paraphrases=texts)
    assert loaded.name == "webqa" and loaded.fingerprint != questions.fingerprint
    assert replace(source, run_model="org/larger").load().name == "webqa-tiny"
    assert source.load(max_samples=1).fingerprint == loaded.fingerprint

    write_paraphrases(here, paraphrased(questions.records)[:2], model="org--name")
    partial = WebQADataset(data_dir=webqa, paraphrase_model="org/name", run_model="tiny")
    assert partial.name == "webqa-org--name"
    assert partial.load(max_samples=2).records == loaded.records[:2]
    sentence = error_of(partial.load)
    assert "lacks 1 of 3 questions" in sentence and "'what is “é”?'" in sentence
    assert f"anew with: {COMMAND} org/name --data_dir {webqa} --overwrite" in sentence


def test_no_paraphrases_yet(webqa, here):
    sentence = error_of(WebQADataset(data_dir=webqa, paraphrase_model="tiny").load)
    assert "data/webqa/tiny/paraphrases.jsonl" in sentence
    assert sentence.endswith(f"run: {COMMAND} tiny --data_dir {webqa}")


def test_the_command_for_more_paraphrases_works(webqa, here, capsys, monkeypatch):
    """Questions of which all was dropped, and such that were not asked yet, by the file's flags."""
    monkeypatch.setattr(candidates, "rejections", lambda text, **_: (Rejection("empty"),))
    source = WebQADataset(data_dir=webqa, paraphrase_model="demo")
    given = ["--dataset", "webqa", "--data_dir", webqa, "--num_paraphrases", 1, "--seed", 2]
    given += ["--max_new_tokens", 2, "--drop", "--max_attempts", 1, "--max_samples", 1]
    assert run_script(paraphrase, *given) == 1
    assert "with --overwrite and a larger --max_attempts, such as 2" in capsys.readouterr().err

    def given_command(sentence):
        return shlex.split(sentence.partition(" with: python paraphrase.py ")[2])

    sentence = error_of(source.load, max_samples=1)
    assert "no paraphrase left of 1 of 1 questions: 'who rules peru?' (--fewer" in sentence
    argv = given_command(sentence)
    assert argv[-5:] == ["--max_attempts", "2", "--max_samples", "1", "--overwrite"]
    monkeypatch.setattr(candidates, "rejections", lambda text, **_: ())
    assert run_script(paraphrase, *argv) == 0
    identity = read_manifest(here / "data/webqa/demo/paraphrases")["identity"]
    assert identity["max_attempts"] == 2 and identity["sampling"]["seed"] == 2
    loaded = source.load(max_samples=1)

    sentence = error_of(source.load)
    assert "lacks 2 of 3 questions: 'where is lima?', 'what is “é”?' (--fewer skip" in sentence
    argv = given_command(sentence)
    assert "--overwrite" not in argv and run_script(paraphrase, *argv) == 0
    assert source.load(max_samples=1).records == loaded.records
    assert all(len(record.paraphrases) == 1 for record in source.load().records)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"question": "who rules chile?"}, ["line 2", "'who rules chile?'"]),
        ({"uuid": "0" * 32}, ["line 2", "does not ask"]),
        ({"uuid": None}, ["line 2", "does not ask"]),
        ({"question": None}, ["line 2", "question is empty"]),
        ({"paraphrases": ["a", ""]}, ["line 2", "paraphrases[1] is empty"]),
        (
            {"paraphrases": []},
            ["left of 1 of 3 questions: 'where is lima?' (--fewer skip leaves them out); add"],
        ),
        ({"paraphrases": None}, ["line 2", "must be a list"]),
        ("doubled", ["line 2", "has the uuid"]),
    ],
)
def test_paraphrase_files_that_do_not_do(webqa, here, change, named):
    rows = paraphrased(WebQADataset(data_dir=webqa).load().records)
    rows[1] = rows[0] if change == "doubled" else rows[1] | change
    path = write_paraphrases(here, rows)
    sentence = error_of(WebQADataset(data_dir=webqa, paraphrase_model="tiny").load)
    for part in [*named, str(path.relative_to(here))]:
        assert part in sentence, sentence


# MyriadLAMA: which facts


def facts_as_the_authors_group_them(rows):
    """Grouping and split in the words of pandas and of `datasets`: the oracle."""
    datasets = pytest.importorskip("datasets")
    import pandas as pd

    groups = [
        {"uuid": uuid, "rows": list(group.index)}
        for uuid, group in pd.DataFrame(rows).groupby("uuid")
    ]
    split = datasets.Dataset.from_list(groups)
    split = split.train_test_split(test_size=NUM_TEST, seed=42, shuffle=True)
    return [[[rows[i] for i in g["rows"]] for g in split[name]] for name in ("test", "train")]


def texts_of(rows, is_manual):
    return tuple(
        row["template"].replace("[X]", row["sub_ent"]).replace("[Y]", "[MASK]")
        for row in rows
        if row["is_manual"] == is_manual
    )


def test_split_is_that_of_the_authors(tmp_path, few_test_facts):
    rows = fact_rows()
    write(tmp_path / "train.parquet", rows)
    test, train = facts_as_the_authors_group_them(rows)
    loaded = MyriadLamaDataset(data_dir=tmp_path, draw=Draw(3, 4, 42)).load()
    assert len(test) == len(loaded.records) == NUM_TEST
    for record, group in zip(loaded.records, test, strict=True):
        first = group[0]
        assert (record.uuid, record.relation) == (first["uuid"], first["rel_uri"])
        assert record.answers == tuple(first["obj_aliases"])
        wordings = {*texts_of(group, True), *texts_of(group, False)}
        assert set(record.paraphrases) == wordings and len(record.paraphrases) == 7
        assert record.question == texts_of(group, True)[0]
    shown = random.Random(42).sample(range(len(train)), len(train))
    assert loaded.few_shot == tuple(
        FewShot(texts_of(train[i], True)[0], train[i][0]["obj_aliases"][0]) for i in shown
    )
    assert loaded.instruction == MYRIADLAMA_INSTRUCTION


@pytest.mark.parametrize(
    "names",
    [
        ("train.feather",),
        ("train.jsonl",),
        ("myriadlama.csv",),
        ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"),
    ],
)
def test_facts_from_other_files_in_any_order(tmp_path, few_test_facts, names):
    rows = fact_rows()
    draw = Draw(2, 2, 42)
    (tmp_path / "a").mkdir()
    write(tmp_path / "a" / "train.parquet", rows)
    expected = MyriadLamaDataset(data_dir=tmp_path / "a", draw=draw).load()
    # The first manual template of a fact stands for it: among its rows, that one stays first.
    random.Random(1).shuffle(rows)
    rows.sort(key=lambda row: row["template"] != MANUAL[0])
    (tmp_path / "b" / "data").mkdir(parents=True)
    size = len(rows) // len(names)
    for number, name in enumerate(names):
        write(tmp_path / "b" / name, rows[number * size : (number + 1) * size])
    assert MyriadLamaDataset(data_dir=tmp_path / "b", draw=draw).load() == expected


def test_fill():
    assert fill("[X] is in [Y], [X]!", "Lima [Y]", "") == "Lima [Y] is in [MASK], Lima [Y]!"


def changed(**cells):
    """One test fact with other cells in its first row."""
    rows = fact_rows()
    for row in rows:
        if row["template"] == MANUAL[0]:
            row.update(cells)
    return rows


@pytest.mark.parametrize(
    "rows, named",
    [
        (changed(template="[X] is."), ["fact ", "'[X] is.' has no [Y]"]),
        (changed(template="It is in [Y]."), ["fact ", "has no [X]"]),
        (changed(sub_ent=" "), ["fact ", "sub_ent is empty"]),
        (changed(obj_aliases=[]), ["fact ", "obj_aliases is an empty list"]),
        (changed(obj_aliases=None), ["fact ", "obj_aliases must be a list"]),
        (changed(is_manual=None), ["fact ", "is_manual is empty"]),
        (changed(uuid=None), ["without a uuid"]),
        (fact_rows(NUM_TEST), ["has 12 facts", "more than 12"]),
        ([{**row, "is_manual": [1]} for row in fact_rows()], ["not MyriadLAMA's table"]),
        ([{k: row[k] for k in row if k != "sub_ent"} for row in fact_rows()], ["sub_ent"]),
    ],
)
def test_fact_tables_that_do_not_do(tmp_path, few_test_facts, rows, named):
    write(tmp_path / "train.parquet", rows)
    sentence = error_of(MyriadLamaDataset(data_dir=tmp_path, draw=Draw(1, 1, 42)).load)
    for part in [*named, str(tmp_path)]:
        assert part in sentence, sentence


def test_the_whole_table_is_wanted(tmp_path):
    write(tmp_path / "train.parquet", fact_rows())
    assert "more than 2000" in error_of(MyriadLamaDataset(data_dir=tmp_path).load)


def test_sample_form(myriadlama):
    loaded = MyriadLamaDataset(data_dir=myriadlama).load()
    for record, row in zip(loaded.records, SAMPLE, strict=True):
        assert (record.uuid, record.relation) == (row["uuid"], "P36")
        assert record.answers == tuple(row["answers"])
        assert len(record.paraphrases) == 10 == len(set(record.paraphrases))
        assert set(row["manual_paraphrases"]) < set(record.paraphrases)
        assert record.question == row["manual_paraphrases"][0]
    assert loaded.few_shot[1] == FewShot("q1 [MASK].", "a1") and len(loaded.few_shot) == 6
    for text in ("test", "train"):
        write(myriadlama / f"{text}.jsonl", SAMPLE)
    (myriadlama / "myriadlama_sample.parquet").unlink()
    (myriadlama / "myriadlama_fewshot_examples.jsonl").unlink()
    again = MyriadLamaDataset(data_dir=myriadlama).load()
    assert again.records == loaded.records
    shown = random.Random(42).sample(range(6), 6)
    assert again.few_shot == tuple(FewShot(f"m0 {i} [MASK].", f"city {i}") for i in shown)


def test_sample_without_examples(myriadlama):
    (myriadlama / "myriadlama_fewshot_examples.jsonl").unlink()
    sentence = error_of(MyriadLamaDataset(data_dir=myriadlama).load)
    assert all(flag in sentence for flag in ("--few_shot FILE", "--num_few_shot 0"))
    assert MyriadLamaDataset(data_dir=myriadlama).load(needs_few_shot=False).few_shot == ()


def test_sample_in_which_a_question_has_nothing_to_ask(myriadlama):
    rows = [*SAMPLE[:1], SAMPLE[1] | {"manual_paraphrases": [], "auto_paraphrases": []}]
    write(myriadlama / "myriadlama_sample.parquet", rows)
    assert "row 2" in error_of(MyriadLamaDataset(data_dir=myriadlama).load)


def test_prompt_is_that_of_the_published_predictions(myriadlama):
    few_shot = MyriadLamaDataset(data_dir=myriadlama).load().few_shot[:2]
    assert prompt_template(MYRIADLAMA_INSTRUCTION, few_shot).render("x [MASK].") == (
        "Based on the context, predict the [MASK] in the sentence in one word.\n\n"
        "Q: q0 [MASK].\nA: a0\n\nQ: q1 [MASK].\nA: a1\n\nQ: x [MASK].\nA:"
    )


# MyriadLAMA: which paraphrases

FACT = Fact(
    "5d-15",
    "P36",
    ("a",),
    tuple(f"m{i}" for i in range(5)),
    tuple(f"a{i}" for i in range(95)),
)

PINNED = ("a88", "m1", "a5", "m3", "a91", "a25", "m2", "a24", "m0", "m4")


def test_a_draw_is_pinned():
    """Other draws would be other questions: nobody changes them unknowingly."""
    assert FACT.drawn(Draw(5, 5, 42)) == PINNED
    assert FACT.drawn(Draw(5, 5, 43)) != PINNED
    assert replace(FACT, uuid="5d-16").drawn(Draw(5, 5, 42)) != PINNED


@pytest.mark.parametrize("num_manual, num_auto", [(5, 5), (0, 15), (5, 0), (1, 2), (3, 95)])
def test_a_draw_depends_on_no_order_and_holds_what_was_asked_for(num_manual, num_auto):
    drawn = FACT.drawn(Draw(num_manual, num_auto, 7))
    assert Counter(text[0] for text in drawn) == Counter(m=num_manual, a=num_auto)
    assert len(set(drawn)) == len(drawn)
    turned = replace(FACT, manual=FACT.manual[::-1], auto=FACT.auto[::-1])
    assert turned.drawn(Draw(num_manual, num_auto, 7)) == drawn
    fewer = FACT.drawn(Draw(num_manual // 2, num_auto // 2, 7))
    assert set(fewer) <= set(drawn)


def test_every_paraphrase_is_as_likely_to_be_drawn_and_to_come_first():
    facts = [replace(FACT, uuid=f"u{i}", auto=FACT.auto[:10]) for i in range(4000)]
    drawn = [fact.drawn(Draw(5, 5, 42)) for fact in facts]
    # Five deviations around what a fair draw gives.
    first = Counter(texts[0][0] for texts in drawn)
    assert abs(first["m"] - 2000) < 5 * 1000**0.5
    for text, share in (("m3", 1 / 10), ("a9", 1 / 2 / 10)):
        count = sum(texts[0] == text for texts in drawn)
        assert abs(count - 4000 * share) < 5 * (4000 * share) ** 0.5
    assert abs(sum("a9" in texts for texts in drawn) - 2000) < 5 * 1000**0.5


def test_too_few_to_draw():
    fact = replace(FACT, auto=FACT.auto[:2])
    sentence = error_of(fact.drawn, Draw(5, 3, 42))
    assert sentence.startswith("--num_auto 3: question 5d-15 has 2 such paraphrases; ask for fewer")
    assert "--fewer use" in sentence and "--fewer skip" in sentence
    assert "--num_manual 6" in error_of(fact.drawn, Draw(6, 2, 42))
    taken = fact.drawn(Draw(5, 3, 42), fewer="use")
    assert Counter(text[0] for text in taken) == Counter(m=5, a=2)
    assert fact.drawn(Draw(5, 3, 42), fewer="skip") == ()
    for fewer in ("use", "skip"):
        assert fact.drawn(Draw(5, 2, 42), fewer=fewer) == fact.drawn(Draw(5, 2, 42))
    nothing = replace(fact, manual=(), auto=(), place="line 3 of test.jsonl")
    assert nothing.record(Draw(5, 3, 42), fewer="use").paraphrases == ()
    assert "line 3 of test.jsonl (uuid 5d-15) has 0 such" in error_of(nothing.drawn, Draw(5, 3, 42))
    assert nothing.record(None).question is None and nothing.record(None).paraphrases == ()


def test_questions_that_a_file_of_paraphrases_lacks_or_has_none_of(webqa, here):
    """One such question must not refuse all the others."""
    questions = WebQADataset(data_dir=webqa).load().records
    rows = paraphrased(questions)
    rows[1]["paraphrases"] = []
    write_paraphrases(here, rows[:2])
    source = WebQADataset(data_dir=webqa, paraphrase_model="tiny", run_model="tiny")
    sentence = error_of(source.load)
    assert "lacks 1 of 3 questions" in sentence and "(--fewer skip leaves them out)" in sentence
    path = "data/webqa/tiny/paraphrases.jsonl"
    for fewer in ("use", "skip"):
        options = DatasetOptions(data_dir=webqa, model="tiny", fewer=fewer)
        dataset = open_dataset("webqa", options)
        assert [len(r.paraphrases) for r in dataset.records] == [3, 0, 0]
        assert dataset.records[1].place == f"line 2 of {path}"
        left = select_paraphrases(dataset.records, num_paraphrases=3, indexs=None, fewer=fewer)
        assert left == dataset.records[:1]
    sentence = error_of(select_paraphrases, dataset.records[:1], num_paraphrases=4, indexs=None)
    assert f"4 paraphrases were asked for, but line 1 of {path} (uuid " in sentence
    (here / path).unlink()
    assert "there are no paraphrases" in error_of(open_dataset, "webqa", options)


@pytest.mark.parametrize(
    "num_manual, num_auto, num_paraphrases, indexs, named",
    [
        (2, 1, 4, None, "--num_samples 4 is too many: --num_manual 2 and --num_auto 1 draw 3"),
        (2, 1, 1, (0, 3), "--indexs asks for paraphrase 3"),
        (2, 1, 3, None, None),
        (2, 1, 5, (2, 0), None),
    ],
)
def test_more_than_is_drawn(num_manual, num_auto, num_paraphrases, indexs, named):
    check = Draw(num_manual, num_auto, 42).check
    if named is None:
        check(num_paraphrases, indexs)
    else:
        assert named in error_of(check, num_paraphrases, indexs)


def test_a_wording_counts_once_and_as_manual(myriadlama):
    rows = [SAMPLE[0] | {"manual_paraphrases": ["m", "n", "m"], "auto_paraphrases": ["a", "m"]}]
    write(myriadlama / "myriadlama_sample.parquet", rows)
    [record] = MyriadLamaDataset(data_dir=myriadlama, draw=Draw(2, 1)).load().records
    assert sorted(record.paraphrases) == ["a", "m", "n"]
    assert "--num_auto 2" in error_of(MyriadLamaDataset(data_dir=myriadlama, draw=Draw(0, 2)).load)


def test_names_tell_draws_apart():
    draws = [Draw(), Draw(5, 0), Draw(5, 5, 1), Draw(0, 15, 0), None]
    names = [MyriadLamaDataset(draw=draw).name for draw in draws]
    assert names == [
        "myriadlama",
        "myriadlama-m5a0",
        "myriadlama-seed1",
        "myriadlama-m0a15-seed0",
        "myriadlama",
    ]


# The hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """What `datasets.load_dataset` gives, without a network; it notes what was asked for."""
    datasets = pytest.importorskip("datasets")
    asked = []
    tables = {
        "stanfordnlp/web_questions": {"train": TRAIN, "test": TEST},
        "iszhaoxin/MyriadLAMA": {"train": fact_rows()},
    }

    def load(repository, *, revision):
        asked.append((repository, revision))
        splits = tables[repository]
        loaded = datasets.DatasetDict()
        for name in splits:  # where the library keeps a commit's tables
            path = tmp_path / "cache" / repository / answers.commit / f"{name}.arrow"
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pylist(splits[name])
            with pa.ipc.new_stream(str(path), table.schema) as writer:
                writer.write(table)
            loaded[name] = datasets.Dataset.from_file(str(path))
        return loaded

    answers = SimpleNamespace(asked=asked, tables=tables, commit="c0ffee")
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_tables, "commit_of", lambda repository, revision: "c0ffee")
    return answers


def test_hub_and_folder_give_the_same(hub, webqa, tmp_path, few_test_facts):
    assert WebQADataset(revision="v1").load() == WebQADataset(data_dir=webqa).load()
    (tmp_path / "facts").mkdir()
    write(tmp_path / "facts" / "train.parquet", fact_rows())
    draw = Draw(3, 2, 1)
    from_folder = MyriadLamaDataset(data_dir=tmp_path / "facts", draw=draw).load(max_samples=5)
    assert MyriadLamaDataset(draw=draw).load(max_samples=5) == from_folder
    assert len(from_folder.records) == 5
    assert hub.asked == [("stanfordnlp/web_questions", "v1"), ("iszhaoxin/MyriadLAMA", None)]


def test_a_copy_of_another_revision_is_not_taken(hub):
    assert WebQADataset(revision="v1").load().records
    hub.commit = "bad1dea"
    sentence = error_of(WebQADataset(revision="v1").load)
    assert "the cache holds bad1dea as the latest, but v1 is c0ffee" in sentence


def test_hub_tables_that_do_not_do(hub, few_test_facts):
    hub.tables["stanfordnlp/web_questions"] = {"train": TRAIN}
    assert "has no split test; it has train" in error_of(WebQADataset().load)
    hub.tables["stanfordnlp/web_questions"] = {"test": [TEST[0] | {"answers": []}]}
    sentence = error_of(WebQADataset().load)
    assert sentence.startswith("row 1 of stanfordnlp/web_questions (test) has no answers")
    hub.tables["iszhaoxin/MyriadLAMA"] = {"train": [{"uuid": "a", "template": "[X] [Y]"}]}
    sentence = error_of(MyriadLamaDataset().load)
    assert sentence.startswith("iszhaoxin/MyriadLAMA (train) has none of the columns rel_uri")


def hub_errors():
    """What is raised, as the libraries of this environment do it, and what must be said of it.

    Most of it is looked through by hub_errors.py, and tested there.
    """
    pytest.importorskip("datasets")
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

    full = OSError(errno.ENOSPC, "No space left on device")
    generating = DatasetGenerationError("An error occurred")
    generating.__cause__ = full
    return {
        "gated": (
            DatasetNotFoundError("Dataset 'o/n' is a gated dataset on the Hub. You must be …"),
            ["o/n is behind a licence gate", "/datasets/o/n", "--data_dir"],
        ),
        "not found": (
            DatasetNotFoundError("Dataset 'o/n' doesn't exist on the Hub or cannot be accessed."),
            ["not found", "o/n", "--data_dir"],
        ),
        "revision": (
            DatasetNotFoundError("Revision 'v9' doesn't exist for dataset 'o/n' on the Hub."),
            ["o/n has no revision 'v9' (--dataset_revision)"],
        ),
        "no connection": (
            ConnectionError("Couldn't reach 'o/n' on the Hub (ConnectError)"),
            ["HF_HUB_OFFLINE", "--data_dir"],
        ),
        "full disk": (generating, ["it is full", "HF_HOME"]),
        "full disk, as text": (
            OSError(f"Cannot find data file. \nOriginal error:\n{full}"),
            ["it is full", "HF_HOME"],
        ),
        "too full to begin": (
            OSError("Not enough disk space. Needed: 3 GiB (download: 1 GiB, generated: 2 GiB"),
            ["it is full", "HF_HOME"],
        ),
        "code": (
            RuntimeError("Dataset scripts are no longer supported, but found n.py"),
            ["cannot read o/n from the hub", "scripts are no longer supported, but found n.py"],
        ),
        "no words": (KeyError(), ["KeyError"]),
    }


def test_errors_of_the_hub_are_one_sentence(monkeypatch):
    datasets = pytest.importorskip("datasets")
    for case, (error, named) in hub_errors().items():

        def load(repository, *, revision, error=error):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load)
        sentence = error_of(hub_tables.fetch, "o/n", "v9")
        for part in named:
            assert part in sentence, (case, sentence)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    sentence = error_of(WebQADataset().load)
    assert "pip install datasets" in sentence and "--data_dir" in sentence


# The command line


@pytest.fixture
def run(small, here, capsys):
    """Runs a script on few tokens; what is given comes behind. -> exit status, stderr."""

    def run(script, *argv):
        capsys.readouterr()
        fixed = ("--model", small.folder, "--max_new_tokens", 2, "--num_few_shot", 1)
        code = run_script(script, *fixed, *argv)
        return code, capsys.readouterr().err

    return run


def asked_in(folder, name):
    """The wordings that a result's questions were asked in."""
    table = read_results(folder / "results" / f"{name}.feather")
    return [tuple(paraphrases) for paraphrases in table["paraphrases"]]


def test_webqa_from_the_command_line(run, here, webqa):
    webqa_args = ("--dataset", "webqa", "--data_dir", webqa)
    code, err = run(generate, *webqa_args, "--method", "origin")
    assert code == 0, err
    assert asked_in(here, "webqa/tiny-llama/origin-1") == [(row["question"],) for row in TEST]

    code, err = run(flex_attention_generate, *webqa_args)
    assert code == 2 and "run: python paraphrase.py --dataset webqa --model /" in err
    rows = paraphrased(WebQADataset(data_dir=webqa).load().records)
    write_paraphrases(here, rows, model="tiny-llama")
    code, err = run(generate, *webqa_args)
    assert code == 2 and err.startswith("error: 5 paraphrases were asked for, but line 1 of ")
    for script in (generate, flex_attention_generate):
        code, err = run(script, *webqa_args, "--num_paraphrases", 3)
        assert code == 0, err
    expected = [tuple(row["paraphrases"]) for row in rows]
    assert asked_in(here, "webqa/tiny-llama/avg-3") == expected
    code, err = run(generate, *webqa_args, "--num_paraphrases", 3, "--lemmaize")
    assert code == 0, err
    table = read_results(here / "results/webqa/tiny-llama/avg-3.feather")
    assert table["answer_lemmas"][1] == [["peru"]]
    head = read_manifest(here / "results/webqa/tiny-llama/avg-3")["identity"]["prompt"]["head"]
    number = random.Random(42).sample(range(30), 1)[0]
    assert head == f"{WEBQA_INSTRUCTION}\n\nQ: what is {number}?\nA: {number}\n\nQ: "

    weighted = ("--method", "weighted_avg", "--num_paraphrases", 3, "--confidence", "trust")
    code, err = run(generate, *webqa_args, *weighted)
    assert code == 2 and "--confidence: webqa has no such column" in err

    write_paraphrases(here, rows, model="org--other")
    other = ("--paraphrase_model", "org/other", "--indexs", "2,0", "--max_samples", 2)
    code, err = run(generate, *webqa_args, *other)
    assert code == 0, err
    assert asked_in(here, "webqa-org--other/tiny-llama/diversity/avg-2_0") == [
        (row["paraphrases"][2], row["paraphrases"][0]) for row in rows[:2]
    ]


def test_myriadlama_from_the_command_line(run, here, myriadlama):
    args = ("--dataset", "myriadlama", "--data_dir", myriadlama)
    drawn = [record.paraphrases for record in MyriadLamaDataset(data_dir=myriadlama).load().records]
    for script in (generate, flex_attention_generate):
        code, err = run(script, *args)
        assert code == 0, err
    assert asked_in(here, "myriadlama/tiny-llama/avg-5") == [texts[:5] for texts in drawn]
    code, err = run(generate, *args, "--lemmaize")
    assert code == 0, err
    table = read_results(here / "results/myriadlama/tiny-llama/avg-5.feather")
    assert table["relation"].tolist() == ["P36"] * 6 and "predict_lemma" in table

    code, err = run(generate, *args, "--method", "origin")
    assert code == 0, err
    origin = [(row["manual_paraphrases"][0],) for row in SAMPLE]
    assert asked_in(here, "myriadlama/tiny-llama/origin-1") == origin
    # Which draw others would make is nothing to it.
    identity = read_manifest(here / "results/myriadlama/tiny-llama/origin-1")["identity"]
    assert identity["data"] == MyriadLamaDataset(data_dir=myriadlama, draw=None).load().fingerprint

    (myriadlama / "myriadlama_fewshot_examples.jsonl").rename(here / "shots.jsonl")
    for few_shot in (("--few_shot", here / "shots.jsonl"), ("--num_few_shot", 0)):
        code, err = run(generate, *args, *few_shot, "--output_dir", here / few_shot[0][2:])
        assert code == 0, err
    (here / "shots.jsonl").rename(myriadlama / "myriadlama_fewshot_examples.jsonl")

    code, err = run(generate, *args, "--num_auto", 0, "--num_samples", 2, "--seed", 7)
    assert code == 0, err
    [*asked] = asked_in(here, "myriadlama-m5a0-seed7/tiny-llama/avg-2")
    assert all(text.startswith("m") for texts in asked for text in texts)
    code, err = run(generate, *args, "--num_auto", 0, "--num_manual", 3)
    assert code == 2 and "--num_samples 5 is too many: --num_manual 3 and --num_auto 0" in err


@pytest.mark.parametrize(
    "argv, named",
    [
        (("--seed", 1), ["--seed belongs to --dataset myriadlama", "demo"]),
        (("--num_auto", 1, "--dataset", "webqa"), ["--num_auto belongs", "webqa does not"]),
        (("--data_dir", "x"), ["--data_dir belongs to --dataset webqa, myriadlama and pararel"]),
        (("--paraphrase_model", "x", "--dataset", "myriadlama"), ["--paraphrase_model belongs"]),
        (("--dataset_revision", "x", "--dataset", "own.csv"), ["--dataset_revision belongs"]),
        (
            ("--dataset", "webqa", "--data_dir", "x", "--dataset_revision", "y"),
            ["--dataset_revision", "one state"],
        ),
        (("--dataset", "myriadlama", "--num_manual", 0, "--num_auto", 0), ["nothing to ask"]),
        (
            ("--dataset", "myriadlama", "--method", "origin", "--num_manual", 1),
            ["--num_manual", "origin"],
        ),
        (
            ("--dataset", "webqa", "--method", "origin", "--paraphrase_model", "x"),
            ["--paraphrase_model", "origin"],
        ),
    ],
)
def test_flags_that_do_not_go_together(run, argv, named):
    code, err = run(generate, *argv)
    assert code == 2
    for part in named:
        assert part in err, err
