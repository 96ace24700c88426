"""ParaRel: its questions and demonstrations from both layouts, and what is refused.

What users of LAMA's and ParaRel's files reported is tested where it touches us: facts listed twice
(facebookresearch/LAMA issue 44), several right objects of which one is told (issue 39), relations
that lack one of the two files (issue 26), and a relation of one pattern (yanaiela/pararel issue 3).
"""

import re
import shutil

import pytest
from pararel import FACTS, NUM_QUESTIONS, TEMPLATES, write_clone, write_tables
from writing import error_of, write

from self_ensemble.data import DatasetOptions, load_dataset, open_dataset, select_paraphrases
from self_ensemble.data.cloze import INSTRUCTION
from self_ensemble.data.datasets.pararel import ParaRelDataset, choose_examples

PATTERNS, VOCABULARY = "data/pattern_data/graphs_json", "data/trex_lms_vocab"


@pytest.fixture
def clone(tmp_path):
    return write_clone(tmp_path / "pararel")


@pytest.fixture
def loaded(clone):
    return ParaRelDataset(clone).load()


def by_subject(dataset, relation, subject):
    wording = TEMPLATES[relation][0].replace("[X]", subject).replace("[Y]", "[MASK]")
    return next(each for each in dataset.records if each.question == wording)


def test_a_question_has_the_wordings_of_its_relation_in_the_published_order(loaded):
    kept = next(r for r in loaded.records if r.relation == "P36")
    subject = re.search(r"Land \d+", kept.question)[0]
    assert kept.paraphrases == (
        f"The capital of {subject} is [MASK] .",
        f"[MASK] is the capital of {subject}.",
        f"{subject}'s capital is [MASK].",
        f"[MASK], the capital of {subject}.",
        f"The capital city of {subject} is [MASK].",
    )
    assert kept.question == kept.paraphrases[0]
    assert kept.answers == (subject.replace("Land", "City"),)
    assert loaded.name == "pararel" and loaded.instruction == INSTRUCTION


def test_white_space_of_patterns_says_nothing(loaded):
    assert by_subject(loaded, "P279", "bebop").paraphrases == (
        "bebop is a subclass of [MASK].",
        "bebop, a type of [MASK].",
        "[MASK] kind bebop",
    )


def test_all_objects_of_a_subject_are_right_and_a_fact_listed_twice_is_one_question(loaded):
    jazz = by_subject(loaded, "P279", "jazz")
    assert jazz.answers == ("music", "art") and jazz.place.startswith("line 1 of ")
    assert len(loaded.records) + len(loaded.few_shot) == NUM_QUESTIONS
    assert len({record.uuid for record in loaded.records}) == len(loaded.records)


def test_both_layouts_and_every_format_are_the_same(clone, loaded, tmp_path):
    assert ParaRelDataset(clone / "data").load() == loaded
    for suffix in (".parquet", ".csv", ".jsonl", ".feather"):
        tables = write_tables(tmp_path / suffix, suffix)
        assert ParaRelDataset(tables).load() == loaded, suffix


def test_uuid_and_order_depend_on_relation_and_subject_alone(clone, loaded):
    """Neither on the order of rows, nor on the other relations, nor on the objects."""
    path = clone / VOCABULARY / "P36.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert ParaRelDataset(clone).load() == loaded
    assert by_subject(loaded, "P279", "jazz").uuid == "P279-cae91b3ab8a3ac7"
    (clone / VOCABULARY / "P1376.jsonl").unlink()
    fewer = [record.uuid for record in ParaRelDataset(clone).load().records]
    both = [record.uuid for record in loaded.records if record.uuid in fewer]
    assert [uuid for uuid in fewer if uuid in both] == both and len(both) > 20
    relations = [record.relation for record in loaded.records]
    assert relations != sorted(relations)  # the first ones are a sample of all


def test_demonstrations_are_no_questions_and_state_none_of_what_is_asked(clone, loaded):
    """Whether they are needed or not, the same questions are asked."""
    asked = {wording for record in loaded.records for wording in record.paraphrases}
    assert len(loaded.few_shot) == NUM_QUESTIONS // 10
    for shot in loaded.few_shot:
        assert shot.question not in asked
        # Of P36 and P1376, the lands 0 to 19 are asked the other way round.
        number = int(re.search(r"Land (\d+)", shot.question)[1])
        assert number >= 20 and shot.answer == f"City {number}", shot
    without = ParaRelDataset(clone).load(needs_few_shot=False)
    assert without.few_shot == () and without.records == loaded.records


def test_demonstrations_are_of_one_object_that_the_subject_does_not_tell(clone):
    rows = [{"sub_label": f"City {i}", "obj_label": "City"} for i in range(20)]
    rows += [{"sub_label": f"Land {i}", "obj_label": o} for i in range(20) for o in "ab"]
    write(clone / VOCABULARY / "P36.jsonl", rows)
    (clone / VOCABULARY / "P1376.jsonl").unlink()
    assert [shot.question for shot in ParaRelDataset(clone).load().few_shot] == [
        "bebop is a subclass of [MASK]."
    ]
    assert choose_examples([]) == []


