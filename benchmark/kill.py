"""Kills runs at random moments, starts them again, and compares what they end with.

    python benchmark/kill.py
    python benchmark/kill.py --runs 20 --seed 7

Every run answers 40 questions of the demo, two at a time, in batches of eight (some extend a file
of half as many, or make one again), is killed with SIGKILL one to three times and then left to end.
Its table must have the same bytes as an undisturbed run's, its manifest the same content but for
the seconds, and nothing else may lie in its folder. The moments:

    cold   a new interpreter, any time from its start on
    timed  a forked process that has imported everything, any time from there on
    file   at one of its own file operations, before or after it

After a third of the kills the end of the journal is cut off as well, as a loss of power may do.

    python benchmark/kill.py --workers 2 --runs 100

kills workers, their hosts and drivers instead: see kill_workers.py.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import flex_attention_generate
import generate
from self_ensemble.cli.parser import Parser, run
from self_ensemble.cli.types import positive_int
from self_ensemble.data.result_files import read_manifest
from self_ensemble.system.console import progress, say
from self_ensemble.system.errors import UserError

ROOT = Path(generate.__file__).parent
AT_ONCE = 2
# Of ten runs: most of the time of a cold start is spent in imports, where little can go wrong.
MOMENTS = ("cold", *("file", "timed") * 4, "file")
MOST_KILLS = 3
TORN_SHARE, TORN_BYTES = 1 / 3, 400


@dataclass(frozen=True)
class Case:
    """A command line. `finished` questions stand in a file that it extends or makes again."""

    script: ModuleType
    flags: tuple[str, ...]
    questions: int
    finished: int = 0

    def argv(self, folder: Path, questions: int) -> list[str]:
        common = ["--max_samples", str(questions), "--batch_size", str(AT_ONCE)]
        return [*self.flags, *common, "--output_dir", str(folder)]


def cases(questions: int) -> tuple[Case, ...]:
    return (
        Case(flex_attention_generate, (), questions),
        Case(generate, (), questions),
        Case(generate, ("--method", "weighted_avg"), questions),
        Case(flex_attention_generate, (), questions, questions // 2),
        Case(generate, ("--overwrite",), questions, questions // 2),
        Case(
            flex_attention_generate, ("--dataset", "demo_choices", "--task", "choices"), questions
        ),
        Case(generate, ("--temperature", "1", "--stop", "none"), questions, questions // 2),
        Case(generate, ("--method", "self_consistency"), questions),
        Case(generate, ("--part_rows", "7"), questions, questions // 2),
    )


@dataclass(frozen=True)
class Child:
    """A run: its process id, and the file that takes its stderr."""

    process: int
    said: IO[bytes]


@dataclass(frozen=True)
class Undisturbed:
    """What a run ends with if it is let alone, how long it takes, its file operations."""

    files: dict
    cold_seconds: float
    seconds: float
    operations: int


def prepare(case: Case, folder: Path) -> Path:
    """The folder with the finished file that the case begins with."""
    if case.finished:
        wait(start_warm(case, folder, None, case.finished))
    return folder


def start_cold(case: Case, folder: Path) -> Child:
    """A new interpreter."""
    said = tempfile.TemporaryFile()  # noqa: SIM115, closed by `wait`
    started = subprocess.Popen(
        [sys.executable, f"{case.script.__name__}.py", *case.argv(folder, case.questions)],
        cwd=ROOT,
        # As the forked ones: the number of threads moves the last digits of a logprob.
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=said,
    )
    return Child(started.pid, said)


def start_warm(
    case: Case,
    folder: Path,
    on_file_operation: Callable[[], None] | None,
    questions: int | None = None,
) -> Child:
    """A fork of this process, which has imported everything and computed nothing.

    Had it computed in several threads, torch would refuse to compute in the fork.
    """
    said = tempfile.TemporaryFile()  # noqa: SIM115, closed by `wait`
    process = os.fork()
    if process:
        return Child(process, said)
    try:
        sys.stderr = open(said.fileno(), "w")  # noqa: SIM115
        if on_file_operation is not None:
            watch_files(folder, on_file_operation)
        argv = case.argv(folder, questions or case.questions)
        case.script.main(case.script.parse_args(argv))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def watch_files(folder: Path, told: Callable[[], None]) -> None:
    """Calls `told` at every opening, renaming and removal in `folder`, and around every fsync."""

    def hook(event: str, args: tuple) -> None:
        if event in ("open", "os.rename", "os.remove", "os.truncate"):
            path = args[0]
            if isinstance(path, str | os.PathLike) and str(path).startswith(str(folder)):
                told()

    sync = os.fsync

    def fsync(descriptor: int) -> None:
        told()
        sync(descriptor)
        told()

    os.fsync = fsync
    sys.addaudithook(hook)


def wait(child: Child, seconds: float | None = None) -> bool:
    """Whether a run ended by itself; it is killed after `seconds`."""
    due = None if seconds is None else time.monotonic() + seconds
    with child.said:
        while due is None or time.monotonic() < due:
            ended, status = os.waitpid(child.process, 0 if due is None else os.WNOHANG)
            if ended:
                return ended_well(child, status)
            time.sleep(0.0005)
        os.kill(child.process, signal.SIGKILL)
        return ended_well(child, os.waitpid(child.process, 0)[1])


def ended_well(child: Child, status: int) -> bool:
    """False for a kill. What else may end a run is a fault, told with what the run said."""
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        child.said.seek(0)
        said = child.said.read().decode(errors="replace")
        raise UserError(f"a run ended with status {code}, where 0 or a kill was expected:\n{said}")
    return code == 0


def contents(folder: Path) -> dict:
    """Every file with its bytes; of the manifest what no interruption may change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            manifest = read_manifest(path)
            found[path.name] = {key: manifest[key] for key in manifest if key != "seconds"}
            if "extends" in manifest:
                found[path.name]["extends"].pop("seconds")
        elif path.is_file():
            found[path.name] = path.read_bytes()
    return found


