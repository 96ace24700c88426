"""What the last release left behind is gone on with: its journals, its manifests, its files.

Predictions stay the same and log-probabilities to 1e-4: on another processor their last digits are
others, and another engine may add in another order.
"""

import json
import shutil
from pathlib import Path

import pytest
from small import run_script

import flex_attention_generate
import generate
import paraphrase
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.methods.config import DEFAULT_TAU

pytestmark = pytest.mark.usefixtures("models_kept")

FILES = Path(__file__).parents[1] / "support" / "last_release"
ANSWERING = ("--num_paraphrases", 2, "--max_new_tokens", 6, "--batch_size", 2)
RUNS = {
    "flex_attention-2": (flex_attention_generate, ("--fusion_tau", 0)),
    "flex_attention-joint-2": (flex_attention_generate, ("--fusion", "joint")),
    "avg-2": (generate, ()),
    "weighted_avg-2": (generate, ("--method", "weighted_avg")),
    "per_prompt-2": (generate, ("--method", "per_prompt")),
    "vote-2": (generate, ("--method", "vote")),
}
# What each was killed after: two of three batches, or one of the second pass.
SAID = {
    "flex_attention-2": "attention fusion: 4 of 6 questions were answered before",
    "flex_attention-joint-2": "attention fusion: 4 of 6 questions were answered before",
    "avg-2": "avg: 4 of 6 questions were answered before",
    "weighted_avg-2": "weighted_avg: 2 of 6 questions were answered before",
    "per_prompt-2": "each paraphrase: 8 of 12 prompts were answered before",
    "vote-2": "each paraphrase: 8 of 12 prompts were answered before",
}
# What 6d3a980 called flex_attention-2 too.
UNNAMED = {
    "tau": ("--fusion_tau", 0.5),
    "weights": ("--fusion_tau", 0, "--weights", "1,3"),
}
SAMPLING = (
    *("--max_samples", 4, "--num_paraphrases", 2, "--max_new_tokens", 12, "--batch_size", 3),
    *("--drop", "--max_attempts", 2),
)


@pytest.fixture
def left(tmp_path):
    """Puts the files of one of the folders where a run looks for them."""

    def left(folder: str, name: str, dataset: str = "demo") -> Path:
        there = tmp_path / dataset / "demo"
        there.mkdir(parents=True, exist_ok=True)
        for path in (FILES / folder).glob(f"{name}.*"):
            shutil.copy(path, there)
        return there / name

    return left


@pytest.fixture
def run(tmp_path):
    """A run of one of RUNS over so many questions; its exit status."""

    def run(name: str, questions: int, *argv) -> int:
        script, method = RUNS[name]
        flags = (*ANSWERING, *method, "--max_samples", questions, "--output_dir", tmp_path)
        return run_script(script, *flags, *argv)

    return run


@pytest.fixture
def fuse(tmp_path):
    """A run of flex_attention_generate.py over so many questions; its exit status."""

    def fuse(questions: int, *argv) -> int:
        flags = (*ANSWERING, "--max_samples", questions, "--output_dir", tmp_path)
        return run_script(flex_attention_generate, *flags, *argv)

    return fuse


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def check_same_table(stem: Path, expected: Path):
    found, wanted = read_results(f"{stem}.csv"), read_results(expected)
    logprobs = found.pop("logprob").tolist(), wanted.pop("logprob").tolist()
    assert found.equals(wanted)
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


def check_same_manifest(stem: Path, expected: Path):
    """Key by key; what computed it is the machine's own, and so is how long it took.

    Of the counts only what the answers need: in what rows they are decoded is the engine's affair.
    """
    found, wanted = read_manifest(stem), json.loads(expected.read_text())
    found.pop("begun_with", None)
    assert list(found) == list(wanted)
    for own in ("device", "versions", "seconds"):
        found.pop(own), wanted.pop(own)
    counts = found.pop("counts", {}), wanted.pop("counts", {})
    assert found == wanted
    for count in ("encoded_tokens", "decoded_tokens"):
        assert counts[0].get(count) == counts[1].get(count)


def kept_answers(path: Path) -> dict[tuple[str, int], list]:
    """(pass, index) → answer, as a journal holds it."""
    lines = path.read_text().splitlines()[1:]
    records = [json.loads(line.partition(" ")[2]) for line in lines]
    batches = [record for record in records if record["kind"] == "batch"]
    return {
        (batch["pass"], index): answer
        for batch in batches
        for index, answer in zip(batch["batch"], batch["answers"], strict=True)
    }


@pytest.mark.parametrize("name", RUNS)
def test_an_interrupted_run_is_finished(name, left, run, capsys):
    stem = left("interrupted", name)
    assert run(name, 6) == 0
    assert SAID[name] in capsys.readouterr().err
    check_same_table(stem, FILES / "undisturbed" / f"{name}.csv")
    check_same_manifest(stem, FILES / "undisturbed" / f"{name}.json")
    assert not stem.with_name(f"{name}.journal").exists()