def test_relations_without_templates_or_facts_are_left_out_and_told(clone, capsys):
    relations = {record.relation for record in ParaRelDataset(clone).load().records}
    assert relations == {"P36", "P1376", "P279"}
    assert capsys.readouterr().err.splitlines() == [
        "pararel: no templates for P31: 2 questions are left out",
        "pararel: no facts for P5",
    ]
    for path in (clone / PATTERNS).glob("P*.jsonl"):
        if path.stem != "P5":
            path.unlink()
    assert "no relation has facts and templates" in error_of(ParaRelDataset(clone).load)


def test_a_relation_of_fewer_templates_is_a_question_of_fewer_paraphrases(loaded, clone):
    def asked(fewer):
        return select_paraphrases(loaded.records, num_paraphrases=3, indexs=None, fewer=fewer)

    sentence = error_of(asked, "error")
    assert "P1376.jsonl (uuid P1376-" in sentence and "has 1" in sentence
    assert {record.relation for record in asked("skip")} == {"P36", "P279"}
    assert {len(r.paraphrases) for r in asked("use") if r.relation == "P1376"} == {1}
    few = open_dataset("pararel", DatasetOptions(data_dir=clone, max_samples=7))
    assert few == ParaRelDataset(clone).load(max_samples=7)
    assert few.records == loaded.records[:7] and few.fingerprint == loaded.fingerprint


def test_a_subject_with_a_slot_in_its_name_stays_as_it_is(clone):
    write(clone / VOCABULARY / "P1376.jsonl", [{"sub_label": "[Y] [X]", "obj_label": "o"}])
    [record] = [r for r in ParaRelDataset(clone).load().records if r.relation == "P1376"]
    assert record.paraphrases == ("[Y] [X] is the capital of [MASK].",)


@pytest.mark.parametrize(
    ("path", "content", "named"),
    [
        (f"{PATTERNS}/P36.jsonl", '{"pattern": "[X] is."}\n', ["line 1 of", "P36.jsonl", "[Y]"]),
        (f"{PATTERNS}/P36.jsonl", '{"pattern": "[Y] [MASK]."}\n', ["line 1 of", "no [X]"]),
        (
            f"{PATTERNS}/P36.jsonl",
            '{"pattern": "[X] is [Y]."}\n{"pattern": "[X] [Y] [Y]."}\n',
            ["line 2 of", "P36.jsonl", "[Y] more than once"],
        ),
        (f"{PATTERNS}/P36.jsonl", '{"template": "[X] is [Y]."}\n', ["P36.jsonl", "pattern"]),
        (f"{PATTERNS}/P36.jsonl", '{"pattern": ["[X] is [Y]."]}\n', ["line 1", "must be a text"]),
        (f"{PATTERNS}/P36.jsonl", '{"pattern": "[X] is', ["line 1 of", "P36.jsonl", "not JSON"]),
        (f"{PATTERNS}/P36.jsonl", "", ["P36.jsonl", "is empty"]),
        (f"{PATTERNS}/P36 (1).jsonl", "{}", ["P36 (1).jsonl", "after no relation"]),
        (f"{VOCABULARY}/P36.jsonl", '{"sub_label": "a"}\n', ["P36.jsonl", "obj_label"]),
        (
            f"{VOCABULARY}/P36.jsonl",
            '{"sub_label": "a", "obj_label": "b"}\n{"sub_label": "a", "obj_label": " "}\n',
            ["line 2 of", "P36.jsonl", "obj_label is empty"],
        ),
        (f"{VOCABULARY}/P36.jsonl", "version https://git-lfs", ["line 1 of", "not JSON"]),
        ("pararel_facts.csv", "relation,sub_label,obj_label\n", ["holds both", "trex_lms_vocab"]),
        ("data/data.csv", None, ["no templates of ParaRel", "git", PATTERNS, "pararel_templates"]),
        ("pattern_data/graphs_json/P1.jsonl", "", ["holds both", PATTERNS]),
    ],
)
def test_what_is_refused(clone, path, content, named):
    if content is None:
        shutil.rmtree(clone / "data")
    else:
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_text(content)
    sentence = error_of(ParaRelDataset(clone).load)
    for part in named:
        assert part in sentence, sentence


def test_tables_are_refused_by_row(tmp_path):
    tables = write_tables(tmp_path, ".csv")
    text = (tables / "pararel_facts.csv").read_text()
    (tables / "pararel_facts.csv").write_text(text.replace("P36,Land 3,", ",Land 3,"))
    sentence = error_of(ParaRelDataset(tables).load)
    assert sentence == f"line 5 of {tables}/pararel_facts.csv: relation is empty"
    write(tables / "pararel_templates.csv", [{"pattern": "[X] [Y]"}])
    assert "pararel_templates.csv has none of the columns relation" in error_of(
        ParaRelDataset(tables).load
    )


def test_without_a_folder_it_says_where_to_get_one(tmp_path):
    sentence = error_of(load_dataset, "pararel")
    assert "git clone https://github.com/yanaiela/pararel" in sentence and "--data_dir" in sentence
    assert "there is no folder" in error_of(ParaRelDataset(tmp_path / "no").load)
    assert len(FACTS["P36"]) == 25
