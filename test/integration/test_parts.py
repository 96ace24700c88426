"""A result in parts (--part_rows) is the result in one file, for every tool; a killed run too."""

import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from small import INSTRUCTION, QUESTIONS, run_script, write_jsonl

import flex_attention_generate
import generate
import score
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.generation import batching
from self_ensemble.system.errors import UserError

pytestmark = pytest.mark.usefixtures("models_kept")

METHODS = {
    "attention": (flex_attention_generate, []),
    "per_prompt": (generate, ["--method", "per_prompt"]),
    "choices": (flex_attention_generate, ["--task", "choices"]),
}
LEMMAS = ["--lemmaize", "--spacy_model", "lookup"]


class Killed(BaseException):
    """Ends a run where it stands."""


@pytest.fixture(autouse=True, scope="module")
def one_filling():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "FILLINGS", 1)
        yield


@pytest.fixture
def run(small, tmp_path):
    """Runs a method of METHODS into a folder, and gives the manifest's path."""
    rows = [row | {"choices": [*row["answers"], "the city of x"]} for row in QUESTIONS]
    questions = write_jsonl(tmp_path / "capitals.jsonl", rows)

    def run(folder: str, *argv, name="attention", expect=0) -> Path:
        script, method = METHODS[name]
        flags = ["--dataset", questions, "--model", small.folder, "--output_dir", tmp_path / folder]
        flags += ["--instruction", INSTRUCTION, "--num_paraphrases", 3, "--batch_size", 2]
        flags += [] if name == "choices" else ["--max_new_tokens", 4]
        assert run_script(script, *flags, *method, *argv) == expect
        [path] = (tmp_path / folder).rglob("*.json")
        return path

    return run


def names_in(manifest: Path) -> list[str]:
    folder = manifest.parent
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def parts_of(manifest: Path) -> list[Path]:
    return [manifest.parent / part["file"] for part in read_manifest(manifest)["parts"]]


def contents(manifest: Path) -> dict:
    """All files by their names; of the manifest what no interruption may change."""
    found = {name: (manifest.parent / name).read_bytes() for name in names_in(manifest)}
    told = json.loads(found[manifest.name])
    told.pop("seconds")
    told.get("extends", {}).pop("seconds", None)
    return found | {manifest.name: told}


