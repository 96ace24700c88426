"""A run that was killed, broken off, doubled or extended ends as one that was left alone."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small import INSTRUCTION, QUESTIONS, run_script, write_jsonl

import flex_attention_generate
import generate
from self_ensemble.data.result_files import read_manifest, read_results
from self_ensemble.experiment import journal
from self_ensemble.generation import batching
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.forward import Forward
from self_ensemble.system import files, lock
from self_ensemble.system.errors import UserError

pytestmark = pytest.mark.usefixtures("models_kept")

ROOT = Path(__file__).parents[2]
RUNS = {
    "attention": (flex_attention_generate, []),
    "avg": (generate, []),
    "weighted_avg": (generate, ["--method", "weighted_avg"]),
    "per_prompt": (generate, ["--method", "per_prompt"]),
    "vote": (generate, ["--method", "vote"]),
    "choices": (flex_attention_generate, ["--task", "choices"]),
    "weighted choices": (generate, ["--method", "weighted_avg", "--task", "choices"]),
    "choices of each": (generate, ["--method", "per_prompt", "--task", "choices"]),
    "stopped": (generate, ["--method", "per_prompt", "--stop", "ir", "--stop", "a"]),
    "drawn": (flex_attention_generate, ["--temperature", "1.5", "--stop", "none"]),
    "drawn vote": (generate, ["--method", "vote", "--temperature", "2", "--sample_seed", "3"]),
}
# Of which --num_paraphrases is no flag.
OF_ONE_WORDING = {
    "self_consistency": (generate, ["--method", "self_consistency", "--samples", "3"]),
}
RUNS |= OF_ONE_WORDING
LATER_RUNS = ("choices", "stopped", "drawn", "drawn vote", "self_consistency")
PASSES = {"weighted_avg": 2, "weighted choices": 2}
SUFFIXES = (".csv", ".feather", ".json")


class Killed(BaseException):
    """Ends a run where it stands; no `except` of ours sees it, but `finally` does.

    benchmark/kill.py kills for real.
    """


@pytest.fixture(autouse=True, scope="module")
def one_filling():
    """Seven questions, two at a time, are four batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "FILLINGS", 1)
        yield


@pytest.fixture(scope="module")
def with_choices(tmp_path_factory):
    """The file of questions, each with choices of unlike lengths."""
    rows = [row | {"choices": [*row["answers"], "the city of x", "a"]} for row in QUESTIONS]
    return write_jsonl(tmp_path_factory.mktemp("choices") / "capitals.jsonl", rows)


@pytest.fixture
def command(small, with_choices):
    """The command line of a run into a folder, in batches of two of seven questions."""

    def command(folder: Path, *argv) -> list[str]:
        scores = "choices" in argv
        common = (
            *("--dataset", with_choices if scores else small.questions),
            *("--model", small.folder, "--output_dir", folder),
            *("--instruction", INSTRUCTION),
            *(() if "self_consistency" in argv else ("--num_paraphrases", 3)),
            *(() if scores else ("--max_new_tokens", 4)),
            *("--batch_size", 2, *argv),
        )
        return [str(part) for part in common]

    return command


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    """Of each run, the bytes of its table as an undisturbed run writes them."""
    made: dict[str, tuple] = {}

    def undisturbed(name, argv):
        if name not in made:
            folder = tmp_path_factory.mktemp("undisturbed")
            assert run_script(RUNS[name][0], *argv(folder, *RUNS[name][1])) == 0
            made[name] = tables_in(folder), manifest_in(folder)
        return made[name]

    return undisturbed


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def tables_in(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".csv", ".feather")
    }


def manifest_in(folder: Path) -> dict:
    """Without what an interruption may change: how long it took."""
    (path,) = folder.rglob("*.json")
    return {name: value for name, value in read_manifest(path).items() if name != "seconds"}


def journal_in(folder: Path) -> Path:
    (path,) = folder.rglob("*.journal")
    return path


