"""A run that may be killed at any moment and goes on where it stopped.

One process at a time holds a result (its lock), every answered batch is on the disk before the next
one begins (its journal), and the clock and the statistics of an interrupted run are those of the
run that goes on from it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_ensemble.experiment.entries import Entries, Kept
from self_ensemble.experiment.journal import Journal
from self_ensemble.system.console import progress, say
from self_ensemble.system.files import remove_leftovers
from self_ensemble.system.interrupts import advise
from self_ensemble.system.lock import held, sweep

if TYPE_CHECKING:  # torch takes seconds to import: mistakes on the command line come first
    from self_ensemble.generation.answering import Answering, AnyEngine
    from self_ensemble.generation.likelihood import ScoringRequest
    from self_ensemble.generation.request import Request
    from self_ensemble.generation.stats import Stats

    AnyRequest = Request | ScoringRequest

# Tokens: of longer answers progress is told in tokens too.
LONG_ANSWER = 100


class ResumableRun(ABC):
    """The lock, the journal, the clock and the statistics of a run.

    Args:
        stem: of the result, without suffix.
        identity: what the result depends on; JSON types.
        num_questions: of the run.
        overwrite: a finished result is made again.

    A subclass says what is finished and which journal is gone on from, and writes the result.
    """

    verb: str  # what a run does with its questions, as in `nothing was answered yet`

    def __init__(
        self, stem: Path, identity: dict[str, Any], *, num_questions: int, overwrite: bool
    ):
        self.stem = stem
        self.identity = identity
        self.num_questions = num_questions
        self.overwrite = overwrite

    @property
    @abstractmethod
    def finished_file(self) -> Path:
        """What is named where a result is finished."""

    @abstractmethod
    def is_finished(self) -> bool:
        """Whether there is nothing to do, as far as can be told without the lock."""

    @abstractmethod
    def open_journal(self) -> Journal | None:
        """The journal of an interrupted run of the same, or a new one; None: all is finished.

        Called while the lock is held. Raises UserError where what is there belongs to another run.
        """

    @property
    def next_command(self) -> str:
        """What goes on with an interrupted run."""
        return "the same command"

    @contextmanager
    def claimed(self) -> Iterator[bool]:
        """Whether there is anything to do; if so, the result is this process' own inside.

        Yields:
            False where the result is finished already, which is said. Else `begin`, `answer_pass`
            and the subclass' `write` can be called.

        Raises:
            UserError: another process holds the result, it or its journal belongs to another run,
                or its folder cannot be written.
        """
        finished = self.is_finished()
        if not finished:
            with held(self.stem):
                remove_leftovers(self.stem)
                journal = self.open_journal()
                finished = journal is None  # by the time that the lock was free
                if journal is not None:
                    self.journal = journal
                    advise(self._how_to_go_on)
                    yield True
                    advise(None)  # not after an error: Ctrl-C is one, its advice still to be told
        if finished:
            sweep(self.stem)
            say(f"{self.finished_file} is finished already; --overwrite makes it again")
            yield False

    def _how_to_go_on(self) -> str:
        if self.journal.size == 0:
            return f"nothing was {self.verb} yet; the same command begins again"
        return f"what was {self.verb} is kept in {self.journal.path}; {self.next_command} goes on"

    def begin(self, engine: AnyEngine, environment: dict[str, Any]) -> None:
        """The model is there: note what computes, and go on with clock and statistics."""
        from self_ensemble.generation.stats import Stats

        self.engine = engine
        self.environment = environment
        state = self.journal.state or {"counts": {}, "seconds": 0.0, "fitting": None}
        self.stats = Stats(**state["counts"])
        # Another device has other memory.
        same = self.journal.environment == environment
        self.max_batch_size: int | None = state["fitting"] if same else None
        self.computed_by = Counter(state.get("computed_by", {}))
        self._counted_prefixes: set[tuple[int, ...]] = set()
        self.journal.begin(environment)
        self._started = time.monotonic() - state["seconds"]

    def answer_pass(
        self,
        name: str,
        request: AnyRequest,
        entries: Entries[Kept],
        *,
        compute: Callable[..., Answering[Any]],
        batch_size: int | None,
        unit: str,
    ) -> Iterator[list[tuple[int, Kept]]]:
        """One pass, with progress on stderr; each batch is kept before it is given.

        Args:
            name: of the pass, in the journal and for the user.
            request: what is asked.
            entries: how answers stand in the journal.
            compute: begins to answer the request, with the arguments of `Engine.generate`.
            batch_size: of the request's questions; None chooses.
            unit: what one of them is.

        Yields:
            Batches of (index into the request's questions, what `entries` reads); first those that
            an interrupted run has answered.
        """
        engine, journal, count = self.engine, self.journal, len(request.questions)
        kept = len(journal.answered.get(name, ()))
        if kept:
            say(f"{name}: {kept} of {count} {unit} were {self.verb} before")
            for before in journal.kept(name):
                yield [(index, entries.read(index, entry)) for index, entry in before]
        batches = journal.batches(
            name,
            count,
            batch_size,
            lambda indices: engine.schedule(request.questions, batch_size, indices),
            questions=self.num_questions,
        )
        earlier = self._with_prefix(request.prefix, is_counted=kept > 0)
        shows_tokens = request.max_new_tokens > LONG_ANSWER
        with progress(count, name, unit, begin=kept) as advance:

            def on_progress(finished: int, tokens: int) -> None:
                advance.reach(kept + finished, tokens if shows_tokens else None)

            generation = compute(
                request,
                batches=batches,
                batch_size=batch_size,
                max_batch_size=self.max_batch_size,
                on_progress=on_progress,
            )
            done, others = kept, self.computed_by
            for batch in generation:
                self.stats = earlier + generation.stats
                self.computed_by = others + Counter(generation.computed_by)
                self.max_batch_size = generation.max_batch_size
                self._tell_of_joined(generation.environment)
                written = {index: entries.write(index, answer) for index, answer in batch}
                journal.add(name, list(written), list(written.values()), self.state())
                done += len(batch)
                on_progress(done - kept, generation.stats.decoded_tokens)
                yield [(index, entries.read(index, entry)) for index, entry in written.items()]

    def _tell_of_joined(self, environment: Mapping[str, Any]) -> None:
        """Workers have come in since `begin`, perhaps of another kind.

        environment: of all of them; of what `begin` was not told nothing is told now.
        """
        grown = {name: environment.get(name, told) for name, told in self.environment.items()}
        if grown != self.environment:
            self.environment = grown
            self.journal.begin(grown, joined=True)

    def _with_prefix(self, prefix: tuple[int, ...], *, is_counted: bool) -> Stats:
        """The statistics so far and the prefix's tokens, which count once however often a run
        that was interrupted encodes them.

        is_counted: the journal's statistics hold them.
        """
        from self_ensemble.generation.stats import Stats

        is_new = prefix not in self._counted_prefixes
        self._counted_prefixes.add(prefix)
        if is_new and not is_counted:
            return self.stats + Stats(encoded_tokens=len(prefix))
        return self.stats

    @property
    def seconds(self) -> float:
        """How long the run has worked, interruptions left out."""
        return time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """What the run goes on from, as the journal keeps it."""
        state = {
            "counts": asdict(self.stats),
            "fitting": self.max_batch_size,
            "seconds": round(self.seconds, 3),
        }
        return state | self.told_of_workers()

    def told_of_workers(self) -> dict[str, Any]:
        """For the manifest: how many questions each kind of worker has answered."""
        return {"computed_by": dict(self.computed_by)} if self.computed_by else {}

    def begun_with(self) -> dict[str, Any]:
        """For the manifest: the environments of earlier processes, where they were others.

        Who publishes must see that not all was computed alike.
        """
        others = [each for each in self.journal.environments if each != self.environment]
        return {"begun_with": others} if others else {}
