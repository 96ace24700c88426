"""What a run has answered so far, kept on disk batch by batch, so that a killed run goes on.

`<stem>.journal` is text. Its first line says what it is; each further line is a record, as the
crc32 of its JSON in hexadecimal, a blank, and the JSON:

    run    identity, after (questions that a finished file holds already), remake (--overwrite)
    start  the environment (device, versions, …) of a process that worked on it; where it is
           `joined` the same process', to which other workers have come
    plan   the schedule of a pass: batch_size, questions (of the run), batches of indices
    batch  pass, batch: the indices, answers: one JSON value each, state: of the run after it

A line is on the disk before the next batch begins. A last line that was cut short by a crash is
dropped and its batch answered again: whatever the moment, the run ends as if it had not happened.

The answers of a million questions are a million lists of numbers, so they stay on the disk: what is
held is which indices are answered, and where the batches lie.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from self_ensemble.data.identities import identity_differences
from self_ensemble.data.result_files import result_file
from self_ensemble.system.errors import UserError
from self_ensemble.system.files import append_synced, replace_synced, sync_folder

JOURNAL_SUFFIX = ".journal"
FIRST_LINE = b"self-ensemble journal 1\n"


class Journal:
    """The journal of one result; nothing is written before the first batch is added.

    Args:
        stem: of the result.
        identity: of the run; JSON types.
        after: how many questions the finished file at `stem` holds; indices count from there.
        remake: the finished file there is to be made again.
        environment: what computes; JSON types.

    Attributes:
        state: what the last batch left behind, None before the first.
        questions: of the largest schedule, those of `after` included.
        answered: of each pass, the indices whose answers are kept.
    """

    def __init__(
        self, stem: Path, identity: Mapping[str, Any], *, after: int = 0, remake: bool = False
    ):
        self.path = result_file(stem, JOURNAL_SUFFIX)
        self.identity = identity
        self.after = after
        self.remake = remake
        self.answered: dict[str, Indices] = {}
        self.state: dict[str, Any] | None = None
        self._starts: list[dict[str, Any]] = []  # the environment of each process
        self.questions = 0
        self.schedules: dict[str, dict[str, Any]] = {}  # the last one of each pass
        self.size = 0  # of what is kept on the disk; 0: there is no file of ours yet
        self.unwritten: list[dict[str, Any]] = []
        self.cut_short = False
        self._places: dict[
            str, list[int]
        ] = {}  # of a pass: at which bytes the batches' lines begin

    @classmethod
    def read(cls, stem: Path) -> "Journal | None":
        """What an interrupted run left, or None.

        Raises:
            UserError: unreadable, no journal, or damaged elsewhere than at its end.
        """
        path = result_file(stem, JOURNAL_SUFFIX)
        try:
            with open(path, "rb") as file:
                records = _records(path, file)
                _, run = next(records, (0, {}))
                if run.get("kind") != "run":
                    raise UserError(
                        f"{path} is cut short and holds no answer; --overwrite begins anew"
                    )
                journal = cls(stem, run["identity"], after=run["after"], remake=run["remake"])
                for begin, record in records:
                    journal._take_in(record, begin)
                journal.size = file.tell()
                journal.cut_short = journal.size < path.stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from None
        return journal

    def kept(self, name: str) -> Iterator[list[tuple[int, Any]]]:
        """The batches of a pass that are on the disk: (index, answer), as they were added.

        Raises:
            UserError: the file cannot be read any more.
        """
        try:
            with open(self.path, "rb") as file:
                for begin in tuple(self._places.get(name, ())):
                    file.seek(begin)
                    record = _record(file.readline().removesuffix(b"\n"))
                    if record is None:
                        raise UserError(f"{self.path} was changed while it was read; run it again")
                    yield list(zip(record["batch"], record["answers"], strict=True))
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror or error}") from None

    def _take_in(self, record: dict[str, Any], begin: int) -> None:
        """begin: the byte at which its line begins."""
        if record["kind"] == "start":
            if record.get("joined"):
                self._starts.pop()
            self._starts.append(record["environment"])
        elif record["kind"] == "plan":
            self.schedules[record["pass"]] = record
            self.questions = max(self.questions, record["questions"])
        else:
            self.answered.setdefault(record["pass"], Indices()).add(record["batch"])
            self._places.setdefault(record["pass"], []).append(begin)
            self.state = record["state"]

    @property
    def environment(self) -> dict[str, Any] | None:
        """Of the last process that has worked on it."""
        return self._starts[-1] if self._starts else None

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Of all processes, without repetitions."""
        return [each for at, each in enumerate(self._starts) if each not in self._starts[:at]]

    def begin(self, environment: dict[str, Any], *, joined: bool = False) -> None:
        """A process starts to work on it, or other workers have joined the one that does."""
        self._note({"kind": "start", "environment": environment, "joined": joined})

    def batches(
        self,
        name: str,
        count: int,
        batch_size: int | None,
        schedule: Callable[[Sequence[int]], list[list[int]]],
        *,
        questions: int,
    ) -> list[list[int]]:
        """What is left of a pass.

        The batches that were scheduled stay as they are, since a number's last bits depend on what
        it was computed with. Scheduled anew is what no schedule holds, and everything that is left
        where another batch size is asked for.

        Args:
            name: of the pass.
            count: how many indices the pass has.
            batch_size: as it was asked for; None: what fits.
            schedule: makes batches of indices.
            questions: of the run, those of `after` included.
        """
        answered = self.answered.get(name, Indices())
        old = self.schedules.get(name)
        kept = old["batches"] if old and old["batch_size"] == batch_size else []
        left = [batch for batch in kept if batch[0] not in answered]
        scheduled = {index for batch in left for index in batch}
        fresh = [i for i in range(count) if i not in answered and i not in scheduled]
        batches = left + (schedule(fresh) if fresh else [])
        if fresh:
            record = {
                "kind": "plan",
                "pass": name,
                "batch_size": batch_size,
                "questions": questions,
                "batches": batches,
            }
            self._note(record)
        return batches

    def _note(self, record: dict[str, Any]) -> None:
        self._take_in(record, 0)
        self.unwritten.append(record)

    def add(
        self, name: str, batch: Sequence[int], answers: Sequence[Any], state: dict[str, Any]
    ) -> None:
        """Keeps a batch's answers for good.

        Raises:
            UserError: the disk is full and the like. What was kept before is kept.
        """
        record: dict[str, Any] = {"kind": "batch", "pass": name, "batch": list(batch)}
        record |= {"answers": list(answers), "state": state}
        run = {
            "kind": "run",
            "identity": self.identity,
            "after": self.after,
            "remake": self.remake,
        }
        before = self.unwritten if self.size else [run, *self.unwritten]
        content = b"".join(map(_line, before))
        if not self.size:
            content = FIRST_LINE + content
        begin = self.size + len(content)
        content += _line(record)
        try:
            if self.size:
                append_synced(self.path, content, at=self.size)
            else:  # in one step: an older journal is replaced, and this one never lacks its head
                replace_synced(self.path, content)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror or error}; once that is mended the "
                "same command goes on with what was kept"
            ) from None
        self._take_in(record, begin)
        self.size += len(content)
        self.unwritten = []

    def check_same_run(self, identity: Mapping[str, Any]) -> None:
        """Raises UserError where it is the journal of another run."""
        differences = identity_differences(self.identity, identity)
        if differences:
            raise UserError(
                f"{self.path} was left by another run: {'; '.join(differences)}; "
                "--overwrite or another --output_dir"
            )

    def remove(self) -> None:
        """Once its answers are in the result."""
        try:
            self.path.unlink(missing_ok=True)
            sync_folder(self.path.parent)
        except OSError as error:
            raise UserError(f"cannot remove {self.path}: {error.strerror or error}") from None


