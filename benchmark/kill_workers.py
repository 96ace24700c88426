"""Kills workers, their hosts and drivers at random moments, and compares what runs end with.

    python benchmark/kill.py --workers 2 --runs 100

Every run answers 40 questions of the demo, two at a time, with workers on Ray. What is killed, with
SIGKILL, at any time from the first worker's start on:

    worker  one or two processes of workers
    driver  the driver, which is started again by the same command
    host    the raylet of one of the two nodes of a simulated cluster, with the workers on it

The run must end by itself within two minutes, with the table of an undisturbed run of one worker,
byte for byte; then no process of it may run, and no folder or shared-memory file of it be left.
"""

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import kill

from self_ensemble.system.console import progress, say
from self_ensemble.system.errors import UserError
from self_ensemble.workers import keeper

# Of ten runs; hosts last, since no process may be forked off one that is connected to a cluster.
MOMENTS = ("worker", "driver", "host")
SHARES = (5, 3, 2)
LIMIT_SECONDS, SOON_SECONDS = 120.0, 5.0
SHARED_MEMORY = Path("/dev/shm")


def folders_of_ray(process: int) -> set[str]:
    """Those of a driver's own Ray, by the files that it has open."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/{process}/fd/{descriptor}")
                if "/se-ray-" in path:
                    found.add(path.partition("/session_")[0])
    return found


def workers_in(folder: str) -> list[int]:
    """Processes of workers, which Ray gives the name of their class."""
    found = []
    for process in keeper.processes_of(folder):
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{process}/cmdline").read_text()
            if title.startswith("ray::Worker"):
                found.append(process)
    return found


class Watched:
    """A run, and what of it may be killed. folder: of the Ray that it runs on, once it is known."""

    def __init__(self, child: kill.Child, folder: str | None = None):
        self.child, self.folder = child, folder
        self.due = time.monotonic() + LIMIT_SECONDS
        self.ended: bool | None = None

    def runs_on(self) -> bool:
        """Whether it has not ended. AssertionError after the limit."""
        if self.ended is None:
            ended, status = os.waitpid(self.child.process, os.WNOHANG)
            if ended:
                with self.child.said:
                    self.ended = kill.ended_well(self.child, status)
            elif time.monotonic() > self.due:
                os.kill(self.child.process, signal.SIGKILL)
                os.waitpid(self.child.process, 0)
                raise AssertionError(f"did not end within {LIMIT_SECONDS:.0f} s")
        return self.ended is None

    def wait(self, seconds: float = LIMIT_SECONDS) -> None:
        until = time.monotonic() + seconds
        while self.runs_on() and time.monotonic() < until:
            time.sleep(0.01)

    def workers(self) -> list[int]:
        """Waits for the first."""
        while self.runs_on():
            if self.folder is None:
                self.folder = next(iter(folders_of_ray(self.child.process)), None)
            elif found := workers_in(self.folder):
                return found
            time.sleep(0.02)
        return []


def start(case: kill.Case, folder: Path, workers: int, address: str | None) -> Watched:
    flags = (*case.flags, "--workers", str(workers))
    if address is None:
        return Watched(kill.start_warm(case_with(case, flags), folder, None))
    return Watched(kill.start_cold(case_with(case, (*flags, "--ray_address", address)), folder))


def case_with(case: kill.Case, flags: tuple[str, ...]) -> kill.Case:
    return kill.Case(case.script, flags, case.questions)


def tables(folder: Path) -> dict[str, bytes]:
    """Every file but the manifest, with its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    return {path.name: path.read_bytes() for path in files}


def check_nothing_left(watched: Watched, before: set[str]) -> None:
    due = time.monotonic() + SOON_SECONDS
    while True:
        left = [] if watched.folder is None else list(keeper.processes_of(watched.folder))
        shared = {path.name for path in SHARED_MEMORY.glob("plasma*")} - before
        there = watched.folder is not None and Path(watched.folder).exists()
        if not (left or shared or there):
            return
        if time.monotonic() > due:
            raise AssertionError(f"left behind: processes {left}, {shared}, {watched.folder}")
        time.sleep(0.05)


def kill_some(watched: Watched, moment: str, chance: random.Random, seconds: float) -> int:
    """At a random time. Returns how many were killed."""
    if not watched.workers():
        return 0
    count = 0
    for _ in range(chance.randint(1, 2) if moment == "worker" else 1):
        watched.wait(chance.uniform(0, seconds))
        if not watched.runs_on():
            break
        chosen = watched.child.process
        if moment == "worker":
            found = watched.workers()
            if not found:
                break
            chosen = chance.choice(found)
        with contextlib.suppress(ProcessLookupError):
            os.kill(chosen, signal.SIGKILL)
            count += 1
    return count