def check_same_table(parts: Path, single: Path) -> None:
    """The parts hold what the file does, and both manifests say the same but for the parts."""
    frame = read_results(single.with_suffix(".feather"))
    assert read_results(parts).equals(frame)
    assert read_results(single).equals(frame)
    one, other = (read_manifest(path) for path in (parts, single))
    assert sum(part["rows"] for part in one["parts"]) == len(frame)
    for manifest in (one, other):
        manifest.pop("parts", None), manifest.pop("seconds"), manifest.pop("extends", None)
    assert one == other


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rows", [2, 100])
def test_parts_equal_the_single_file(run, name, rows):
    parts, single = run("parts", "--part_rows", rows, name=name), run("single", name=name)
    check_same_table(parts, single)
    count = 21 if name == "per_prompt" else 7
    paths = parts_of(parts)
    assert len(paths) == -(-count // rows)
    assert names_in(parts) == sorted(
        [parts.name, *(str(p.relative_to(p.parents[1])) for p in paths)]
    )
    sizes = [len(pd.read_parquet(path)) for path in paths]
    assert sizes[:-1] == [rows] * (len(paths) - 1)
    # As another tool reads them all at once.
    joined = pd.read_parquet(paths[0].parent)
    assert joined["uuid"].tolist() == read_results(single)["uuid"].tolist()


def test_a_finished_result_in_parts_is_not_made_again(run, capsys):
    path = run("parts", "--part_rows", 2)
    before = contents(path)
    capsys.readouterr()
    run("parts", "--part_rows", 2)
    assert f"{path} is finished already" in capsys.readouterr().err
    run("parts")  # nor in another form
    assert contents(path) == before


def scores(capsys, *argv) -> dict:
    capsys.readouterr()
    assert run_script(score, *argv, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", METHODS)
def test_scores_take_both(run, capsys, name):
    parts, single = run("parts", "--part_rows", 2, name=name), run("single", name=name)
    feather = single.with_suffix(".feather")
    reports = [
        json.dumps(scores(capsys, *argv)).replace(str(argv[0]), "PATH")
        for path in (parts, single, feather)
        for argv in ([path], [path, "--baseline", other_baseline(feather)])
    ]
    assert len(set(reports)) == 2
    assert reports[:2] * 3 == reports


def other_baseline(feather: Path) -> Path:
    """The same table under another name: a file is not compared with itself."""
    return shutil.copy(feather, feather.with_name("b.feather"))


def test_one_part_is_no_result(run, capsys):
    path = run("parts", "--part_rows", 2)
    part = parts_of(path)[1]
    assert run_script(score, part) == 2
    assert f"{part} is one part of a result; {path} stands for all of it" in capsys.readouterr().err


def test_a_part_that_is_missing_is_named(run, capsys):
    path = run("parts", "--part_rows", 2)
    part = parts_of(path)[2]
    part.unlink()
    with pytest.raises(UserError, match="there is no file"):
        read_results(path)
    capsys.readouterr()
    run("parts", "--part_rows", 2, expect=2)
    assert f"{part} is missing, of 4 parts" in capsys.readouterr().err
    run("parts", *LEMMAS, expect=2)
    assert f"{part} is missing, of 4 parts" in capsys.readouterr().err
    run("parts", "--part_rows", 2, "--overwrite")
    check_same_table(path, run("single"))


@pytest.mark.parametrize("name", ["attention", "per_prompt"])
def test_lemmas_are_added_to_parts(run, name):
    for folder, flags in (("parts", ["--part_rows", 4]), ("single", [])):
        run(folder, *flags, name=name)
        path = run(folder, *flags, *LEMMAS, name=name)
        if folder == "parts":
            parts = path
    check_same_table(parts, path)
    assert "predict_lemma" in read_results(parts) and "lemmatizer" in read_manifest(parts)
    assert len(names_in(parts)) == 1 + len(parts_of(parts))
    run("parts", *LEMMAS, name=name)  # again, without the flag: what is there stays in parts
    check_same_table(parts, path)


@pytest.mark.parametrize(
    ("first", "lemmas", "then"),
    [
        (["--part_rows", 2], False, ["--part_rows", 2]),
        (["--part_rows", 3], True, ["--part_rows", 2]),
        (["--part_rows", 2], True, []),
        ([], False, ["--part_rows", 2]),
        ([], True, []),
    ],
)
def test_extended_from_either_form_to_either(run, first, then, lemmas):
    run("grown", *first, "--max_samples", 3)
    if lemmas:
        run("grown", *LEMMAS, "--max_samples", 3)
    path = run("grown", *then)
    whole = run("whole", *then)
    # A part's fingerprint is of the last digits too, which other batches move.
    grown, new = (re.sub("-[0-9a-f]{16}", "", str(names_in(each))) for each in (path, whole))
    assert grown == new
    expected = read_results(whole)
    assert read_results(path)["generation"].equals(expected["generation"])
    manifest = read_manifest(path)
    assert manifest["extends"]["num_questions"] == 3 and "parts" not in manifest["extends"]
    assert list(read_results(path)) == list(expected)


@pytest.mark.parametrize(
    ("before", "call"),
    [("nothing", "replace"), ("parts", "fsync"), ("file", "unlink"), ("lemmas", "replace")],
)
def test_killed_at_any_file_operation(run, monkeypatch, capsys, call, before):
    """Killed at its nth such call, then let alone, for every n."""

    def prepare(folder):
        if before != "nothing":
            form = [] if before == "file" else ["--part_rows", 2]
            run(folder, *form, "--max_samples", 3)
        if before == "lemmas":
            run(folder, *LEMMAS, "--max_samples", 3)

    prepare("undisturbed")
    expected = contents(run("undisturbed", "--part_rows", 2))
    kills = 0
    while True:
        folder = str(kills)
        prepare(folder)
        real, calls = getattr(os, call), 0

        def deadly(*args, real=real, nth=kills + 1, **settings):
            nonlocal calls
            calls += 1
            try:
                return real(*args, **settings)
            finally:  # not before: a lock that could not go is held by this very process
                if calls == nth:
                    raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(os, call, deadly)
            try:
                run(folder, "--part_rows", 2)
                break
            except Killed:
                kills += 1
        capsys.readouterr()
        path = run(folder, "--part_rows", 2)
        assert contents(path) == expected, (call, kills)
    assert kills >= 4


def test_killed_while_it_adds_lemmas(run, monkeypatch):
    """At every rename: the parts that count are always of one kind, and all there."""
    run("undisturbed", "--part_rows", 2)
    expected = contents(run("undisturbed", *LEMMAS))
    kills = 0
    while True:
        path = run(str(kills), "--part_rows", 2)
        plain = read_results(path)
        real, calls = os.replace, 0

        def deadly(*args, real=real, nth=kills + 1):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise Killed
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", deadly)
            try:
                run(str(kills), *LEMMAS)
                break
            except Killed:
                kills += 1
        left = read_results(path)
        assert left.equals(plain)
        assert contents(run(path.parents[2].name, *LEMMAS)) == expected
    assert kills == 5