def kill_at_call(monkeypatch, owner, name: str, nth: int, *, after: bool):
    """The nth call of a function ends the run, before or after it did its work."""
    real, calls = getattr(owner, name), 0

    def call(*args, **settings):
        nonlocal calls
        calls += 1
        if calls == nth and not after:
            raise Killed
        try:
            return real(*args, **settings)
        finally:
            if calls == nth:
                raise Killed

    monkeypatch.setattr(owner, name, call)


def interrupt(monkeypatch, script, argv, nth, *, after=True, owner=journal.Journal, name="add"):
    """Whether the run got as far as the nth call, where it was killed."""
    with monkeypatch.context() as patch:
        kill_at_call(patch, owner, name, nth, after=after)
        try:
            assert run_script(script, *argv) == 0
        except Killed:
            return True
    return False


# ---- killed and started again ---------------------------------------------------------------


# Before a batch is kept the journal is as it was after the one before: one run of each script, and
# one of two passes, show that.
@pytest.mark.parametrize(
    ("name", "after"),
    [(name, True) for name in RUNS] + [(name, False) for name in ("attention", "weighted_avg")],
)
def test_killed_at_any_batch(command, undisturbed, tmp_path, monkeypatch, name, after):
    script, method = RUNS[name]
    expected = undisturbed(name, command)
    batches = 0
    while True:
        folder = tmp_path / str(batches)
        argv = command(folder, *method)
        if not interrupt(monkeypatch, script, argv, batches + 1, after=after):
            break
        batches += 1
        assert (batches + after > 1) == any(folder.rglob("*.journal"))
        assert run_script(script, *argv) == 0
        assert (tables_in(folder), manifest_in(folder)) == expected
        assert len(names_in(folder)) == 3, names_in(folder)
    assert batches == 4 * PASSES.get(name, 1)


# How often an undisturbed run of each makes the call, at least.
CALLS = {"fsync": 10, "replace": 4, "unlink": 5}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("first", [0, 3])
def test_killed_at_any_file_operation(
    command, undisturbed, tmp_path, monkeypatch, capsys, call, first
):
    """Killed at its nth such call, then let alone, for every n; also while it extends a file."""
    kills = 0
    while True:
        folder = tmp_path / str(kills)
        if first:
            assert run_script(generate, *command(folder, "--max_samples", first)) == 0
        argv = command(folder)
        if not interrupt(monkeypatch, generate, argv, kills + 1, owner=os, name=call):
            break
        kills += 1
        capsys.readouterr()
        assert run_script(generate, *argv) == 0, capsys.readouterr().err
        assert len(names_in(folder)) == 3, names_in(folder)
        if not first:
            assert (tables_in(folder), manifest_in(folder)) == undisturbed("avg", command)
    assert kills >= CALLS[call] - 2 * bool(first)
    last = tables_in(folder)
    for number in range(kills):
        assert tables_in(tmp_path / str(number)) == last


def test_a_batch_is_on_the_disk_before_the_next_begins(command, tmp_path, monkeypatch):
    """Synced with its last byte, and not only written."""
    fsync, add = os.fsync, journal.Journal.add
    synced, kept = {}, []

    def noted(descriptor):
        fsync(descriptor)
        state = os.fstat(descriptor)
        synced[state.st_ino] = state.st_size

    def add_and_look(self, *args):
        add(self, *args)
        state = self.path.stat()
        assert synced.get(state.st_ino) == state.st_size == self.size
        kept.append(state.st_size)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(journal.Journal, "add", add_and_look)
    assert run_script(generate, *command(tmp_path)) == 0
    assert len(kept) == 4 and kept == sorted(set(kept))


