"""A result in parts: the manifest that stands, and what it lists, are one result at any moment."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from writing import make_frame, make_manifest

from self_ensemble.data.result_files import (
    read_manifest,
    read_results,
    result_file,
    write_results,
)
from self_ensemble.experiment.run import _FinishedPart
from self_ensemble.system.errors import UserError

TEXTS = ["a", "b", "c", "d", "e"]


def with_lemmas(version):
    frame = make_frame(TEXTS, version="same")
    frame["predict_lemma"] = [[f"{version} {text}"] for text in TEXTS]
    frame["answer_lemmas"] = [[[text]] for text in TEXTS]
    return frame


# What is there, what takes its place, whether the answers are the same.
CHANGES = {
    "other lemmas": (with_lemmas("old"), with_lemmas("new"), True),
    "lemmas": (make_frame(TEXTS, version="same"), with_lemmas("new"), True),
    "extension": (make_frame(TEXTS[:3]), make_frame(TEXTS), True),
    "overwrite": (make_frame(TEXTS, version="old"), make_frame(TEXTS, version="new"), False),
}


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (2, None), (None, 2)])
@pytest.mark.parametrize("change", CHANGES)
def test_the_manifest_that_stands_and_all_that_it_lists(
    tmp_path, monkeypatch, change, before, after
):
    """Before every rename and removal, where a run may be killed, the old or the new result is
    there as a whole."""
    old, new, same_answers = CHANGES[change]
    stem, seen = tmp_path / "avg-5", []
    write_results(stem, old, make_manifest(version="old"), part_rows=before)

    def look():
        version = read_manifest(stem)["identity"]["version"]
        rows = read_results(result_file(stem, ".json")).to_dict("list")
        assert rows == {"old": old, "new": new}[version].to_dict("list"), (len(seen), version)
        seen.append(version)

    def looking(call):
        def wrapped(*args, **settings):
            look()
            return call(*args, **settings)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", looking(os.replace))
        patch.setattr(Path, "unlink", looking(Path.unlink))
        manifest = make_manifest(version="new")
        write_results(stem, new, manifest, part_rows=after, same_answers=same_answers)
    look()
    assert seen[0] == "old" and seen[-1] == "new"
    folder = result_file(stem, ".parts")
    listed = [part["file"] for part in read_manifest(stem).get("parts", ())]
    assert sorted(listed) == sorted(f"{folder.name}/{p.name}" for p in folder.glob("*"))


def test_the_same_rows_have_the_same_names(tmp_path):
    names = []
    for folder in ("one", "other"):
        stem = tmp_path / folder / "avg-5"
        write_results(stem, make_frame(TEXTS), make_manifest(), part_rows=2)
        names.append([part["file"] for part in read_manifest(stem)["parts"]])
    assert names[0] == names[1] and len(set(names[0])) == 3


def test_a_file_that_a_killed_run_left_beside_parts_is_no_result(tmp_path):
    """It was to replace them, and its manifest has not come."""
    stem = tmp_path / "avg-5"
    write_results(stem, make_frame(["a"]), make_manifest(), part_rows=2)
    write_results(tmp_path / "other", make_frame(["b"]), make_manifest())
    for suffix in (".feather", ".csv"):
        left = (tmp_path / "other").with_suffix(suffix).rename(result_file(stem, suffix))
        with pytest.raises(UserError, match=r"avg-5.json stands for the result, and is parts"):
            read_results(left)


def test_a_part_by_whatever_path(tmp_path, monkeypatch):
    stem = tmp_path / "avg-5"
    write_results(stem, make_frame(TEXTS), make_manifest(), part_rows=2)
    folder = result_file(stem, ".parts")
    name = sorted(folder.glob("*"))[0].name
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "one.parquet").symlink_to(folder / name)
    monkeypatch.chdir(folder)
    beside = ("./", "../avg-5.parts/", "../linked/")
    for path in (name, *(each + name for each in beside), "../one.parquet"):
        with pytest.raises(UserError, match=r"is one part of a result; .*avg-5.json stands for"):
            read_results(path)


def test_finished_parts_with_unlike_columns(tmp_path):
    """What the first lacks goes, and what another lacks is empty."""
    first = pa.table({"uuid": ["a", "b"], "relation": ["capital", "capital"]})
    second = pa.table({"uuid": ["c", "d"], "other": [1, 2]})
    paths = [tmp_path / name for name in ("first.parquet", "second.parquet")]
    for path, table in zip(paths, (first, second), strict=True):
        pa.parquet.write_table(table, path)
    tables = _FinishedPart(paths, first.schema, 3, {}, {}).tables()
    assert pa.concat_tables(tables).to_pydict() == {
        "uuid": ["a", "b", "c"],
        "relation": ["capital", "capital", None],
    }
