"""`--dataset pararel` from the command line, with the demo's model, in both layouts."""

import pytest
from pararel import write_clone, write_tables
from small import run_script

import debug_flexattention
import flex_attention_generate
import generate
import paraphrase
from self_ensemble.data.datasets.pararel import ParaRelDataset
from self_ensemble.data.result_files import read_manifest, read_results

NUM_ASKED = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pararel")
    return {"clone": write_clone(root / "clone"), "tables": write_tables(root / "tables")}


def flags(folder, *more):
    where = ("--dataset", "pararel", "--data_dir", folder, "--model", "demo")
    return (*where, "--max_samples", NUM_ASKED, *more)


@pytest.mark.parametrize("script", [generate, flex_attention_generate])
def test_both_layouts_give_the_same_answers(script, folders, tmp_path, capsys):
    more = ("--num_paraphrases", 3, "--fewer", "skip", "--max_new_tokens", 4)
    tables, data = [], []
    for layout, folder in folders.items():
        assert run_script(script, *flags(folder, *more, "--output_dir", tmp_path / layout)) == 0
        [path] = (tmp_path / layout / "pararel" / "demo").glob("*.feather")
        tables.append(read_results(path))
        data.append(read_manifest(path.with_suffix(""))["identity"]["data"])
    assert tables[0].equals(tables[1]) and data[0] == data[1]
    records = ParaRelDataset(folders["clone"]).load().records[:NUM_ASKED]
    expected = [record for record in records if len(record.paraphrases) >= 3]
    assert tables[0]["uuid"].tolist() == [record.uuid for record in expected]
    assert [tuple(each) for each in tables[0]["paraphrases"]] == [
        record.paraphrases[:3] for record in expected
    ]
    assert tables[0]["relation"].tolist() == [record.relation for record in expected]
    err = capsys.readouterr().err
    assert "no templates for P31: 2 questions are left out" in err
    assert f"{NUM_ASKED - len(expected)} of {NUM_ASKED} questions are left out" in err
    assert "among the few-shot demonstrations" not in err


def test_the_other_scripts_know_it(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = folders["clone"]
    assert run_script(generate, *flags(folder, "--method", "origin", "--max_new_tokens", 2)) == 0
    asked = read_results(tmp_path / "results/pararel/demo/origin-1.feather")["paraphrases"]
    records = ParaRelDataset(folder).load().records[:NUM_ASKED]
    assert [tuple(each) for each in asked] == [(record.question,) for record in records]

    debug = ("--dataset", "pararel", "--data_dir", folder, "--fewer", "use", "--max_samples", 1)
    assert run_script(debug_flexattention, *debug, "--model", "demo") == 0
    assert records[0].uuid in capsys.readouterr().out

    made = ("--num_paraphrases", 1, "--max_new_tokens", 4, "--output", tmp_path / "more.jsonl")
    assert run_script(paraphrase, *flags(folder, *made)) == 0
    assert records[0].question in (tmp_path / "more.jsonl").read_text()


def test_too_few_templates_are_told(folders, capsys):
    assert run_script(generate, *flags(folders["clone"])) == 2
    err = capsys.readouterr().err
    assert "5 paraphrases were asked for" in err and "--fewer skip" in err
