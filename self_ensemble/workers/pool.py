"""An engine that has workers: it plans, hands out batches, and loads no weights.

A batch is given to the worker that is free next, and comes back in any order. A worker that dies
gives its batches back, and is started again.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Generic, TypeVar

import torch

from self_ensemble.attention.fusion import FUSIONS, Fusion
from self_ensemble.data.identities import canonical_json
from self_ensemble.generation import batching
from self_ensemble.generation.decode import Answer
from self_ensemble.generation.likelihood import Likelihood, ScoringRequest
from self_ensemble.generation.limits import check_continuations, check_request
from self_ensemble.generation.passes import OnProgress
from self_ensemble.generation.request import Request
from self_ensemble.generation.stats import Stats
from self_ensemble.generation.streams import Stream
from self_ensemble.system.console import say
from self_ensemble.system.errors import UserError
from self_ensemble.workers.parts import Broken, Failed, open_with, part_of
from self_ensemble.workers.worker import PACKAGE, Assignment, Loaded, Worker

Given = TypeVar("Given")

# How often a worker is started again before it has answered a batch; then the run goes on without.
RESTARTS = 3
# A batch that was being answered when so many workers died is not handed out again.
DEATHS_OF_A_BATCH = 3
# How long a worker that the cluster has no place for is waited for before the run begins without it
# (it joins in once there is one), and how long where there is no other.
PATIENCE_SECONDS, LAST_PATIENCE_SECONDS = 60.0, 600.0
TICK_SECONDS = 0.5
# Characters that are shown of a question that kills workers.
SHOWN_CHARACTERS = 60
SHOWN_CHARACTERS_OF_AN_ERROR = 200
# What Ray says of a death → what is told of it.
DEATHS = {
    "its node has died": "its host is gone",
    "running low on memory": "memory ran out on its host",
    "worker process has died": "its process was killed or has crashed",
}
ANSI_COLOUR = re.compile(r"\x1b\[\d+m")


@dataclass(frozen=True)
class Place:
    """What each worker takes of the cluster."""

    gpus: int
    cpus: int


@dataclass(eq=False)
class _Sent:
    """A batch that a worker has. batch: its index among those of its pass."""

    owner: RemotePass[Any]
    batch: int


@dataclass(frozen=True, eq=False)
class _Done(Generic[Given]):
    """A batch that is answered. kind: of the worker."""

    batch: list[tuple[int, Given]]
    stats: Stats
    kind: str


@dataclass(eq=False)
class _Slot:
    """A worker's place, which it keeps when it is started again.

    waiting: for what, while it starts: `where`, `load` or `environment`; None once it can answer.
    since: when it began to wait for a place.
    deaths: since it has last answered a batch.
    is_late: the cluster has no place for it, and it is not waited for.
    """

    number: int
    actor: Any = None
    waiting: str | None = None
    since: float = 0.0
    host: str = ""
    loaded: Loaded | None = None
    max_batch_size: int | None = None
    deaths: int = 0
    is_gone: bool = False
    is_late: bool = False
    sent: dict[Any, _Sent] = field(default_factory=dict)  # by reference, in order

    @property
    def is_ready(self) -> bool:
        return not self.is_gone and self.waiting is None

    @property
    def is_left_out(self) -> bool:
        return self.is_gone or self.is_late

    @property
    def kind(self) -> str:
        """What it computes with, for the manifest."""
        assert self.loaded is not None
        return self.loaded.device


class WorkerPool:
    """Workers, as an engine; see `generation.engine.Engine` for what is not told here.

    Args:
        tokenizer: the model's own.
        config: the text model's.
        number: of workers.
        assignment: what each of them is to be.
        place: what each of them takes.

    Attributes:
        computes: what `environment` tells, with all workers that have come since: those that came
            late, or again, may be of another kind.
    """

    def __init__(
        self, tokenizer: Any, config: Any, number: int, assignment: Assignment, place: Place
    ):
        import ray  # it changes the process that imports it

        self._ray = ray
        self.tokenizer = tokenizer
        self.config = config
        self.device = torch.device("cpu")
        self._assignment = assignment
        self._names = map(str, itertools.count())
        self._lock = RLock()
        self._asked: tuple[Fusion, str, bool] | None = None
        self._environments: list[dict[str, Any]] = []  # each once
        self.computes: Mapping[str, Any] = {}
        self._starting: dict[Any, _Slot] = {}  # by the reference of what it waits for
        self._actor = self._ray.remote(Worker).options(
            num_cpus=place.cpus,
            num_gpus=place.gpus,
            max_restarts=0,
            max_task_retries=0,
            # Ray adds the folder of the driver's script, where the package need not be.
            runtime_env={"env_vars": {"PYTHONPATH": f"{PACKAGE.parent}:${{PYTHONPATH}}"}},
        )
        self._slots = [_Slot(number) for number in range(1, number + 1)]
        for slot in self._slots:
            self._start(slot)

    # ---- what an engine does --------------------------------------------------------------------

    def schedule(
        self,
        questions: Sequence[Sequence[Stream]],
        batch_size: int | None,
        among: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """The same batches however many workers there are; of unlike GPUs the smallest decides."""
        self.wait()
        tokens = self.tokens_at_once()
        return batching.schedule_batches(questions, batch_size, tokens, among, shrink=True)

    def tokens_at_once(self) -> int:
        """Of the worker that has the fewest, once there is one; see `batching.tokens_at_once`."""
        self._until(lambda: any(slot.loaded for slot in self._slots))
        return min(slot.loaded.tokens_at_once for slot in self._slots if slot.loaded)

    def environment(self, fusion: Fusion, *, asked: str, weighed: bool = False) -> dict[str, Any]:
        """See `Engine.environment`: what all workers have alike, lists where they differ, and their
        number."""
        self._asked = fusion, asked, weighed
        self._environments = []
        for slot in self._slots:
            if slot.is_ready or slot.waiting == "environment":
                self._ask_environment(slot)
        self._until(
            lambda: (
                any(slot.is_ready for slot in self._slots)
                and all(slot.is_ready or slot.is_left_out for slot in self._slots)
            )
        )
        return dict(self.computes)

    def generate(
        self,
        request: Request,
        *,
        batch_size: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        max_batch_size: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> RemotePass[Answer]:
        """See `Engine.generate`. Batches come in any order; no progress is told inside them."""
        return self._begin(request, batch_size, batches, max_batch_size)

    def score(
        self,
        request: ScoringRequest,
        *,
        batch_size: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        max_batch_size: int | None = None,
    ) -> RemotePass[tuple[Likelihood, ...]]:
        """See `Engine.score`."""
        check_continuations(request, self.config, self.tokenizer)
        return self._begin(request, batch_size, batches, max_batch_size)

    def _begin(
        self,
        request: Request,
        batch_size: int | None,
        batches: Sequence[Sequence[int]] | None,
        max_batch_size: int | None,
    ) -> RemotePass[Any]:
        self._check_left()
        check_request(request, self.config, self.tokenizer)
        if batches is None:
            batches = self.schedule(request.questions, batch_size)
        return RemotePass(self, next(self._names), request, batches, batch_size, max_batch_size)

    def put(self, value: Any) -> Any:
        """A reference of a value that several workers may fetch."""
        return self._ray.put(value)

    def wait(self) -> None:
        """Until every worker has its model, or is not waited for; at least one has it then.

        Raises:
            UserError: none is left.
        """
        self._until(
            lambda: (
                any(slot.loaded for slot in self._slots if not slot.is_gone)
                and all(slot.loaded or slot.is_left_out for slot in self._slots)
            )
        )

    def end(self) -> None:
        """End the workers."""
        for slot in self._slots:
            slot.is_gone = True
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.kill(slot.actor)

    def _check_left(self) -> None:
        """Raises UserError where no worker is left. Ray itself would start another cluster."""
        if all(slot.is_gone for slot in self._slots):
            raise UserError(
                "all workers have ended: start the script again, or in Python make another Ensemble"
            )

    # ---- workers --------------------------------------------------------------------------------

    def _start(self, slot: _Slot) -> None:
        slot.actor = self._actor.remote(_fetch)
        slot.loaded, slot.since = None, time.monotonic()
        if not any(each.loaded for each in self._slots if not each.is_gone):
            for each in self._slots:  # those that wait for a place are the last hope from now on
                each.since = slot.since
        self._wait_for(slot, "where", slot.actor.where.remote())

    def _wait_for(self, slot: _Slot, what: str, reference: Any) -> None:
        self._forget(slot)
        slot.waiting = what
        self._starting[reference] = slot

    def _forget(self, slot: _Slot) -> None:
        """What it waits for is of no interest any more."""
        for reference in [ref for ref, each in self._starting.items() if each is slot]:
            del self._starting[reference]

    def _ask_environment(self, slot: _Slot) -> None:
        assert self._asked is not None
        fusion, asked, weighed = self._asked
        kind = FUSIONS.get(fusion.kind)
        reference = slot.actor.environment.remote(fusion, kind, asked=asked, weighed=weighed)
        self._wait_for(slot, "environment", reference)

    def _started(self, slot: _Slot, found: Any) -> None:
        """What it waited for is there."""
        if slot.waiting == "where":
            slot.host, slot.is_late = found.name, False
            self._wait_for(slot, "load", slot.actor.load.remote(self._assignment))
            return
        slot.waiting = None
        if isinstance(found, Loaded):
            slot.loaded = found
            if self._asked is not None:
                self._ask_environment(slot)
        elif found not in self._environments:
            self._environments.append(found)
            self.computes = {**_merged(self._environments), "workers": len(self._slots)}

    def _died(self, slot: _Slot, reason: str) -> None:
        """Give its batches back, and start it again where it has not died too often."""
        self._forget(slot)
        lost, slot.sent = list(slot.sent.values()), {}
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(slot.actor)
        slot.deaths += 1
        for at, each in reversed(list(enumerate(lost))):
            # Only the first was being answered.
            if at > 0:
                each.owner.give_back(each.batch)
            elif each.owner.died_with(each.batch, reason):
                slot.deaths = 0  # the batch is to blame
        if slot.deaths > RESTARTS:
            self._give_up(slot, f"has died {slot.deaths} times in a row ({reason})")
        else:
            say(f"worker {slot.number} has died ({reason}) and is started again")
            self._start(slot)

    def _give_up(self, slot: _Slot, what: str) -> None:
        slot.is_gone, slot.waiting = True, None
        self._forget(slot)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(slot.actor)
        left = sum(not each.is_gone for each in self._slots)
        if left == 0:
            raise UserError(
                f"worker {slot.number} {what} and no other is left; the same command "
                "goes on with what was kept"
            )
        say(f"worker {slot.number} {what}: the run goes on with {left}")

    # ---- batches --------------------------------------------------------------------------------

    def _until(self, done: Callable[[], bool]) -> None:
        """Wait for what workers say until something is so."""
        with self._lock:
            while not done():
                self._step()

    def next_of(self, asking: RemotePass[Given]) -> _Done[Given] | None:
        """The next batch of a pass that is there; None where all are."""
        while True:
            with self._lock:
                if asking.done:
                    return asking.done.popleft()
                if not asking.waiting and not any(
                    sent.owner is asking for slot in self._slots for sent in slot.sent.values()
                ):
                    if asking.error is not None:
                        raise asking.error
                    return None
                self._hand_out(asking)
                self._step()
                self._hand_out(asking)  # before anything is done with what has come

    def _hand_out(self, asking: RemotePass[Any]) -> None:
        """One to each worker, and where there are many a second that waits for it there."""
        ready = [slot for slot in self._slots if slot.is_ready]
        for depth in (1, 2):
            for slot in ready:
                many = len(asking.waiting) > 2 * len(ready)
                if len(slot.sent) < depth and asking.waiting and (depth == 1 or many):
                    batch = asking.waiting.popleft()
                    reference = slot.actor.answer.remote(
                        asking.name,
                        [asking.opening],
                        part_of(asking.request, asking.batches[batch]),
                        slot.max_batch_size or asking.max_batch_size,
                    )
                    slot.sent[reference] = _Sent(asking, batch)

    def _step(self) -> None:
        """Wait for the next things that workers say, not long, and take them in."""
        self._check_left()
        slots = self._starting | {ref: slot for slot in self._slots for ref in slot.sent}
        ready, _ = self._ray.wait(list(slots), timeout=TICK_SECONDS)
        ready += self._ray.wait([ref for ref in slots if ref not in ready] or ready, timeout=0)[0]
        for reference in dict.fromkeys(ready):
            slot = slots[reference]
            if reference in slot.sent or self._starting.get(reference) is slot:
                self._take_in(slot, reference)
        self._lose_patience()

    def _take_in(self, slot: _Slot, reference: Any) -> None:
        found: Any
        try:
            found = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            found = error  # a fault of the program's: its traceback is shown
        except self._ray.exceptions.RayError as error:
            found = Broken(reason_of(error))
        if isinstance(found, Failed):
            found = UserError(found.sentence)
        if isinstance(found, Broken):
            self._died(slot, found.reason)
        elif reference in self._starting:
            del self._starting[reference]
            if isinstance(found, UserError) and any(other.sent for other in self._slots):
                # It came later, or again: what the others have in hand must not be lost by it.
                self._give_up(slot, f"cannot answer ({found})")
            elif isinstance(found, Exception):
                raise found
            else:
                self._started(slot, found)
        elif isinstance(found, Exception):
            slot.sent.pop(reference).owner.fail(found)
        else:
            sent = slot.sent.pop(reference)
            slot.deaths, slot.max_batch_size = 0, found.max_batch_size
            for warning in found.warnings:
                say(f"worker {slot.number}: {warning}")
            sent.owner.take_in(sent.batch, found.answers, found.stats, slot.kind)

    def _lose_patience(self) -> None:
        """Workers that the cluster has no place for are not waited for any longer."""
        others = any(slot.loaded for slot in self._slots if not slot.is_gone)
        for slot in self._slots:
            if slot.is_gone or slot.waiting != "where":
                continue
            waited = time.monotonic() - slot.since
            if not others and waited > LAST_PATIENCE_SECONDS:
                self._give_up(slot, f"has found no place on the cluster for {waited:.0f} s")
            elif others and not slot.is_late and waited > PATIENCE_SECONDS:
                slot.is_late = True
                say(f"worker {slot.number} waits for a place on the cluster; the others work")


class RemotePass(Iterator[list[tuple[int, Given]]], Generic[Given]):
    """A request that workers answer; see `generation.answering.Answering`.

    Attributes:
        stats, computed_by: of the batches that were taken from it, and of no others: they are kept
            with the batch.
        environment: of all workers until now, these among them.
        opening: the reference of what a worker opens it with.
        waiting: batches that no worker has, by index. done: those that wait to be taken.
        error: what ends it, once all that workers have of it is there.
    """

    def __init__(
        self,
        pool: WorkerPool,
        name: str,
        request: Request,
        batches: Sequence[Sequence[int]],
        batch_size: int | None,
        max_batch_size: int | None,
    ):
        self.stats = Stats()
        self.computed_by: Mapping[str, int] = Counter()
        self.max_batch_size = max_batch_size
        self.name, self.request, self.batches = name, request, batches
        self.opening = None
        if batches:
            tokens = pool.tokens_at_once()
            self.opening = pool.put(open_with(request, batches, batch_size, tokens))
        self.waiting = deque(range(len(batches)))
        self.done: deque[_Done[Given]] = deque()
        self.error: Exception | None = None
        self._pool = pool
        self._deaths: Counter[int] = Counter()
        self._fatal: dict[int, str] = {}  # batches that are not handed out again, and why

    def __next__(self) -> list[tuple[int, Given]]:
        done = self._pool.next_of(self)
        if done is None:
            self._tell_of_fatal()
            raise StopIteration
        self.stats += done.stats
        self.computed_by = Counter(self.computed_by) + Counter({done.kind: len(done.batch)})
        return done.batch

    @property
    def environment(self) -> Mapping[str, Any]:
        return self._pool.computes

    def give_back(self, batch: int) -> None:
        """A worker died before it came to it."""
        if self.error is None:
            self.waiting.appendleft(batch)

    def fail(self, error: Exception) -> None:
        """No more is handed out."""
        self.error = self.error or error
        self.waiting.clear()

    def died_with(self, batch: int, reason: str) -> bool:
        """A worker died while it answered it. Whether that was one too many."""
        self._deaths[batch] += 1
        if self._deaths[batch] < DEATHS_OF_A_BATCH:
            self.give_back(batch)
            return False
        self._fatal[batch] = reason
        say(f"{self._named(batch)} has killed {DEATHS_OF_A_BATCH} workers and is set aside")
        return True

    def take_in(self, batch: int, answers: Sequence[Given], stats: Stats, kind: str) -> None:
        """A worker of this kind has answered it."""
        found = list(zip(self.batches[batch], answers, strict=True))
        self.done.append(_Done(found, stats, kind))

    def _named(self, batch: int) -> str:
        """By its first question, as it reads."""
        indices = self.batches[batch]
        [first, *_] = self.request.questions[indices[0]]
        text = self._pool.tokenizer.decode(first.segments[0], skip_special_tokens=True)
        shown = " ".join(text.split())[:SHOWN_CHARACTERS]
        others = f" and {len(indices) - 1} others" if len(indices) > 1 else ""
        return f"the batch of the question {shown!r}{others}"

    def _tell_of_fatal(self) -> None:
        if self._fatal:
            batch, reason = next(iter(self._fatal.items()))
            more = (
                f", and so have {len(self._fatal) - 1} other batches"
                if len(self._fatal) > 1
                else ""
            )
            raise UserError(
                f"{self._named(batch)} has killed {DEATHS_OF_A_BATCH} workers ({reason}){more}; "
                "all others are answered and kept, and the same command tries these again"
            )


def _merged(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all have alike; where they differ a list, in an order that depends on nothing else."""
    merged: dict[str, Any] = {}
    for name in environments[0]:
        by_text = {canonical_json(each[name]): each[name] for each in environments}
        kinds = [kind for _, kind in sorted(by_text.items())]
        merged[name] = kinds[0] if len(kinds) == 1 else kinds
    return merged


def _fetch(reference: Any) -> Any:
    import ray

    return ray.get(reference)


def reason_of(error: Exception) -> str:
    """Why a worker is gone, in a few words: Ray's are a page."""
    text = ANSI_COLOUR.sub("", str(error))
    for sign, reason in DEATHS.items():
        if sign in text:
            return reason
    errors = re.findall(r"^\w*(?:Error|Exception): .*$", text, re.MULTILINE)
    last: str = errors[-1] if errors else text.split("\n", 1)[0]
    return last[:SHOWN_CHARACTERS_OF_AN_ERROR]