def one_run(
    case: kill.Case, moment: str, args, chance: random.Random, seconds: float, expected: dict
) -> int:
    before = {path.name for path in SHARED_MEMORY.glob("plasma*")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        watched = start(case, folder, args.workers, None)
        count = kill_some(watched, moment, chance, seconds)
        watched.wait()
        check_nothing_left(watched, before)
        if not watched.ended:
            watched = start(case, folder, args.workers, None)
            watched.workers()
            watched.wait()
            check_nothing_left(watched, before)
        check_tables(watched, folder, expected)
    return count


def check_tables(watched: Watched, folder: Path, expected: dict[str, bytes]) -> None:
    if not watched.ended:
        raise AssertionError("the last start did not end by itself")
    if tables(folder) != expected:
        raise AssertionError(f"ended with {', '.join(tables(folder))}, not as undisturbed")


@contextlib.contextmanager
def simulated_cluster() -> Iterator:
    """A head that holds one worker, on the loopback interface."""
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    os.environ.update(settings)
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="kill-", dir="/tmp") as folder:
        os.environ["RAY_TMPDIR"] = folder
        Path(folder, "ray").mkdir()
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        try:
            yield cluster
        finally:
            cluster.shutdown()


def one_run_on_hosts(
    cluster, case: kill.Case, args, chance: random.Random, seconds: float, expected: dict
) -> int:
    node = cluster.add_node(num_cpus=args.workers - 1)
    raylet = node.all_processes["raylet"][0].process.pid
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        watched = start(case, folder, args.workers, cluster.address)
        watched.folder = str(Path(cluster.head_node.get_session_dir_path()).resolve())
        killed = 0
        if watched.workers():
            watched.wait(chance.uniform(0, seconds))
            os.kill(raylet, signal.SIGKILL)
            killed = 1
        watched.wait()
        cluster.remove_node(node, allow_graceful=False)
        check_tables(watched, folder, expected)
    due = time.monotonic() + SOON_SECONDS
    while left := workers_in(watched.folder):
        if time.monotonic() > due:
            raise AssertionError(f"workers left behind: {left}")
        time.sleep(0.05)
    return killed


def moments(runs: int) -> list[str]:
    """In shares of ten, each kind together; of three runs one each."""
    if runs <= len(MOMENTS):
        return list(MOMENTS[:runs])
    counts = [share * runs // sum(SHARES) for share in SHARES]
    counts[0] += runs - sum(counts)
    return [moment for moment, count in zip(MOMENTS, counts, strict=True) for _ in range(count)]


def main(args) -> None:
    begun = time.monotonic()
    # All that a run imports, but for Ray: the forked ones need not.
    import pandas
    import torch
    from transformers import AutoTokenizer, LlamaForCausalLM

    from self_ensemble.experiment import run
    from self_ensemble.workers import loading

    assert pandas and AutoTokenizer and LlamaForCausalLM and run and loading
    importing = time.monotonic() - begun
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    chance = random.Random(args.seed)
    cases = [case for case in kill.cases(args.questions) if not case.finished]
    cases = cases[: max(1, args.runs // len(MOMENTS))]
    expected, seconds = [], []
    for case in cases:
        with tempfile.TemporaryDirectory() as name:
            begun = time.monotonic()
            kill.wait(kill.start_warm(case, Path(name), None))
            expected.append(tables(Path(name)))
        # Of a worker's life, which begins with the imports.
        seconds.append(importing + time.monotonic() - begun)
    say("imports and an undisturbed run: " + ", ".join(f"{s:.1f} s" for s in seconds))
    runs, equal, killed = Counter(), Counter(), Counter()
    planned = moments(args.runs)
    told = progress(args.runs, "killed and finished", "runs")
    with told as advance, contextlib.ExitStack() as on:
        cluster = None
        for number, moment in enumerate(planned):
            at = number % len(cases)
            given = cases[at], args, chance, seconds[at], expected[at]
            runs[moment] += 1
            try:
                if moment == "host":
                    cluster = cluster or on.enter_context(simulated_cluster())
                    killed[moment] += one_run_on_hosts(cluster, *given)
                else:
                    case, *others = given
                    killed[moment] += one_run(case, moment, *others)
                equal[moment] += 1
            except AssertionError as problem:
                say(f"run {number} ({moment}): {problem}")
            advance(1)
    print("| killed | runs | kills | ended in the same bytes, nothing left |")
    print("| --- | --- | --- | --- |")
    for moment in dict.fromkeys(planned):
        if runs[moment]:
            print(f"| {moment} | {runs[moment]} | {killed[moment]} | {equal[moment]} |")
    print(f"| all | {runs.total()} | {killed.total()} | {equal.total()} |")
    if equal.total() < runs.total():
        raise UserError(f"{runs.total() - equal.total()} runs did not end as an undisturbed one")
