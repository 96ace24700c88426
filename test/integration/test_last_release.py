"""What the last release left behind is gone on with: its journals, its manifests, its files."""

import json
import shutil
from pathlib import Path

import pytest
from small import run_script

import flex_attention_generate
import generate
import paraphrase
from self_ensemble.data.result_files import read_manifest, read_results

FILES = Path(__file__).parents[1] / "support" / "last_release"
ANSWERING = ("--num_paraphrases", 2, "--max_new_tokens", 6, "--batch_size", 2)
# Killed after two of three batches; after the first of three batches of the second pass.
INTERRUPTED = {
    "flex_attention-2": (flex_attention_generate, (), "attention fusion: 4 of 6 questions were"),
    "weighted_avg-2": (generate, ("--method", "weighted_avg"), "weighted_avg: 2 of 6 questions"),
}
SAMPLING = (
    *("--max_samples", 4, "--num_paraphrases", 2, "--max_new_tokens", 12, "--batch_size", 3),
    *("--drop", "--max_attempts", 2),
)


@pytest.fixture
def left(tmp_path):
    """Puts the files of one of the folders where a run looks for them."""

    def left(folder: str, name: str) -> Path:
        there = tmp_path / "demo" / "demo"
        there.mkdir(parents=True)
        for path in (FILES / folder).glob(f"{name}.*"):
            shutil.copy(path, there)
        return there / name

    return left


def check_same_table(stem: Path, expected: Path):
    """On another processor the last digits of a logprob are others."""
    found, wanted = read_results(f"{stem}.csv"), read_results(expected)
    logprobs = found.pop("logprob").tolist(), wanted.pop("logprob").tolist()
    assert found.equals(wanted)
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


def check_same_manifest(stem: Path, expected: Path):
    """Key by key; what computed it is the machine's own, and so is how long it took."""
    found, wanted = read_manifest(stem), json.loads(expected.read_text())
    found.pop("begun_with", None)
    assert list(found) == list(wanted)
    for own in ("device", "versions", "seconds"):
        found.pop(own), wanted.pop(own)
    assert found == wanted


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_is_finished(name, left, tmp_path, capsys):
    script, method, said = INTERRUPTED[name]
    stem = left("interrupted", name)
    flags = (*ANSWERING, *method, "--max_samples", 6, "--output_dir", tmp_path)
    assert run_script(script, *flags) == 0
    assert said in capsys.readouterr().err
    check_same_table(stem, FILES / "undisturbed" / f"{name}.csv")
    check_same_manifest(stem, FILES / "undisturbed" / f"{name}.json")
    assert not stem.with_name(f"{name}.journal").exists()


def test_what_was_answered_is_taken_as_it_is(left, tmp_path):
    """Not a digit of what the journal holds is computed again."""
    stem = left("interrupted", "flex_attention-2")
    lines = stem.with_name("flex_attention-2.journal").read_text().splitlines()
    records = [json.loads(line[9:]) for line in lines[1:]]
    batches = [record for record in records if record["kind"] == "batch"]
    kept = {i: a for each in batches for i, a in zip(each["batch"], each["answers"], strict=True)}
    flags = (*ANSWERING, "--max_samples", 6, "--output_dir", tmp_path)
    assert run_script(flex_attention_generate, *flags) == 0
    logprobs = read_results(f"{stem}.feather")["logprob"].tolist()
    assert len(kept) == 4
    assert all(logprobs[index] == sum(answer[1]) for index, answer in kept.items())


def test_an_interrupted_run_of_other_settings_is_refused(left, tmp_path, capsys):
    stem = left("interrupted", "weighted_avg-2")
    path = stem.with_name("weighted_avg-2.journal")
    before = path.read_bytes()
    flags = ("--method", "weighted_avg", "--max_samples", 6, "--output_dir", tmp_path)
    for changed, difference in {
        ("--max_new_tokens", 7): "max_new_tokens is 6 there and 7 here",
        ("--instruction", "Else."): "prompt",
        ("--dtype", "bfloat16"): 'dtype is "float32" there',
    }.items():
        capsys.readouterr()
        assert run_script(generate, *ANSWERING, *flags, *changed) == 2
        err = capsys.readouterr().err
        assert "was left by another run" in err and difference in err
        assert path.read_bytes() == before


def test_a_finished_result_is_extended(left, tmp_path):
    stem = left("finished", "avg-2")
    before = read_results(f"{stem}.feather").to_dict("records")
    flags = (*ANSWERING, "--output_dir", tmp_path)
    assert run_script(generate, *flags, "--max_samples", 6) == 0
    check_same_table(stem, FILES / "undisturbed" / "avg-2.csv")
    assert read_results(f"{stem}.feather").to_dict("records")[:3] == before
    manifest = read_manifest(stem)
    assert manifest["num_questions"] == 6 and manifest["extends"]["num_questions"] == 3
    whole = json.loads((FILES / "undisturbed" / "avg-2.json").read_text())["counts"]
    parts = manifest["counts"], manifest["extends"]["counts"]
    # The prefix was encoded for each of the two.
    assert sum(part["decoded_tokens"] for part in parts) == whole["decoded_tokens"]


def test_a_finished_result_is_finished_and_gets_its_lemmas(left, tmp_path, capsys):
    stem = left("finished", "avg-2")
    flags = (*ANSWERING, "--max_samples", 3, "--output_dir", tmp_path)
    assert run_script(generate, *flags) == 0
    assert "is finished already" in capsys.readouterr().err
    assert run_script(generate, *flags, "--lemmaize", "--spacy_model", "lookup") == 0
    assert "predict_lemma" in read_results(f"{stem}.feather")


def test_an_interrupted_paraphrasing_is_finished(left, tmp_path, capsys):
    stem = left("interrupted", "paraphrases")
    status = run_script(paraphrase, *SAMPLING, "--output_dir", tmp_path)
    assert status == paraphrase.SHORT_STATUS  # the demo model paraphrases poorly
    assert "paraphrases were drawn before" in capsys.readouterr().err
    written = stem.with_name("paraphrases.jsonl").read_bytes()
    assert written == (FILES / "undisturbed" / "paraphrases.jsonl").read_bytes()
    check_same_manifest(stem, FILES / "undisturbed" / "paraphrases.json")