class Indices:
    """A set of whole numbers from 0 on, a byte each up to the largest."""

    def __init__(self) -> None:
        self._flags = bytearray()

    def add(self, indices: Sequence[int]) -> None:
        """All of them; at least one."""
        self._flags.extend(bytes(max(0, max(indices) + 1 - len(self._flags))))
        for index in indices:
            self._flags[index] = 1

    def __contains__(self, index: int) -> bool:
        return index < len(self._flags) and self._flags[index] == 1

    def __len__(self) -> int:
        return self._flags.count(1)


def _line(record: dict[str, Any]) -> bytes:
    text = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _records(path: Path, file: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each record, and the byte at which its line begins; the file then stands behind the last one.

    Only the end may be missing.
    """
    if file.readline() != FIRST_LINE:
        raise UserError(
            f"{path} is no journal of an interrupted run, or of another version of this toolkit; "
            "move it away, or --overwrite"
        )
    number, begin = 2, file.tell()
    for line in file:
        record = _record(line.removesuffix(b"\n")) if line.endswith(b"\n") else None
        if record is None:  # cut short; or not, where another line follows
            if any(_record(other.removesuffix(b"\n")) for other in file if other.endswith(b"\n")):
                raise UserError(
                    f"{path} is damaged in line {number}, not only cut short; --overwrite "
                    "answers everything again"
                )
            break
        yield begin, record
        number, begin = number + 1, begin + len(line)
    file.seek(begin)


def _record(line: bytes) -> dict[str, Any] | None:
    """A line's record, or None where the line is not as it was written."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record
