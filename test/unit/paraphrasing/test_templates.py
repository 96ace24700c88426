"""Paraphrases from templates: those that ParaRel's own loader makes, and errors of one sentence."""

import json

import pytest
from small import run_script, write_jsonl

import paraphrase
from self_ensemble.data.datasets.pararel import ParaRelDataset
from self_ensemble.experiment.config import TemplateConfig

TEMPLATES = [
    {"relation": "P36", "pattern": "The capital of [X] is  [Y]. "},
    {"relation": "P36", "pattern": "[Y] governs [X]."},
    {"relation": "P19", "pattern": "[X] was born in [Y]."},
    {"relation": "P36", "pattern": "The capital of [X] is [Y]."},  # once more
]
FACTS = [
    {"relation": "P36", "sub_label": "Peru", "obj_label": "Lima"},
    {"relation": "P19", "sub_label": "Ada [Y]", "obj_label": "London"},
    {"relation": "P36", "sub_label": "Peru", "obj_label": "Ciudad de los Reyes"},
    {"relation": "P31", "sub_label": "Lima", "obj_label": "city"},
]


@pytest.fixture
def tables(tmp_path):
    facts = write_jsonl(tmp_path / "pararel_facts.jsonl", FACTS)
    return write_jsonl(tmp_path / "pararel_templates.jsonl", TEMPLATES), facts


def filled(tables, tmp_path, *more):
    templates, facts = map(str, tables)
    argv = ["--method", "templates", templates, "--dataset", facts]
    status = run_script(paraphrase, *argv, "--output", str(tmp_path / "out.jsonl"), *more)
    lines = (tmp_path / "out.jsonl").read_text().splitlines() if status != 2 else []
    return status, [json.loads(line) for line in lines]


def test_they_are_those_of_the_pararel_loader(tables, tmp_path, capsys):
    status, lines = filled(tables, tmp_path)
    assert status == 0 and "no templates for 'P31': 1 questions are left out" in (
        capsys.readouterr().err
    )
    loaded = ParaRelDataset(tmp_path).load(needs_few_shot=False).records
    expected = {(r.uuid, r.question, r.paraphrases, r.answers, r.relation) for r in loaded}
    fields = ("uuid", "question", "paraphrases", "answers", "relation")
    found = {
        tuple(tuple(v) if isinstance(v, list) else v for v in (line[f] for f in fields))
        for line in lines
    }
    assert found == expected and len(lines) == len(expected) == 2
    assert lines[0]["paraphrases"] == ["The capital of Peru is [MASK].", "[MASK] governs Peru."]


def test_the_first_templates_alone_where_so_many_are_asked_for(tables, tmp_path):
    status, lines = filled(tables, tmp_path, "--num_paraphrases", "2")
    assert status == paraphrase.SHORT_STATUS  # P19 has one
    assert [len(line["paraphrases"]) for line in lines] == [2, 1]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"relation": "P36", "template": "It is [Y]."}, "has no [X]"),
        ({"relation": "P36", "template": "[X] or [X]?"}, "has [X] more than once"),
        ({"relation": "P99", "template": "[X]?"}, "no template is for any of the facts' relations"),
        ({"relation": "P36", "wording": "[X]?"}, "none of the columns template, pattern"),
    ],
)
def test_a_table_that_is_none(row, sentence, tables, tmp_path, capsys):
    templates = write_jsonl(tmp_path / "own.jsonl", [row])
    assert filled((templates, tables[1]), tmp_path)[0] == 2
    assert sentence in capsys.readouterr().err


def test_facts_without_a_subject(tables, tmp_path, capsys):
    facts = write_jsonl(tmp_path / "facts.jsonl", [{"rel": "P36", "answer": "Lima"}])
    assert filled((tables[0], facts), tmp_path)[0] == 2
    assert "none of the columns subject, sub_label, sub_ent" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags", [["--model", "x"], ["--drop"], ["--temperature", "1"], ["--check", "f.jsonl"]]
)
def test_flags_that_are_of_no_use(flags):
    with pytest.raises(SystemExit):
        paraphrase.parse_args(["--method", "templates", "t.csv", "--dataset", "f.csv", *flags])


def test_the_configuration(tmp_path):
    told = paraphrase.parse_args(["--method", "templates", "t.csv", "--dataset", "f.csv"])
    assert isinstance(told, TemplateConfig) and told.num_paraphrases is None
    with pytest.raises(SystemExit):
        paraphrase.parse_args(["--method", "templates", "t.csv"])
