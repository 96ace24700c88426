"""Names stay in their folder, files are whole or absent, tables survive the round trip."""

import errno
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from writing import make_frame, make_manifest

from self_ensemble.data import result_files as results
from self_ensemble.data.result_files import (
    count_finished,
    fingerprint,
    read_manifest,
    read_results,
    result_file,
    safe_name,
    write_results,
)
from self_ensemble.system import files
from self_ensemble.system.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
# What breaks tables: quotes, separators, line ends of every kind, other scripts, JSON look-alikes.
TEXTS = [
    "",
    "Paris",
    'he said "yes", twice',
    "two\nlines",
    "carriage\rreturn",
    "\r\n",
    " leading and trailing ",
    "a,b;c\td",
    "Ñandú — 東京 🗼 \u2028 e\u0301",
    "None",
    "NA",
    "null",
    "[]",
    '["a"]',
    "1912",
    "-0.5",
    "True",
    "\\n \\ '",
]


def names_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3.2_3b_it", "llama3.2_3b_it"),
        ("meta-llama/Llama-3.2-3B", "meta-llama--Llama-3.2-3B"),
        ("/data/models/lab-14m", "lab-14m"),
        ("../shared/models/lab-14m/", "lab-14m"),
        ("./lab-14m", "lab-14m"),
        ("my questions (v2)", "my_questions__v2_"),
        ("質問", "質問"),
        ("", "_"),
        ("/", "_"),
        (".hidden", "_hidden"),
        ("C:\\models\\m", "C_--models--m"),
    ],
)
def test_safe_name(name, expected):
    assert safe_name(name) == expected


def test_long_names_that_differ_at_the_end_stay_different():
    assert safe_name("m" * 300 + "1") != safe_name("m" * 300 + "2")


def test_a_dot_in_a_stem_is_no_suffix():
    assert result_file("out/avg-0.5", ".csv") == Path("out/avg-0.5.csv")


# Identity


def test_fingerprint_is_of_the_content():
    value = {"a": (1, 2), "b": {"c": "é", "d": None}}
    assert fingerprint(value) == fingerprint({"b": {"d": None, "c": "é"}, "a": [1, 2]})
    assert fingerprint(value) != fingerprint({"a": [2, 1], "b": {"c": "é", "d": None}})
    assert len(fingerprint("")) == 64


def test_a_finished_result_says_how_many_it_holds(tmp_path):
    stem = tmp_path / "avg-5"
    write_results(stem, make_frame(["a", "b", "c"]), make_manifest(weights=(1.0, 2.0)))
    identity = {"weights": [1.0, 2.0], "n": 5, "method": "avg"}  # as JSON gives it back
    assert count_finished(stem, identity) == 3


def test_without_manifest_or_table_a_result_is_unfinished(tmp_path):
    stem = tmp_path / "avg-5"
    identity = make_manifest()["identity"]
    assert count_finished(stem, identity) == 0
    for suffix in (".json", ".feather"):
        write_results(stem, make_frame(["a", "b", "c"]), make_manifest())
        assert count_finished(stem, identity) == 3
        result_file(stem, suffix).unlink()
        assert count_finished(stem, identity) == 0


def test_another_identity_is_an_error_that_names_every_difference(tmp_path):
    stem = tmp_path / "avg-5"
    write_results(stem, make_frame(["a"]), make_manifest(1, dtype="float32", old="gone"))
    here = {"method": "max", "n": 5, "dtype": "bfloat16", "new": None}
    with pytest.raises(UserError) as caught:
        count_finished(stem, here)
    message = str(caught.value)
    for phrase in (
        str(tmp_path / "avg-5.json"),
        'method is "avg" there and "max" here',
        'dtype is "float32" there and "bfloat16" here',
        'old is "gone" there and absent here',
        "new is absent there and null here",
        "--overwrite or another --output_dir",
    ):
        assert phrase in message
    assert "n is" not in message
    assert "\n" not in message


def test_long_values_are_shown_where_they_part(tmp_path):
    stem = tmp_path / "avg-5"
    write_results(stem, make_frame(["a"]), make_manifest(1, instruction="x" * 500 + "old" * 100))
    here = make_manifest(1, instruction="x" * 500 + "new" * 100)["identity"]
    with pytest.raises(UserError, match=r"xoldold.*xnewnew") as caught:
        count_finished(stem, here)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b'{"identity": ', b"[]", b"{}", b"\xff\xfe", b""])
def test_a_damaged_manifest_is_an_error(tmp_path, content):
    stem = tmp_path / "avg-5"
    write_results(stem, make_frame(["a"]), make_manifest())
    result_file(stem, ".json").write_bytes(content)
    with pytest.raises(UserError, match=r"avg-5\.json.*--overwrite or another --output_dir"):
        count_finished(stem, {})


