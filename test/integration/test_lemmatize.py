"""Lemmas: what they are, and that adding them to a finished result changes nothing else."""

import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from small import QUESTIONS, run_script

import flex_attention_generate
import generate
from self_ensemble.data import result_files as results
from self_ensemble.evaluation import lemmatizer as lemmatize
from self_ensemble.evaluation.lemmatizer import (
    append_lemmas,
    init_spacy,
    lemmaize_chunk,
    lemmaize_predicts,
    lemmas_of,
    lemmatizer_of,
)
from self_ensemble.system.errors import UserError

ROOT = Path(__file__).parents[2]
ADDED = ["predict_lemma", "answer_lemmas"]


@pytest.fixture(scope="module")
def nlp():
    return init_spacy("lookup")


# Texts and lemmas out of the public predictions that en_core_web_lg made, where both agree:
# case, plurals, hyphens, dots, commas, brackets, apostrophes of both kinds, flags, nothing.
LEMMAS = {
    "optics": ["optic"],
    "Philippines": ["philippines"],
    "mid-fielder": ["mid", "-", "fielder"],
    "Nintendo Co., Ltd.": ["nintendo", "co.", ",", "ltd."],
    "polit.": ["polit", "."],
    "Turin, Italy": ["turin", ",", "italy"],
    "🇵🇭": ["🇵", "🇭"],
    "Nintendō": ["nintendō"],
    "": [],
}


def test_lemmas_are_lower_cased_tokens_in_order(nlp):
    texts = [*LEMMAS, *LEMMAS]
    assert lemmas_of(texts, nlp) == [*LEMMAS.values(), *LEMMAS.values()]
    assert lemmas_of([], nlp) == []


def test_rows_of_equal_texts_share_no_list(nlp):
    first, second = lemmas_of(["towns", "towns"], nlp)
    first.append("x")
    assert second == ["town"]


def test_one_prediction(nlp):
    assert lemmaize_predicts("Two towns", nlp) == ["two", "town"]
    assert lemmaize_predicts("", nlp) == lemmaize_predicts(None, nlp) == []


def test_chunks_append_to_the_table_they_were_cut_from(nlp):
    frame = pd.DataFrame(
        {
            "prediction": ["towns", None, "Lima"],
            "answers": [["town"], ["Two towns", "pianos"], ["Lima", "lima"]],
        },
        index=[7, 3, 5],
    )
    added = append_lemmas(frame, [lemmaize_chunk(frame[:2], nlp), lemmaize_chunk(frame[2:], nlp)])
    assert added["predict_lemma"].tolist() == [["town"], [], ["lima"]]
    assert added["answer_lemmas"].tolist() == [
        [["town"]],
        [["two", "town"], ["piano"]],
        [["lima"], ["lima"]],
    ]
    assert list(frame.columns) == ["prediction", "answers"]
    assert added.index.tolist() == [7, 3, 5]
    again = append_lemmas(added, [lemmaize_chunk(added, nlp)])
    pd.testing.assert_frame_equal(again, added)
    with pytest.raises(AssertionError, match="2 rows of predict_lemma for 3"):
        append_lemmas(frame, [lemmaize_chunk(frame[:2], nlp)])


def test_the_way_users_know(nlp):
    """A pool's initializer loads the pipeline, its workers find it."""
    init_spacy()
    assert lemmaize_predicts("Lima") == ["lima"]


def test_the_preferred_model_is_taken_where_it_is_installed(monkeypatch):
    loaded = []
    monkeypatch.setattr(lemmatize, "find_spec", lambda name: True)
    monkeypatch.setattr("spacy.load", lambda name, **_: loaded.append(name) or _pipeline("lookup"))
    init_spacy.__wrapped__(None)
    assert loaded == ["en_core_web_lg"]


def _pipeline(mode):
    import spacy

    nlp = spacy.blank("en")
    nlp.meta["name"] = "core_test"
    if mode:
        nlp.add_pipe("lemmatizer", config={"mode": mode})
        nlp.initialize()
    return nlp