def test_answered_batches_are_not_answered_again(command, tmp_path, monkeypatch, capsys):
    argv = command(tmp_path)
    assert interrupt(monkeypatch, generate, argv, 3)
    answered = []
    real = Engine.generate

    def generate_batches(self, request, *, batches, **settings):
        answered.extend(batches)
        return real(self, request, batches=batches, **settings)

    monkeypatch.setattr(Engine, "generate", generate_batches)
    capsys.readouterr()
    assert run_script(generate, *argv) == 0
    assert len(answered) == 1 and len(answered[0]) == 1  # 2 + 2 + 2 were there
    assert "avg: 6 of 7 questions were answered before" in capsys.readouterr().err


def test_another_batch_size_plans_what_is_left_anew(command, undisturbed, tmp_path, monkeypatch):
    assert interrupt(monkeypatch, generate, command(tmp_path), 2)
    assert run_script(generate, *command(tmp_path, "--batch_size", 1)) == 0
    manifest = manifest_in(tmp_path)
    assert manifest["counts"]["largest_batch"] == 2
    assert [begun["batch_size"] for begun in manifest["begun_with"]] == [2]
    tables, _ = undisturbed("avg", command)
    (tmp_path / "undisturbed.csv").write_bytes(tables["avg-3.csv"])
    generations = [read_results(path)["generation"].tolist() for path in tmp_path.rglob("*.csv")]
    assert len(generations) == 2 and generations[0] == generations[1]


def test_what_computed_it_is_told_where_it_changed(command, tmp_path, monkeypatch):
    argv = command(tmp_path)
    assert interrupt(monkeypatch, generate, argv, 2)
    monkeypatch.setattr(
        "self_ensemble.generation.patched_model.describe_device", lambda device: "another device"
    )
    assert run_script(generate, *argv) == 0
    manifest = manifest_in(tmp_path)
    assert manifest["device"] == "another device"
    [begun] = manifest["begun_with"]
    assert re.fullmatch(r"cpu, \S+, 1 threads", begun["device"])


def test_a_halved_batch_stays_halved(command, tmp_path, monkeypatch):
    """Batch size after memory ran out is part of what a killed run goes on with."""
    real = Forward.fused

    def fused(self, ids, positions):
        if len(ids) > 3:  # rows: the paraphrases of more than one question
            raise torch.OutOfMemoryError("injected")
        return real(self, ids, positions)

    monkeypatch.setattr(Forward, "fused", fused)
    argv = [command(tmp_path / name) for name in ("undisturbed", "killed", "elsewhere")]
    assert run_script(generate, *argv[0]) == 0
    for killed in argv[1:]:
        assert interrupt(monkeypatch, generate, killed, 2)
    assert run_script(generate, *argv[1]) == 0
    expected = manifest_in(tmp_path / "undisturbed")
    assert expected["counts"]["out_of_memory"] == 1
    assert manifest_in(tmp_path / "killed") == expected
    assert tables_in(tmp_path / "killed") == tables_in(tmp_path / "undisturbed")
    # Another device has other memory.
    monkeypatch.setattr(
        "self_ensemble.generation.patched_model.describe_device", lambda device: "another device"
    )
    assert run_script(generate, *argv[2]) == 0
    assert manifest_in(tmp_path / "elsewhere")["counts"]["out_of_memory"] == 2


# ---- a damaged, foreign or unwritable journal -----------------------------------------------