@pytest.mark.parametrize("name", ["flex_attention-2", "per_prompt-2"])
def test_what_was_answered_is_taken_as_it_is(name, left, run):
    """Not a digit of what the journal holds is computed again."""
    stem = left("interrupted", name)
    kept = kept_answers(stem.with_name(f"{name}.journal"))
    assert run(name, 6) == 0
    logprobs = read_results(f"{stem}.feather")["logprob"].tolist()
    assert len(kept) == (8 if name == "per_prompt-2" else 4)
    assert all(logprobs[index] == sum(answer[1]) for (_, index), answer in kept.items())


def test_an_interrupted_run_of_other_settings_is_refused(left, run, capsys):
    stem = left("interrupted", "weighted_avg-2")
    path = stem.with_name("weighted_avg-2.journal")
    before = path.read_bytes()
    for changed, difference in {
        ("--max_new_tokens", 7): "max_new_tokens is 6 there and 7 here",
        ("--instruction", "Else."): "prompt",
        ("--dtype", "bfloat16"): 'dtype is "float32" there',
    }.items():
        capsys.readouterr()
        assert run("weighted_avg-2", 6, *changed) == 2
        err = capsys.readouterr().err
        assert "was left by another run" in err and difference in err
        assert path.read_bytes() == before


@pytest.mark.parametrize("name", RUNS)
def test_a_finished_result_is_finished_and_extended(name, left, run, capsys):
    stem = left("finished", name)
    before = read_results(f"{stem}.feather").to_dict("records")
    files = {path.name: path.read_bytes() for path in stem.parent.iterdir()}
    assert run(name, 3) == 0
    assert "is finished already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in stem.parent.iterdir()} == files

    assert run(name, 6) == 0
    check_same_table(stem, FILES / "undisturbed" / f"{name}.csv")
    assert read_results(f"{stem}.feather").to_dict("records")[: len(before)] == before
    manifest = read_manifest(stem)
    assert manifest["identity"] == json.loads(files[f"{name}.json"])["identity"]
    assert manifest["num_questions"] == 6 and manifest["extends"]["num_questions"] == 3
    whole = json.loads((FILES / "undisturbed" / f"{name}.json").read_text())["counts"]
    parts = manifest["counts"], manifest["extends"]["counts"]
    # The prefix was encoded for each of the two.
    assert sum(part["decoded_tokens"] for part in parts) == whole["decoded_tokens"]


def test_an_interrupted_extension_is_finished(left, run, capsys):
    stem = left("extending", "avg-2")
    before = read_results(f"{stem}.feather").to_dict("records")
    assert run("avg-2", 6) == 0
    assert "avg: 2 of 3 questions were answered before" in capsys.readouterr().err
    check_same_table(stem, FILES / "undisturbed" / "avg-2.csv")
    assert read_results(f"{stem}.feather").to_dict("records")[:3] == before
    assert read_manifest(stem)["extends"]["num_questions"] == 3


def test_a_finished_result_gets_its_lemmas(left, run, capsys):
    stem = left("finished", "avg-2")
    assert run("avg-2", 3, "--lemmaize", "--spacy_model", "lookup") == 0
    assert "predict_lemma" in read_results(f"{stem}.feather")


def test_a_result_of_a_users_file_is_finished_and_extended(left, run, capsys):
    """Its column `choices` meant nothing to the last release."""
    stem = left("own", "avg-2", dataset="capitals")
    before = read_results(f"{stem}.feather").to_dict("records")
    argv = ("--dataset", FILES / "own" / "capitals.jsonl")
    assert run("avg-2", 2, *argv) == 0
    assert "is finished already" in capsys.readouterr().err
    assert run("avg-2", 4, *argv) == 0
    rows = read_results(f"{stem}.feather").to_dict("records")
    assert len(rows) == 4
    for row, old in zip(rows, before, strict=False):
        assert {name: row[name] for name in old} == old


def test_an_interrupted_paraphrasing_is_told_apart(left, tmp_path, capsys):
    """Draws end sooner than they did: what was drawn by the last release is not mixed with them."""
    stem = left("interrupted", "paraphrases")
    before = contents(stem.parent)
    assert run_script(paraphrase, *SAMPLING, "--output_dir", tmp_path) == 2
    assert "length is absent there" in capsys.readouterr().err
    assert contents(stem.parent) == before


# ---- names: neither tau nor weights were named --------------------------------------------------


@pytest.mark.parametrize("name", UNNAMED)
def test_an_interrupted_run_under_a_name_without_weights_is_finished(name, left, fuse, capsys):
    stem = left(f"{name}/interrupted", "flex_attention-2")
    assert fuse(6, *UNNAMED[name]) == 0
    assert "4 of 6 questions were answered before" in capsys.readouterr().err
    assert {path.stem for path in stem.parent.iterdir()} == {"flex_attention-2"}
    check_same_table(stem, FILES / name / "undisturbed" / "flex_attention-2.csv")
    check_same_manifest(stem, FILES / name / "undisturbed" / "flex_attention-2.json")


