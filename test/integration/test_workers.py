"""Workers on Ray: the same answers as one process gives, whatever dies. All tests share a Ray."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from small import run_script

import flex_attention_generate
import generate
import paraphrase
from self_ensemble import Ensemble
from self_ensemble.data import load_dataset
from self_ensemble.data.result_files import read_manifest
from self_ensemble.experiment.journal import Journal
from self_ensemble.methods.logit_fusion import LOGIT_METHODS, LogitMethod
from self_ensemble.methods.prompt_by_prompt import LogitFusion
from self_ensemble.system.errors import UserError
from self_ensemble.workers import config, keeper, loading, pool
from self_ensemble.workers.cluster import connected

ROOT = Path(__file__).resolve().parents[2]
# Of a paraphrase, so that a method in a worker knows a question when it sees it.
DEADLY = 0.125


class Killed(BaseException):
    """Ends a run where it stands."""


@pytest.fixture(scope="module", autouse=True)
def cluster():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the workers has
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 2)
        with connected(None) as cluster:
            yield cluster
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def asked():
    return [record.paraphrases[:3] for record in load_dataset("demo", max_samples=24).records]


@pytest.fixture(scope="module")
def one():
    return Ensemble.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def two():
    with Ensemble.from_pretrained("demo", device="cpu", workers=2) as ensemble:
        yield ensemble


def told(capfd) -> str:
    return capfd.readouterr().err


def tables(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.suffix in (".csv", ".feather")}


# ---- the same answers ---------------------------------------------------------------------------


def test_a_run_that_goes_on_with_two_workers(two, tmp_path, monkeypatch):
    """Begun with one worker and killed: the same bytes as if it had not been, and who computed."""
    monkeypatch.setattr(loading, "worker_pool", lambda *args, **settings: nullcontext(two.engine))
    shared = ("--max_samples", 24, "--batch_size", 1, "--device", "cpu")
    alone, killed = ((*shared, "--output_dir", tmp_path / name) for name in ("alone", "killed"))
    assert run_script(flex_attention_generate, *alone) == 0
    add, count = Journal.add, iter(range(100))

    def add_some(*args):
        if next(count) == 2:
            raise Killed
        add(*args)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Journal, "add", add_some)
        run_script(flex_attention_generate, *killed)
    assert run_script(flex_attention_generate, *killed, "--workers", 2) == 0
    assert tables(tmp_path / "killed") == tables(tmp_path / "alone")
    [path] = (tmp_path / "killed").rglob("*.json")
    manifest = read_manifest(path.with_suffix(""))
    assert manifest["workers"] == 2
    assert manifest["computed_by"] == {manifest["device"]: 16}  # 8 by the one before
    assert [begun.get("workers") for begun in manifest["begun_with"]] == [None]
    first = read_manifest(next((tmp_path / "alone").rglob("*.json")).with_suffix(""))
    assert manifest["counts"] == first["counts"]


def test_scored_choices_and_paraphrases(two, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "worker_pool", lambda *args, **settings: nullcontext(two.engine))
    for name, script, flags in (
        ("choices", generate, ("--dataset", "demo_choices", "--task", "choices")),
        ("draws", paraphrase, ("--num_paraphrases", 1, "--max_new_tokens", 8)),
    ):
        found = []
        for workers in (1, 2):
            folder = tmp_path / name / str(workers)
            shared = ("--max_samples", 6, "--batch_size", 1, "--device", "cpu")
            where = (*flags, *shared, "--output_dir", folder, "--workers", workers)
            assert run_script(script, *where) == 0
            files = [path for path in folder.rglob("*") if path.suffix in (".csv", ".jsonl")]
            found.append({path.name: path.read_bytes() for path in files})
        assert found[0] and found[0] == found[1], name


def test_what_the_page_says_of_python(one, two, monkeypatch):
    monkeypatch.setattr(loading, "worker_pool", lambda *args, **settings: nullcontext(two.engine))
    page = (ROOT / "docs" / "scale.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)
    names: dict = {}
    exec(code, names)
    expected = one.generate([["Capital of France?", "France's capital is which city?"]])
    assert [answer.text for answer in names["answers"]] == [answer.text for answer in expected]


def test_streams_side_by_side(one, two, asked):
    """Two streams of one pool, taken in turns, and one that is left before its end."""
    streams = [two.stream(asked, batch_size=1), two.stream(asked, method="avg", batch_size=1)]
    left = two.stream(asked, batch_size=1)
    next(left)
    found = [[], []]
    for answers in zip(*streams, strict=True):
        for kept, answer in zip(found, answers, strict=True):
            kept.append(answer)
    for kept, method in zip(found, ("attention", "avg"), strict=True):
        kept.sort(key=lambda answer: answer.question)
        assert kept == one.generate(asked, method=method, batch_size=1)


# ---- faults -------------------------------------------------------------------------------------


def registered(monkeypatch, name: str, reduce, *, weighted=False):
    """A logit method of a user's own, which is sent to the workers."""
    monkeypatch.setitem(LOGIT_METHODS._entries, name, LogitMethod(reduce, weighted))


def processes(two) -> list[int]:
    asked = [slot.actor.where.remote() for slot in two.engine._slots]
    return [host.process for host in two.engine._ray.get(asked)]