def test_a_journal_cut_short_anywhere(command, undisturbed, tmp_path, monkeypatch, capsys):
    argv = command(tmp_path)
    assert interrupt(monkeypatch, generate, argv, 3)
    path = journal_in(tmp_path)
    whole = path.read_bytes()
    lines = [match.end() for match in re.finditer(b"\n", whole)]
    head = lines[1]  # what it is, and of which run
    cuts = {0, 5, len(journal.FIRST_LINE), head - 1, head, *lines, *(end - 1 for end in lines)}
    for cut in sorted(cuts | set(range(7, len(whole), len(whole) // 10))):
        path.write_bytes(whole[:cut])
        capsys.readouterr()
        code = run_script(generate, *argv)
        err = capsys.readouterr().err
        if cut < head:
            assert (code, err.count("\n")) == (2, 1) and str(path) in err, err
            assert path.read_bytes() == whole[:cut]
            continue
        assert code == 0, err
        if cut > lines[3]:  # behind the plan: batches follow
            assert ("in the middle of a batch" in err) == (cut not in lines)
        assert (tables_in(tmp_path), manifest_in(tmp_path)) == undisturbed("avg", command)
        for name in path.parent.iterdir():
            name.unlink()


def refused(capsys, script, argv) -> str:
    capsys.readouterr()
    assert run_script(script, *argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"my own notes\n", "no journal of an interrupted run"),
        (b"\xff\x00" * 500, "no journal of an interrupted run"),
        (b"self-ensemble journal 2\n", "another version"),
        (journal.FIRST_LINE + b"00000000 {}\n", "holds no answer"),
    ],
)
def test_a_foreign_journal_is_left_alone(command, tmp_path, capsys, content, reason):
    argv = command(tmp_path)
    path = tmp_path / "capitals" / "tiny-llama" / "avg-3.journal"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    err = refused(capsys, generate, argv)
    assert reason in err and str(path) in err and "--overwrite" in err
    assert path.read_bytes() == content and names_in(tmp_path) == [path.name]
    assert run_script(generate, *argv, "--overwrite") == 0
    assert len(names_in(tmp_path)) == 3


def test_a_journal_damaged_in_the_middle(command, tmp_path, monkeypatch, capsys):
    argv = command(tmp_path)
    assert interrupt(monkeypatch, generate, argv, 3)
    path = journal_in(tmp_path)
    lines = path.read_bytes().split(b"\n")
    lines[4] = lines[4].replace(b"pass", b"pasS")
    path.write_bytes(b"\n".join(lines))
    assert "damaged in line 5" in refused(capsys, generate, argv)


def test_the_journal_of_another_run(command, tmp_path, monkeypatch, capsys):
    argv = command(tmp_path)
    assert interrupt(monkeypatch, generate, argv, 2)
    before = journal_in(tmp_path).read_bytes()
    err = refused(capsys, generate, [*argv, "--max_new_tokens", "3"])
    assert "max_new_tokens is 4 there and 3 here; --overwrite or another --output_dir" in err
    assert journal_in(tmp_path).read_bytes() == before
    assert run_script(generate, *argv) == 0


@pytest.mark.parametrize("nth", range(1, 7))
@pytest.mark.parametrize("name", ["attention", "weighted_avg"])
def test_a_full_disk_loses_nothing(command, undisturbed, tmp_path, monkeypatch, capsys, name, nth):
    script, method = RUNS[name]
    argv = command(tmp_path, *method)
    real, calls = os.fsync, 0

    def fsync(descriptor):
        nonlocal calls
        calls += 1
        if calls > nth:  # and stays full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", fsync)
        assert "No space left on device" in refused(capsys, script, argv)
    kept = [journal.Journal.read(path.with_suffix("")) for path in tmp_path.rglob("*.journal")]
    if nth > 2:  # the two folders, then the journal's first lines
        assert len(kept) == 1 and kept[0].answered
    assert not any(name.startswith(".") for name in names_in(tmp_path))
    assert run_script(script, *argv) == 0
    assert (tables_in(tmp_path), manifest_in(tmp_path)) == undisturbed(name, command)


def test_what_a_killed_process_left_under_temporary_names_goes(command, tmp_path):
    folder = tmp_path / "capitals" / "tiny-llama"
    folder.mkdir(parents=True)
    ours = [".avg-3.feather.17.tmp", ".avg-3.journal.4242.tmp"]
    others = [".avg-30.feather.17.tmp", ".avg-3.feather.tmp", "avg-3.txt"]
    for name in ours + others:
        (folder / name).write_text("")
    assert run_script(generate, *command(tmp_path)) == 0
    assert sorted(set(names_in(tmp_path)) & {*ours, *others}) == sorted(others)


# ---- extended -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "attention",
        "weighted_avg",
        "per_prompt",
        "choices",
        "stopped",
        "drawn",
        "drawn vote",
        *OF_ONE_WORDING,
    ],
)
def test_a_larger_max_samples_answers_only_the_rest(
    command, undisturbed, tmp_path, monkeypatch, name
):
    script, method = RUNS[name]
    assert run_script(script, *command(tmp_path, *method, "--max_samples", 3)) == 0
    first = read_results(next(tmp_path.rglob("*.feather"))).to_dict("records")
    tokens = manifest_in(tmp_path)["counts"]["decoded_tokens"]
    assert interrupt(monkeypatch, script, command(tmp_path, *method), 1)
    assert run_script(script, *command(tmp_path, *method)) == 0
    rows = read_results(next(tmp_path.rglob("*.feather"))).to_dict("records")
    assert rows[: len(first)] == first
    manifest = manifest_in(tmp_path)
    assert manifest["num_questions"] == 7 and manifest["extends"]["num_questions"] == 3
    tables, whole = undisturbed(name, command)
    again = Path(tmp_path / "again.csv")
    again.write_bytes(next(content for name, content in tables.items() if ".csv" in name))
    assert [row["generation"] for row in rows] == read_results(again)["generation"].tolist()
    assert manifest["counts"]["decoded_tokens"] + tokens == whole["counts"]["decoded_tokens"]
    assert len(names_in(tmp_path)) == 4  # with again.csv