def test_a_model_of_the_users_is_loaded_and_named(tmp_path):
    _pipeline("lookup").to_disk(tmp_path / "own")
    nlp = init_spacy(str(tmp_path / "own"))
    assert lemmas_of(["Towns towns"], nlp) == [["towns", "town"]]
    found = lemmatizer_of(nlp)
    assert found["model"] == "en_core_test" and found["spacy"]
    assert lemmatizer_of(init_spacy("lookup"))["model"] == "lookup"


def test_what_cannot_lemmatise_is_refused_in_a_sentence(tmp_path, monkeypatch):
    _pipeline(None).to_disk(tmp_path / "blank")
    for name, reason in {
        "no_such_model": "cannot load 'no_such_model'",
        "json": "cannot load 'json'",
        str(tmp_path): "cannot load",
        str(tmp_path / "blank"): "has no lemmatizer",
    }.items():
        with pytest.raises(UserError, match=f"--spacy_model: .*{reason}") as refused:
            init_spacy(name)
        assert "\n" not in str(refused.value)
    monkeypatch.setattr(lemmatize, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="need the package spacy-lookups-data"):
        init_spacy.__wrapped__(None)
    imported = builtins.__import__

    def without_spacy(name, *args, **kwargs):
        if name.split(".")[0] == "spacy":
            raise ImportError("No module named 'spacy'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_spacy)
    with pytest.raises(UserError, match="lemmas need spaCy: No module named 'spacy'; pip install"):
        init_spacy.__wrapped__(None)


# On a command line


SCRIPTS = {
    "avg": (generate, []),
    "per_prompt": (generate, ["--method", "per_prompt", "--indexs", "2,0"]),
    "attention": (flex_attention_generate, []),
    "left": (flex_attention_generate, ["--positions", "left"]),
    "exact": (flex_attention_generate, ["--positions", "exact"]),
    "first": (
        flex_attention_generate,
        ["--layout", "concat", "--fusion", "joint", "--positions", "sequential"],
    ),
}


@pytest.fixture(scope="module")
def setting(small):
    return [
        *("--model", small.folder, "--dataset", small.questions),
        *("--max_new_tokens", 4, "--device", "cpu"),
    ]


@pytest.fixture(scope="module")
def common(setting):
    return [*setting, "--num_paraphrases", 2]


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_lemmas_are_added_and_all_else_stays(name, setting, common, tmp_path, nlp):
    script, flags = SCRIPTS[name]
    argv = [*(setting if "--indexs" in flags else common), "--output_dir", tmp_path, *flags]
    assert run_script(script, *argv) == 0
    stem = next(tmp_path.rglob("*.feather")).with_suffix("")
    before, manifest = results.read_results(f"{stem}.feather"), results.read_manifest(stem)
    csv_before = results.read_results(f"{stem}.csv")

    assert run_script(script, *argv, "--lemmaize", "--spacy_model", "lookup") == 0
    once = contents(tmp_path)
    assert {Path(path).suffix for path in once} == {".feather", ".csv", ".json"} and len(once) == 3
    after = results.read_results(f"{stem}.feather")
    pd.testing.assert_frame_equal(after.drop(columns=ADDED), before)
    assert after.columns.tolist() == [*before.columns, *ADDED]
    assert after["predict_lemma"].tolist() == lemmas_of(before["prediction"].tolist(), nlp)
    answers = {row["uuid"]: row["answers"] for row in QUESTIONS}
    assert after["answer_lemmas"].tolist() == [lemmas_of(answers[u], nlp) for u in before["uuid"]]

    in_csv = results.read_results(f"{stem}.csv")
    pd.testing.assert_frame_equal(in_csv.drop(columns=ADDED), csv_before)
    assert in_csv[ADDED].to_dict("list") == after[ADDED].to_dict("list")
    new_manifest = results.read_manifest(stem)
    assert new_manifest.pop("lemmatizer") == lemmatizer_of(nlp)
    assert list(new_manifest.items()) == list(manifest.items())

    # Again, by its other name and without --max_samples' or a device's being the same.
    assert run_script(script, *argv, "--lemmatize", "--max_samples", 1) == 0
    assert contents(tmp_path) == once
    assert run_script(script, *argv) == 0  # the run itself finds its file finished
    assert contents(tmp_path) == once


@pytest.mark.parametrize("script", [generate, flex_attention_generate])
def test_without_a_finished_file_it_says_what_to_do(script, common, tmp_path, capsys):
    argv = [*common, "--output_dir", tmp_path / "out"]
    assert run_script(script, *argv, "--lemmaize") == 2
    assert "run without --lemmaize first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run_script(script, *argv) == 0
    next(tmp_path.rglob("*.json")).unlink()
    before = contents(tmp_path)
    assert run_script(script, *argv, "--lemmaize") == 2
    assert "run without --lemmaize first" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_refusals_leave_the_result_alone(common, tmp_path, capsys):
    argv = [*common, "--output_dir", tmp_path]
    assert run_script(flex_attention_generate, *argv) == 0
    before = contents(tmp_path)
    capsys.readouterr()
    for flags, said in {
        ("--lemmaize", "--max_new_tokens", "5"): "max_new_tokens is 4 there and 5 here",
        ("--lemmaize", "--fusion_tau", "2"): "-tau2-2.feather is not there or not finished",
        ("--lemmaize", "--weights", "1,2"): "-w1_2-2.feather is not there or not finished",
        ("--lemmaize", "--weights_by", "entropy:1"): "-entropy1-2.feather is not there or not",
        ("--lemmaize", "--instruction", "Else"): "belongs to another run: prompt",
        ("--lemmaize", "--dtype", "bfloat16"): "dtype",
        ("--lemmaize", "--positions", "left"): "run without --lemmaize first",
        ("--lemmaize", "--spacy_model", "none_such"): "cannot load 'none_such'",
        ("--lemmaize", "--overwrite"): "--overwrite makes a result again",
        ("--spacy_model", "lookup"): "only --lemmaize uses it",
    }.items():
        assert run_script(flex_attention_generate, *argv, *flags) == 2, flags
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, (flags, error)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("crash", range(1, 4))
def test_a_crash_between_the_files_costs_no_answers(crash, common, tmp_path, monkeypatch):
    argv = [*common, "--output_dir", tmp_path]
    assert run_script(generate, *argv) == 0
    stem = next(tmp_path.rglob("*.feather")).with_suffix("")
    predictions = results.read_results(f"{stem}.feather")["prediction"].tolist()
    renamed, calls = os.replace, []

    def replace(*paths):
        calls.append(paths)
        if len(calls) == crash:
            raise SystemExit(137)  # no `except OSError` sees it
        renamed(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        assert run_script(generate, *argv, "--lemmaize") == 137
    manifest = results.read_manifest(stem)
    assert results.count_finished(stem, manifest["identity"]) == 7
    assert results.read_results(f"{stem}.feather")["prediction"].tolist() == predictions
    assert run_script(generate, *argv, "--lemmaize") == 0
    assert "predict_lemma" in results.read_results(f"{stem}.csv")


def test_no_language_model_and_no_torch_is_loaded(common, tmp_path):
    argv = [str(arg) for arg in [*common, "--output_dir", tmp_path]]
    program = "import json, sys\n"
    for script in (generate, flex_attention_generate):
        assert run_script(script, *argv) == 0
        name = script.__name__
        program += f"import {name}\n{name}.main({name}.parse_args({[*argv, '--lemmaize']!r}))\n"
    program += (
        "roots = {name.split('.')[0] for name in sys.modules}\n"
        "print(json.dumps(sorted(roots & {'torch', 'transformers', 'spacy'})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["spacy"]