def test_the_manifest_is_found_from_any_file_of_the_result(tmp_path):
    stem = tmp_path / "avg-0.5"
    assert read_manifest(stem) is None
    write_results(stem, make_frame(["a"]), make_manifest(1))
    for path in (stem, *(result_file(stem, s) for s in (".feather", ".csv", ".json"))):
        assert read_manifest(path) == make_manifest(1)


# Round trip


def as_jsonl(frame, path):
    plain = frame.astype(object).where(frame.notna(), None)
    rows = [json.dumps(row, ensure_ascii=False) for row in plain.to_dict("records")]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_tables_survive_the_round_trip(tmp_path):
    frame = make_frame(TEXTS)
    frame["predict_lemma"] = [text.split() for text in TEXTS]
    frame["answer_lemmas"] = [[text.split(), []] for text in TEXTS]
    frame["relation"] = ["P36", *[None] * (len(TEXTS) - 1)]
    stem = tmp_path / "avg-2"
    write_results(stem, frame, make_manifest(len(TEXTS)))
    read_results(f"{stem}.feather").to_parquet(tmp_path / "avg-2.parquet")
    as_jsonl(frame, tmp_path / "avg-2.jsonl")
    for suffix in (".feather", ".parquet", ".csv", ".jsonl"):
        back = read_results(result_file(stem, suffix))
        assert list(back.columns) == list(frame.columns)
        for name in frame.columns.drop("relation"):
            assert back[name].tolist() == frame[name].tolist(), (suffix, name)
        assert back["relation"][0] == "P36"
        assert not back["relation"][1], suffix  # a CSV cannot tell a missing text from an empty one
        assert back["logprob"].dtype == float
        assert back["truncated"].dtype == bool


def contains_array(value):
    if isinstance(value, list):
        return any(map(contains_array, value))
    return isinstance(value, (np.ndarray, tuple))


def test_lists_are_python_lists_also_where_arrays_or_tuples_went_in(tmp_path):
    frame = make_frame(["a", "b"])
    frame["answers"] = [np.array(["a", "A"], dtype=object), ("b",)]
    frame["answer_lemmas"] = [[np.array(["a"], dtype=object)], ((), ("b",))]
    write_results(tmp_path / "avg-2", frame, make_manifest())
    for suffix in (".feather", ".csv"):
        back = read_results(tmp_path / f"avg-2{suffix}")
        assert back["answers"].tolist() == [["a", "A"], ["b"]]
        assert back["answer_lemmas"].tolist() == [[["a"]], [[], ["b"]]]
        assert not any(contains_array(cell) for name in back for cell in back[name])


def test_columns_with_nothing_in_them_keep_their_types(tmp_path):
    frame = make_frame(["", ""])
    frame["answers"] = [[], []]
    frame["logprob"] = [None, float("-inf")]
    frame["relation"] = [None, None]
    write_results(tmp_path / "avg-2", frame, make_manifest())
    for suffix in (".feather", ".csv"):
        back = read_results(tmp_path / f"avg-2{suffix}")
        assert back["answers"].tolist() == [[], []]
        assert np.isnan(back["logprob"][0])
        assert back["logprob"][1] == float("-inf")


def test_columns_that_nobody_foresaw_pass_but_lists_must_be_known(tmp_path):
    frame = make_frame(["a"])
    write_results(tmp_path / "avg-2", frame.assign(confidence=[0.25]), make_manifest())
    assert read_results(tmp_path / "avg-2.feather")["confidence"].tolist() == [0.25]
    with pytest.raises(AssertionError, match="weights"):
        write_results(tmp_path / "avg-2", frame.assign(weights=[[1.0, 2.0]]), make_manifest())
    with pytest.raises(AssertionError, match="logprob"):
        write_results(tmp_path / "avg-2", frame.drop(columns="logprob"), make_manifest())


def test_the_same_table_gives_the_same_bytes(tmp_path):
    for stem in (tmp_path / "a", tmp_path / "b"):
        write_results(stem, make_frame(TEXTS).sample(frac=1, random_state=1), make_manifest())
    for suffix in (".feather", ".csv", ".json"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_what_cannot_be_read_is_one_sentence_with_the_path(tmp_path):
    cases = {
        "missing.feather": None,
        "text.feather": b"not arrow",
        "empty.feather": b"",
        "text.parquet": b"not parquet",
        "empty.csv": b"",
        "empty.jsonl": b"\n",
        "cut.csv": b'a,b\n"1","tw',
        "latin.csv": b"a,b\n\xe9,1\n",
        "ragged.csv": b"a,b\n1,2,3,4\n",
        "repr.csv": b"prediction,answers\nx,\"['a' 'b']\"\n",
        "broken.jsonl": b'{"a": 1}\n{"a": \n',
        "list.jsonl": b"[1]\n",
        "deep.jsonl": b"[" * 100_000,
        "other.txt": b"",
        "manifest.json": b"{}",
    }
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_results(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="row 1 is not a JSON list"):
        read_results(tmp_path / "repr.csv")
    with pytest.raises(UserError, match="line 2"):
        read_results(tmp_path / "broken.jsonl")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="folder"):
        read_results(tmp_path / "folder.csv")