def test_an_extended_file_loses_its_lemmas_and_says_so(command, tmp_path, capsys):
    assert run_script(generate, *command(tmp_path, "--max_samples", 3)) == 0
    assert run_script(generate, *command(tmp_path, "--max_samples", 3, "--lemmaize")) == 0
    assert "lemmatizer" in manifest_in(tmp_path)
    capsys.readouterr()
    assert run_script(generate, *command(tmp_path)) == 0
    assert "lemmas that were there will go" in capsys.readouterr().err
    table = read_results(next(tmp_path.rglob("*.feather")))
    assert len(table) == 7 and "predict_lemma" not in table
    manifest = manifest_in(tmp_path)
    assert "lemmatizer" not in manifest and "lemmatizer" not in manifest["extends"]
    assert run_script(generate, *command(tmp_path, "--lemmaize")) == 0
    assert len(read_results(next(tmp_path.rglob("*.csv")))["predict_lemma"]) == 7


def test_extended_after_lemmas_were_added_to_half_of_the_files(command, tmp_path, monkeypatch):
    """Killed between table and manifest, --lemmaize leaves columns that no manifest tells of."""
    lemmaize = command(tmp_path, "--max_samples", 3, "--lemmaize")
    assert run_script(generate, *command(tmp_path, "--max_samples", 3)) == 0
    assert interrupt(monkeypatch, generate, lemmaize, 1, owner=os, name="replace")
    assert "lemmatizer" not in manifest_in(tmp_path)
    assert run_script(generate, *command(tmp_path)) == 0
    assert "predict_lemma" not in read_results(next(tmp_path.rglob("*.feather")))


def test_a_damaged_file_is_told_before_anything_is_answered(command, tmp_path, capsys):
    assert run_script(generate, *command(tmp_path, "--max_samples", 3)) == 0
    path = next(tmp_path.rglob("*.feather"))
    path.write_bytes(path.read_bytes()[:100])
    assert f"{path} is not a whole feather file" in refused(capsys, generate, command(tmp_path))
    assert not any(tmp_path.rglob("*.journal"))


def test_a_name_that_is_not_utf8(small, command, tmp_path):
    odd = tmp_path / os.fsdecode(b"q\xff.jsonl")
    shutil.copy(small.questions, odd)
    assert run_script(generate, *command(tmp_path / "out", "--dataset", odd)) == 0
    assert len(names_in(tmp_path / "out")) == 3