def undisturbed(case: Case) -> Undisturbed:
    with tempfile.TemporaryDirectory() as name:
        cold, warm, watched = (prepare(case, Path(name) / part) for part in ("c", "w", "f"))
        begun = time.monotonic()
        wait(start_cold(case, cold))
        cold_seconds = time.monotonic() - begun
        begun = time.monotonic()
        wait(start_warm(case, warm, None))
        seconds = time.monotonic() - begun
        count = Path(name) / "count"
        count.touch()

        def told() -> None:
            with open(count, "a") as handle:
                handle.write(".")

        wait(start_warm(case, watched, told))
        first = contents(cold)
        for other in (warm, watched):
            check_same(first, contents(other))
        return Undisturbed(first, cold_seconds, seconds, count.stat().st_size)


def check_same(first: dict, other: dict) -> None:
    """Refuses to begin where two undisturbed runs end differently: then no kill can be judged."""
    for name in first.keys() | other.keys():
        one, two = first.get(name), other.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            one, two = ({k: d[k] for k in d if one.get(k) != two.get(k)} for d in (one, two))
        if one != two:
            shown = f"{str(one)[:200]} and {str(two)[:200]}"
            raise UserError(f"two undisturbed runs differ in {name}: {shown}")


def stage(folder: Path) -> str:
    """How far a killed run had come, by what lies on the disk."""
    suffixes = {path.suffix for path in folder.rglob("*") if not path.name.startswith(".")}
    if ".json" in suffixes:
        return "result whole"
    begun = [*folder.rglob(".*.feather.*"), *folder.rglob(".*.parquet.*")]
    if begun or {".feather", ".csv", ".parquet"} & suffixes:
        return "writing the result"
    return "batches" if ".journal" in suffixes else "before the first batch"


def tear(folder: Path, chance: random.Random) -> None:
    """Cuts off the end of a journal that has one, never its first two lines."""
    for path in folder.rglob("*.journal"):
        content = path.read_bytes()
        head = content.find(b"\n", content.find(b"\n") + 1) + 1
        os.truncate(path, max(head, len(content) - chance.randint(1, TORN_BYTES)))


def kill_and_finish(case: Case, moment: str, normal: Undisturbed, chance: random.Random) -> list:
    """One run. Returns the stages at which it was killed; AssertionError where it ends amiss."""
    stages = []
    with tempfile.TemporaryDirectory() as name:
        folder = prepare(case, Path(name))
        for _ in range(chance.randint(1, MOST_KILLS)):
            if moment == "cold":
                ended = wait(start_cold(case, folder), chance.uniform(0, normal.cold_seconds))
            elif moment == "timed":
                child = start_warm(case, folder, None)
                ended = wait(child, chance.uniform(0, normal.seconds))
            else:
                left = chance.randint(1, normal.operations)

                def told() -> None:
                    nonlocal left
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

                ended = wait(start_warm(case, folder, told))
            if ended:
                break
            stages.append(stage(folder))
            if chance.random() < TORN_SHARE:
                tear(folder, chance)
        if not wait(start_warm(case, folder, None)):
            raise AssertionError("the last start did not end by itself")
        if contents(folder) != normal.files:
            raise AssertionError(f"ended with {', '.join(contents(folder))}, not as undisturbed")
    return stages


def main(args) -> None:
    if args.workers > 1:
        import kill_workers

        kill_workers.main(args)
        return
    import pandas
    import torch

    assert pandas.DataFrame
    torch.set_num_threads(1)  # children are forked: no thread of a library may run here
    chance = random.Random(args.seed)
    all_cases = cases(args.questions)
    # Ten runs of each case, one after the other: fewer runs need fewer cases.
    normal = [undisturbed(case) for case in all_cases[: -(-args.runs // len(MOMENTS))]]
    say(
        "undisturbed: "
        + ", ".join(f"{n.seconds:.1f} s, {n.operations} file operations" for n in normal)
    )
    runs, equal, stages = Counter(), Counter(), Counter()
    with progress(args.runs, "killed and finished", "runs") as advance:
        for number in range(args.runs):
            turn, place = divmod(number, len(MOMENTS))
            which, moment = turn % len(all_cases), MOMENTS[place]
            runs[moment] += 1
            try:
                stages.update(kill_and_finish(all_cases[which], moment, normal[which], chance))
                equal[moment] += 1
            except AssertionError as problem:
                say(f"run {number} ({moment}): {problem}")
            advance(1)
    print("| moment | runs | ended in the same bytes |\n| --- | --- | --- |")
    for moment in dict.fromkeys(MOMENTS):
        if runs[moment]:
            print(f"| {moment} | {runs[moment]} | {equal[moment]} |")
    print(f"| all | {runs.total()} | {equal.total()} |")
    print(f"\n{stages.total()} kills: " + ", ".join(f"{n} {what}" for what, n in stages.items()))
    if equal.total() < runs.total():
        raise UserError(f"{runs.total() - equal.total()} runs did not end as an undisturbed one")


def parse_args(argv: Sequence[str] | None = None):
    parser = Parser(description=__doc__)
    parser.add_argument("--runs", type=positive_int, default=200, metavar="N")
    parser.add_argument("--questions", type=positive_int, default=40, metavar="N")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N")
    parser.add_argument("--seed", type=positive_int, default=1, metavar="N")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(main, parse_args())