def test_a_worker_that_is_killed(one, two, asked, capfd):
    [killed, other] = processes(two)

    def kill() -> None:
        time.sleep(0.1)
        os.kill(killed, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    answers = two.generate(asked * 4, batch_size=1)
    killer.join()
    assert [answer.question for answer in answers] == list(range(len(asked) * 4))
    expected = one.generate(asked * 4, batch_size=1)
    assert [(a.text, a.token_ids) for a in answers] == [(a.text, a.token_ids) for a in expected]
    two.generate(asked, batch_size=1)
    assert other in processes(two) and killed not in processes(two)
    assert "worker 1 has died (its process was killed or has crashed) and is started" in told(capfd)


def test_a_batch_that_kills(two, asked, capfd, monkeypatch):
    """It is named, all others are answered before, and the workers go on. Three workers are as two,
    and take longer to start."""
    monkeypatch.setattr(pool, "DEATHS_OF_A_BATCH", 2)

    def deadly(logits, weights):
        if (weights[:, 0] == DEADLY).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return logits.mean(1)

    registered(monkeypatch, "deadly", deadly, weighted=True)
    weights = [[1.0] * 3 for _ in asked]
    weights[7][0] = DEADLY
    stream = two.stream(asked, method=LogitFusion("deadly", weights=weights), batch_size=1)
    answered = []
    with pytest.raises(UserError, match=r"has killed 2 workers .*all others are answered") as error:
        for answer in stream:
            answered.append(answer.question)
    left = sorted(set(range(len(asked))) - set(answered))
    assert len(answered) == len(set(answered)) == len(asked) - 4 and 7 in left
    shown = str(error.value).split("'")[1]
    assert any(shown in paraphrase for index in left for paraphrase in asked[index])
    assert told(capfd).count("is set aside") == 1


def test_memory_that_runs_out(one, two, asked, monkeypatch, capfd):
    """A worker halves its own batches; what it answers is as without."""

    def hungry(logits, weights):
        if len(logits) > 2:
            raise torch.OutOfMemoryError("injected")
        return logits.mean(1)

    registered(monkeypatch, "hungry", hungry)
    passes, begin = [], two.engine.generate

    def generating(*args, **settings):
        passes.append(begin(*args, **settings))
        return passes[-1]

    monkeypatch.setattr(two.engine, "generate", generating)
    answers = two.generate(asked, method="hungry", batch_size=3)
    expected = one.generate(asked, method="avg")
    assert [(a.text, a.token_ids) for a in answers] == [(a.text, a.token_ids) for a in expected]
    assert passes[0].stats.out_of_memory in (1, 2) and passes[0].stats.largest_batch == 2
    assert "out of memory with 3 questions at a time: halved" in told(capfd)
    for slot in two.engine._slots:
        slot.max_batch_size = None


def test_a_mistake_that_a_worker_finds(two, asked, monkeypatch):
    """It is the one sentence that one process would say; what is no mistake keeps its traceback."""
    registered(monkeypatch, "flat", lambda logits, weights: logits.mean((1, 2)))
    with pytest.raises(UserError, match=r"^a logit method must return scores of the shape"):
        two.generate(asked, method="flat")
    registered(monkeypatch, "faulty", lambda logits, weights: logits.nothing)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        two.generate(asked, method="faulty")


# ---- without Ray, without GPUs ------------------------------------------------------------------


@pytest.mark.parametrize("flags", [("--workers", "2"), ("--workers", "auto")])
def test_without_ray(flags, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    for script in (generate, flex_attention_generate, paraphrase):
        assert run_script(script, *flags, "--output_dir", tmp_path) == 2
        assert "needs Ray: pip install -r requirements-ray.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--workers", "0"), "'0' is neither auto nor a whole number above 0"),
        (("--ray_address", "auto"), "say how many workers answer there"),
        (("--workers", "3", "--device", "cpu"), "--workers 3: each takes a CPU"),
    ],
)
def test_mistakes_on_the_command_line(flags, message, capsys, tmp_path):
    assert run_script(generate, *flags, "--output_dir", tmp_path) == 2
    assert message in capsys.readouterr().err


def test_auto_without_gpus_is_this_process(tmp_path, capsys):
    flags = ("--workers", "auto", "--device", "cpu", "--max_samples", 2)
    assert run_script(generate, *flags, "--output_dir", tmp_path) == 0
    assert "so one worker, in this process" in capsys.readouterr().err


# ---- nothing stays behind -----------------------------------------------------------------------


def test_the_keeper(tmp_path):
    """Once its standard input ends, what has a file of the folder open is killed, and no other."""
    folder, other = tmp_path / "ray", tmp_path / "ray-other"
    sleepers = []
    for each in (folder, other):
        each.mkdir()
        with open(each / "log", "w") as log:
            sleepers.append(subprocess.Popen(["sleep", "60"], stdout=log))
    kept = subprocess.Popen([sys.executable, keeper.__file__, str(folder)], stdin=subprocess.PIPE)
    time.sleep(0.2)
    assert folder.exists() and sleepers[0].poll() is None
    kept.stdin.close()
    assert kept.wait(10) == 0
    assert sleepers[0].wait(1) == -signal.SIGKILL and not folder.exists()
    assert sleepers[1].poll() is None and other.exists()
    sleepers[1].kill()
    sleepers[1].wait()


@pytest.mark.slow
def test_kills(tmp_path):
    """A worker, a driver and a host, killed at random; see benchmark/kill_workers.py."""
    command = [sys.executable, ROOT / "benchmark" / "kill.py", "--workers", "2"]
    done = subprocess.run(
        [*command, "--runs", "3", "--questions", "8"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "| all | 3 | " in done.stdout and done.stdout.endswith(" | 3 |\n")