def test_a_finished_file_that_is_not_what_its_manifest_says_is_not_extended(
    command, tmp_path, capsys
):
    assert run_script(generate, *command(tmp_path, "--max_samples", 3)) == 0
    (path,) = tmp_path.rglob("*.json")
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"num_questions": 4}))
    assert "does not hold the 4 questions" in refused(capsys, generate, command(tmp_path))


def test_fewer_questions_than_an_interrupted_run(command, tmp_path, monkeypatch, capsys):
    assert interrupt(monkeypatch, generate, command(tmp_path), 2)
    err = refused(capsys, generate, command(tmp_path, "--max_samples", 3))
    assert "a run over 7 questions, and here are 3" in err
    assert run_script(generate, *command(tmp_path)) == 0


def test_more_questions_than_an_interrupted_run(command, undisturbed, tmp_path, monkeypatch):
    assert interrupt(monkeypatch, generate, command(tmp_path, "--max_samples", 5), 2)
    assert run_script(generate, *command(tmp_path)) == 0
    assert manifest_in(tmp_path)["num_questions"] == 7
    tables, _ = undisturbed("avg", command)
    csv = next(tmp_path.rglob("*.csv"))
    other = tmp_path / "undisturbed.csv"
    other.write_bytes(tables["avg-3.csv"])
    columns = ["uuid", "generation", "truncated"]
    assert read_results(csv)[columns].equals(read_results(other)[columns])


@pytest.mark.parametrize("flag", [["--overwrite"], []])
def test_overwrite_keeps_the_old_result_until_the_new_one_is_whole(
    command, undisturbed, tmp_path, monkeypatch, capsys, flag
):
    argv = command(tmp_path, "--max_new_tokens", 2)
    assert run_script(generate, *argv) == 0
    before = tables_in(tmp_path)
    assert interrupt(monkeypatch, generate, command(tmp_path, "--overwrite"), 3)
    assert tables_in(tmp_path) == before
    capsys.readouterr()
    assert interrupt(monkeypatch, generate, command(tmp_path, "--overwrite"), 1, after=False)
    assert "6 of 7 questions were answered before" in capsys.readouterr().err
    assert tables_in(tmp_path) == before
    assert run_script(generate, *command(tmp_path, *flag)) == 0
    assert tables_in(tmp_path) == undisturbed("avg", command)[0]
    assert len(names_in(tmp_path)) == 3


def test_overwrite_with_fewer_questions_begins_anew(command, tmp_path, monkeypatch):
    assert interrupt(monkeypatch, generate, command(tmp_path, "--overwrite"), 2)
    assert run_script(generate, *command(tmp_path, "--overwrite", "--max_samples", 3)) == 0
    assert manifest_in(tmp_path)["num_questions"] == 3
    assert len(names_in(tmp_path)) == 3


# ---- two at a time --------------------------------------------------------------------------


def test_the_second_of_two_runs_says_who_is_first(command, tmp_path, capsys):
    stem = tmp_path / "capitals" / "tiny-llama" / "avg-3"
    with lock.held(stem):
        # Whatever it is that the first run has written so far.
        stem.with_name("avg-3.journal").write_text("being written")
        err = refused(capsys, generate, command(tmp_path))
        stem.with_name("avg-3.journal").unlink()
        assert f"{stem} is being written by another run (process {os.getpid()} on " in err
        # Another method writes another file.
        assert run_script(generate, *command(tmp_path, "--method", "max")) == 0
    assert run_script(generate, *command(tmp_path)) == 0
    with lock.held(stem):
        assert "being written" in refused(capsys, generate, command(tmp_path, "--lemmaize"))
        assert run_script(generate, *command(tmp_path)) == 0  # finished: nothing is written
    assert not any(name.endswith(".lock") for name in names_in(tmp_path))