@pytest.mark.parametrize("name", UNNAMED)
def test_a_finished_result_under_a_name_without_weights_is_extended(name, left, fuse, capsys):
    stem = left(f"{name}/finished", "flex_attention-2")
    files = contents(stem.parent)
    assert fuse(3, *UNNAMED[name]) == 0
    assert f"{stem}.feather is finished already" in capsys.readouterr().err
    assert contents(stem.parent) == files
    lemmas = ("--lemmaize", "--spacy_model", "lookup")
    assert fuse(3, *UNNAMED[name], *lemmas) == 0
    assert "predict_lemma" in read_results(f"{stem}.feather")
    assert fuse(6, *UNNAMED[name]) == 0
    check_same_table(stem, FILES / name / "undisturbed" / "flex_attention-2.csv")
    assert {path.stem for path in stem.parent.iterdir()} == {"flex_attention-2"}
    assert fuse(6, *UNNAMED[name], "--overwrite") == 0
    assert {path.stem for path in stem.parent.iterdir()} == {"flex_attention-2"}


@pytest.mark.parametrize("kind", ["finished", "interrupted"])
@pytest.mark.parametrize(
    ("flags", "made"),
    [
        (("--fusion_tau", 0.25), "flex_attention-tau0.25-2"),
        (("--fusion_tau", 0.5, "--weights", "1,3"), "flex_attention-tau0.5-w1_3-2"),
        (("--fusion_tau", 0.5, "--weights_by", "entropy:1"), "flex_attention-tau0.5-entropy1-2"),
        (("--fusion_tau", 0.5, "--max_new_tokens", 5), "flex_attention-tau0.5-2"),
    ],
)
def test_other_weights_lie_beside_it(kind, flags, made, left, fuse, capsys):
    stem = left(f"tau/{kind}", "flex_attention-2")
    files = contents(stem.parent)
    assert fuse(3, *flags) == 0
    err = capsys.readouterr().err
    assert err.startswith(f"wrote {stem.parent / made}.feather") and "flex_attention-2" not in err
    found = contents(stem.parent)
    assert {name: found[name] for name in files} == files
    assert {Path(name).stem for name in found.keys() - files.keys()} == {made}


def test_a_result_under_its_own_name_comes_first(left, fuse, capsys):
    stem = left("tau/finished", "flex_attention-2")
    own = stem.with_name("flex_attention-tau0.5-2")
    for suffix in (".csv", ".json", ".feather"):
        stem.with_name(f"{stem.name}{suffix}").rename(f"{own}{suffix}")
    left("tau/finished", "flex_attention-2")
    assert fuse(3, *UNNAMED["tau"]) == 0
    assert f"{own}.feather is finished already" in capsys.readouterr().err
    own.with_name(f"{own.name}.json").unlink()  # and is told where it is not whole
    assert fuse(3, *UNNAMED["tau"]) == 0
    assert f"wrote {own}.feather" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["finished", "interrupted"])
def test_what_was_the_default_is_found_by_its_tau_alone(kind, left, fuse, capsys, monkeypatch):
    """Where the default is another tau now."""
    monkeypatch.setitem(DEFAULT_TAU, "mean", 1.0)
    stem = left(kind, "flex_attention-2")
    files = contents(stem.parent)
    lemmas = ("--lemmaize", "--spacy_model", "lookup")
    if kind == "finished":
        assert fuse(3, *lemmas) == 2
        err = capsys.readouterr().err
        assert "flex_attention-tau1-2.feather is not there or not finished" in err
        assert "(flex_attention-2 has tau 0, which was the default: --fusion_tau 0" in err
        assert err.count("\n") == 1
    assert fuse(6) == 0
    err = capsys.readouterr().err
    assert f"{stem} has tau 0, which was the default: --fusion_tau 0 asks for it" in err
    assert f"wrote {stem.parent / 'flex_attention-tau1-2.feather'}" in err
    assert "before" not in err
    found = contents(stem.parent)
    assert {name: found[name] for name in files} == files
    assert read_manifest(stem.with_name("flex_attention-tau1-2"))["identity"]["method"]["tau"] == 1
    assert fuse(6, *lemmas) == 0  # of the new one
    assert {name: contents(stem.parent)[name] for name in files} == files

    capsys.readouterr()
    assert fuse(6) == 0
    assert "tau 0" not in capsys.readouterr().err  # told once
    assert fuse(6, "--fusion_tau", 0) == 0
    check_same_table(stem, FILES / "undisturbed" / "flex_attention-2.csv")


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_default_and_its_tau_spelled_out_are_one_run(tau, fuse, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(DEFAULT_TAU, "mean", tau)
    assert fuse(2) == 0 and fuse(2, "--fusion_tau", tau) == 0
    name = "flex_attention-tau1-2" if tau else "flex_attention-2"
    assert {path.stem for path in (tmp_path / "demo" / "demo").iterdir()} == {name}
    assert "is finished already" in capsys.readouterr().err