# Whole or not at all


class Recorder:
    """Wraps the calls that change a folder: before each one it keeps what a crash would leave."""

    def __init__(self, monkeypatch, folder, snapshots):
        self.folder, self.snapshots, self.taken = folder, snapshots, 0
        for name in ("replace", "fsync", "unlink"):
            monkeypatch.setattr(results.os, name, self.before(getattr(os, name)))
        monkeypatch.setattr(Path, "unlink", self.before(Path.unlink))

    def before(self, call):
        def wrapped(*args, **kwargs):
            shutil.copytree(self.folder, self.snapshots / str(self.taken))
            self.taken += 1
            return call(*args, **kwargs)

        return wrapped


def version_of(path):
    """Which version a file is of; raises where it is neither the one nor the other, but a part."""
    if path.suffix == ".json":
        return json.loads(path.read_text())["identity"]["version"]
    frame = read_results(path)
    assert len(frame) == 50
    return frame["uuid"][0].split("-")[0]


def write_version(stem, version):
    write_results(stem, make_frame(["a"] * 50, version=version), make_manifest(version=version))


@pytest.mark.parametrize("old_is_there", [True, False])
def test_a_crash_between_any_two_steps_leaves_old_or_new_files_whole(
    tmp_path, monkeypatch, old_is_there
):
    folder, snapshots = tmp_path / "out", tmp_path / "snapshots"
    folder.mkdir()
    stem = folder / "avg-5"
    if old_is_there:
        write_version(stem, "old")
    with monkeypatch.context() as patch:
        recorder = Recorder(patch, folder, snapshots)
        write_version(stem, "new")
    seen = set()
    for i in range(recorder.taken):
        paths = [snapshots / str(i) / f"avg-5{suffix}" for suffix in (".feather", ".csv", ".json")]
        versions = [version_of(path) if path.exists() else None for path in paths]
        seen.add(tuple(versions))
        if versions[2] is not None:  # a manifest vouches for its table
            assert versions == [versions[2]] * 3, (i, versions)
    first = ("old", "old", "old") if old_is_there else (None, None, None)
    assert {first, ("new", "new", None), ("new", "new", "new")} <= seen
    assert [version_of(result_file(stem, s)) for s in (".feather", ".csv", ".json")] == ["new"] * 3
    assert names_in(folder) == ["avg-5.csv", "avg-5.feather", "avg-5.json"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("nth", range(3))
def test_a_failed_write_is_one_sentence_and_leaves_no_temporary_file(
    tmp_path, monkeypatch, call, nth
):
    stem = tmp_path / "avg-5"
    write_version(stem, "old")
    owner, count = (files, 0) if call == "open" else (results.os, 0)
    real = getattr(owner, call, open)

    def fail(*args, **kwargs):
        nonlocal count
        count += 1
        if count == nth + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, call, fail, raising=False)
        with pytest.raises(UserError, match=r"cannot write .*avg-5.*: No space left on device"):
            write_version(stem, "new")
    assert all(name.startswith("avg-5.") for name in names_in(tmp_path))
    versions = {path.suffix: version_of(path) for path in tmp_path.iterdir()}
    if call != "replace":  # the bytes could not be stored: nothing was touched
        assert versions == {".feather": "old", ".csv": "old", ".json": "old"}
    else:
        assert ".json" not in versions
    write_version(stem, "new")
    assert {version_of(path) for path in tmp_path.iterdir()} == {"new"}


def test_an_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_version(tmp_path / "avg-5", "new")
    assert names_in(tmp_path) == []


def test_a_disk_that_takes_no_more_bytes(tmp_path):
    """The real thing: the kernel refuses the write half-way (here for a limit on file size)."""
    script = f"""
import resource
from writing import make_frame, make_manifest
from self_ensemble.data.result_files import write_results
from self_ensemble.system.errors import UserError
frame = make_frame([str(i) * 50 for i in range(2000)])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    write_results({str(tmp_path / "avg-5")!r}, frame, make_manifest())
except UserError as error:
    print("refused:", error)
"""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'test/support'}",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"refused: cannot write {tmp_path / 'avg-5'}"), done.stderr
    assert "File too large" in done.stdout
    assert names_in(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "demo").write_text("a file where a folder should be")
    stem = tmp_path / "demo" / "model" / "avg-5"
    with pytest.raises(UserError, match=r"cannot write .*demo.*: "):
        write_version(stem, "new")
    assert names_in(tmp_path) == ["demo"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="Permission denied"):
        write_version(tmp_path / "avg-5", "new")


def test_files_get_the_permissions_that_the_user_asked_for(tmp_path):
    """Not the 0600 of a private temporary file: results are shared in groups."""
    mask = os.umask(0o022)
    try:
        write_version(tmp_path / "avg-5", "new")
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o644}