def test_a_lock_that_is_let_go_while_another_waits_is_not_taken_twice(tmp_path, monkeypatch):
    """Between opening and locking the file may go away; what was locked then has no name."""
    stem, real = tmp_path / "avg-5", lock.fcntl.flock
    first, taken = lock.held(stem), []
    first.__enter__()

    def flock(descriptor, how):
        if not taken:
            taken.append(True)
            first.__exit__(None, None, None)
        real(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.held(stem):
        with pytest.raises(UserError, match="being written"), lock.held(stem):
            pass
        assert names_in(tmp_path) == ["avg-5.lock"]
    assert names_in(tmp_path) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    path = str(tmp_path / "avg-5")
    program = (
        "import os\nfrom self_ensemble.system import lock\n"
        f"with lock.held({path!r}): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL and names_in(tmp_path) == ["avg-5.lock"]
    with lock.held(tmp_path / "avg-5"):
        pass
    assert names_in(tmp_path) == []


def test_the_lock_that_a_killed_process_left_is_swept_up(command, tmp_path):
    assert run_script(generate, *command(tmp_path)) == 0
    path = next(tmp_path.rglob("*.json")).with_suffix(".lock")
    path.write_text("{}")
    with lock.held(path.with_suffix("")):
        assert run_script(generate, *command(tmp_path)) == 0
        assert path.exists()
    path.write_text("{}")
    assert run_script(generate, *command(tmp_path)) == 0
    assert not path.exists()


# ---- Ctrl-C ---------------------------------------------------------------------------------

# A shell lets its background jobs ignore it, and what they start.
HEARS_CTRL_C = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
BUSY = {
    "python": "while True: pass",
    "one long call": "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",
    "a library that swallows it": """
while True:
    try:
        while True: pass
    except BaseException: pass
""",
}


def interrupted(program: str, said: str) -> tuple[int, str]:
    """Status and stderr of a program that gets Ctrl-C once it has said something."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == f"{said}\n"
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 2
    return process.returncode, err


@pytest.mark.parametrize("busy", BUSY)
def test_ctrl_c_ends_within_two_seconds(busy):
    body = f"def main(args):\n    print('busy', flush=True)\n{indented(BUSY[busy])}"
    head = (
        "from self_ensemble.cli import parser as cli\n"
        f"from self_ensemble.system import interrupts\n{HEARS_CTRL_C}"
        "interrupts.advise(lambda: 'go on')\n"
    )
    program = f"{head}{body}\ncli.run(main, None)"
    status, err = interrupted(program, "busy")
    assert (status, err) == (130, "interrupted: go on\n")


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.strip("\n").splitlines())


def test_ctrl_c_in_a_run_says_how_to_go_on(command, tmp_path):
    argv = command(tmp_path / "out", "--batch_size", 1)
    program = (
        f"import sys, time, generate\nfrom self_ensemble.cli import parser as cli\n"
        f"from self_ensemble.experiment import journal\n{HEARS_CTRL_C}"
        "add = journal.Journal.add\n"
        "def slow(*args):\n"
        "    add(*args)\n"
        "    print('added', flush=True)\n"
        "    time.sleep(60)\n"
        "journal.Journal.add = slow\n"
        f"cli.run(generate.main, generate.parse_args({argv!r}))\n"
    )
    status, err = interrupted(program, "added")
    path = journal_in(tmp_path)
    expected = f"interrupted: what was answered is kept in {path}; the same command goes on\n"
    assert (status, err) == (130, expected)
    assert names_in(tmp_path) == [path.name]
    assert run_script(generate, *argv) == 0
    shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("argv", [[], ["--overwrite"]])
def test_ctrl_c_before_any_answer(command, tmp_path, monkeypatch, capsys, argv):
    def loaded_engine(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("self_ensemble.generation.loading.loaded_engine", loaded_engine)
    monkeypatch.setattr(os, "_exit", sys.exit)  # which would end the tests too
    assert run_script(generate, *command(tmp_path, *argv)) == 130
    assert capsys.readouterr().err == (
        "interrupted: nothing was answered yet; the same command begins again\n"
    )
    assert names_in(tmp_path) == []
