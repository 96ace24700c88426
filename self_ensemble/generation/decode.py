"""The decode loop, the only one of the project: rows of fused tokens, a token a row and step.

A question that has finished leaves its place to one that waits, so that the rows are of use.

Legend: ``B`` places of a batch, ``n`` streams of a question, ``R = B * n`` rows, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from self_ensemble.generation.rows import RowState
from self_ensemble.generation.sampling import Chooser
from self_ensemble.generation.stats import Stats
from self_ensemble.generation.stopping import StopRule
from self_ensemble.system.errors import UserError


@dataclass(frozen=True)
class Answer:
    """What one question got.

    token_ids: what was generated, without an end-of-sequence token.
    logprobs: natural log-probabilities of the answer's tokens; of a stop token where its text
        before the newline is part of the answer.
    truncated: the token limit came before a stop.
    text_end: where a stop string ended it, how many characters of the text come before it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    truncated: bool
    text_end: int | None = None


def answer_text(tokenizer: Any, answer: Answer) -> str:
    """What was generated, as text, without special tokens and without a stop string."""
    text: str = tokenizer.decode(answer.token_ids, skip_special_tokens=True)
    return text[: answer.text_end]


NOT_NUMBERS = "the model's logits are not numbers in this number format; use --dtype float32"
# Letting waiting questions in costs two forwards beside their tokens, about as much as so many
# steps of all places: where steps are captured, and where they are not. They come in once free
# places have cost as much.
CAPTURED_ADMISSION_STEPS, ADMISSION_STEPS = 1.0, 0.4

# (logits [B * n, V], the question in each place) → scores [B, V]
ReducePlaces = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]


@dataclass(eq=False)
class OpenedRows:
    """Rows whose tails are read.

    questions: in each place; there may be fewer than places, whose rows are padding.
    state: of the rows.
    logits: after the tails, [R, V].
    positions: of the rows' first generated tokens, [R].
    """

    questions: list[int]
    state: RowState
    logits: torch.Tensor
    positions: torch.Tensor


@dataclass(frozen=True)
class DecodeLoop:
    """How rows go on, step by step.

    open: (questions, whether they come in beside others) → their rows.
    step: (the rows' state, ids [R], positions [R]) → logits [R, V] of one more token a row, until
        the next step.
    reduce: how a question's streams are combined.
    chooser: takes tokens from the combined scores.
    stop: when a question ends.
    compact: (running places, number of places) → the places to go on with, or None for all.
    eos_ids: token ids that are no part of an answer that they end.
    limit: of a question's tokens.
    streams: n, of each question.
    overlapped: read what a step chose while the next one runs. A question that a stop ends is then
        carried for a step more than it needs, which changes nothing in its answer.
    stats: what is computed is added to it.
    """

    open: Callable[[Sequence[int], bool], OpenedRows]
    step: Callable[[RowState, torch.Tensor, torch.Tensor], torch.Tensor]
    reduce: ReducePlaces
    chooser: Chooser
    stop: StopRule
    compact: Callable[[Sequence[int], int], list[int] | None]
    eos_ids: Collection[int]
    limit: Callable[[int], int]
    streams: int
    overlapped: bool
    stats: Stats

    def run(
        self,
        questions: Sequence[int],
        places: int,
        finished: Callable[[int, Answer], None],
    ) -> None:
        """Decode until every question has its answer; each stops on its own.

        Args:
            questions: in the order in which they come in.
            places: how many are answered at a time.
            finished: is told of each answer as soon as it is there.

        Raises:
            UserError: a question's scores are not numbers.
        """
        waiting = deque(questions)
        while waiting:  # once more where all places are free at the same time
            self._run(waiting, places, finished)

    def _run(
        self, waiting: deque[int], places: int, finished: Callable[[int, Answer], None]
    ) -> None:
        """Until no question runs any more; some may still wait then."""
        opened = self.open([waiting.popleft() for _ in range(min(places, len(waiting)))], False)
        batch = _Batch(opened, self.streams, self.chooser)
        logits, fresh = opened.logits, list(range(batch.places))
        while True:
            read = self._choose(batch, logits, fresh)
            stepped = self.overlapped and batch.goes_on(self.limit)
            if stepped:
                logits = self._step(batch)
            self._take(batch, read, fresh, finished)
            if not any(batch.running):
                return
            newcomers = self._admit(batch, waiting)
            if newcomers is not None:
                fresh, new_logits = newcomers
                if not stepped:  # they choose before the others go on
                    logits = new_logits
                    continue
                logits[batch.rows_at(fresh)] = new_logits[: len(fresh) * self.streams]
            if not waiting:
                logits = self._compact(batch, logits if stepped else None)
            if not stepped:
                logits = self._step(batch)
            fresh = list(range(batch.places))

    def _choose(self, batch: _Batch, logits: torch.Tensor, fresh: list[int]) -> Read:
        """Take a token for the places whose logits these are; what was taken is to be read."""
        questions = [batch.questions[place] for place in fresh]
        scores = self.reduce(logits[: len(fresh) * self.streams], questions)  # [b, V]
        chosen = self.chooser.choose(scores, fresh)
        logprob = scores.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
        at = batch.at(fresh)
        stop, answers, batch.seen[at] = self.stop(chosen, batch.seen[at])
        batch.chosen[at] = chosen
        return read_later(chosen, logprob, stop, answers)

    def _step(self, batch: _Batch) -> torch.Tensor:
        self.stats.count_forward(batch.places * self.streams)
        batch.idle += batch.running.count(False)
        ids = batch.chosen.repeat_interleave(self.streams)
        logits = self.step(batch.state, ids, batch.positions)
        batch.positions = batch.positions + 1
        return logits

    def _take(
        self,
        batch: _Batch,
        read: Read,
        fresh: list[int],
        finished: Callable[[int, Answer], None],
    ) -> None:
        for place, token, logprob, stops, is_answer in zip(fresh, *read(), strict=True):
            if not batch.running[place]:
                continue
            draft = batch.drafts[place]
            draft.take(token, logprob, stops, is_answer, self.stop, self.eos_ids)
            self.stats.decoded_tokens += 1
            if draft.stopped or draft.steps == self.limit(batch.questions[place]):
                finished(batch.questions[place], draft.finished())
                batch.leave(place)

    def _admit(self, batch: _Batch, waiting: deque[int]) -> tuple[list[int], torch.Tensor] | None:
        """Give free places to waiting questions; the places, and their rows' logits first."""
        steps = CAPTURED_ADMISSION_STEPS if self.overlapped else ADMISSION_STEPS
        if not waiting or batch.idle < steps * batch.places:
            return None
        free = [place for place, runs in enumerate(batch.running) if not runs]
        batch.idle = 0
        batch.state.expect_rows()
        opened = self.open([waiting.popleft() for _ in range(min(len(free), len(waiting)))], True)
        taken = free[: len(opened.questions)]
        batch.put(taken, opened)
        return taken, opened.logits

    def _compact(self, batch: _Batch, logits: torch.Tensor | None) -> torch.Tensor:
        """Fewer places, if enough are free. logits: of the step that was made already, if any."""
        running = [place for place, runs in enumerate(batch.running) if runs]
        kept = self.compact(running, batch.places)
        if kept is not None:
            rows = batch.keep(kept, len(running))
            logits = None if logits is None else logits[rows]
        return torch.empty(0) if logits is None else logits


class _Batch:
    """The questions in the places of a batch, and how far each is.

    Attributes:
        idle: how many steps of a place were of no use since others came in.
        questions: in each place: the one that runs there, ran there, or fills it.
        running: whether there is one that runs.
        state: of all rows.
        chosen: the last token of each place, [B]. seen: see `StopRule`, [B].
        positions: of each row's next token, [R].
    """

    def __init__(self, opened: OpenedRows, streams: int, chooser: Chooser):
        self.streams = streams
        self.chooser = chooser
        self.state, self.positions = opened.state, opened.positions
        self.places = len(opened.positions) // streams
        count = len(opened.questions)
        self.questions = [*opened.questions, *[opened.questions[-1]] * (self.places - count)]
        self.running = [place < count for place in range(self.places)]
        self.drafts = [_Draft() for _ in self.questions]
        self.idle = 0
        device = opened.positions.device
        self.chosen = torch.zeros(self.places, dtype=torch.long, device=device)
        self.seen = torch.zeros(self.places, dtype=torch.bool, device=device)
        chooser.put(list(range(self.places)), self.questions)

    def at(self, places: list[int]) -> torch.Tensor | slice:
        """Indices of places: all of them in order as a slice, which copies nothing."""
        if len(places) == self.places:
            return slice(None)
        return torch.tensor(places, device=self.chosen.device)

    def rows_at(self, places: Sequence[int]) -> torch.Tensor:
        """Indices of their rows."""
        device = self.chosen.device
        first = torch.tensor(places, device=device)[:, None] * self.streams
        return (first + torch.arange(self.streams, device=device)).flatten()

    def goes_on(self, limit: Callable[[int], int]) -> bool:
        """Whether any question needs a token after the one that was just chosen, for all we know.

        What is yet to be read may say that none does.
        """
        return any(
            runs and draft.steps + 1 < limit(question)
            for runs, draft, question in zip(self.running, self.drafts, self.questions, strict=True)
        )

    def leave(self, place: int) -> None:
        self.running[place] = False
        self.state.leave(range(place * self.streams, (place + 1) * self.streams))

    def put(self, places: list[int], opened: OpenedRows) -> None:
        """Questions begin in these places."""
        rows = [place * self.streams + k for place in places for k in range(self.streams)]
        self.state.put_rows(rows, opened.state)
        for place, question in zip(places, opened.questions, strict=True):
            self.questions[place], self.running[place] = question, True
            self.drafts[place] = _Draft()
        self.seen[torch.tensor(places, device=self.seen.device)] = False
        self.positions = self.positions.clone()
        self.positions[self.rows_at(places)] = opened.positions[: len(rows)]
        self.chooser.put(places, opened.questions)

    def keep(self, places: Sequence[int], running: int) -> torch.Tensor:
        """Go on with these places, of which the first so many run. Returns their rows."""
        rows, at = self.rows_at(places), torch.tensor(places, device=self.chosen.device)
        self.state.keep_rows(rows)
        self.chooser.keep(places)
        self.chosen, self.seen, self.positions = (
            self.chosen[at],
            self.seen[at],
            self.positions[rows],
        )
        self.questions = [self.questions[place] for place in places]
        self.drafts = [self.drafts[place] for place in places]
        self.running = [index < running for index in range(len(places))]
        self.places = len(places)
        return rows


@dataclass
class _Draft:
    """An answer that is being generated."""

    steps: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False
    text_end: int | None = None

    def take(
        self,
        token: int,
        logprob: float,
        stops: bool,
        is_answer: bool,
        rule: StopRule,
        eos_ids: Collection[int],
    ) -> None:
        if math.isnan(logprob):
            raise UserError(NOT_NUMBERS)
        self.steps += 1
        self.stopped = stops
        if not (stops and token in eos_ids):
            self.token_ids.append(token)
        if is_answer:
            self.logprobs.append(logprob)
        if not stops and (cut := rule.cut(self.token_ids)) is not None:
            self.stopped, self.text_end = True, cut.text_end
            del self.logprobs[cut.tokens :]

    def finished(self) -> Answer:
        return Answer(tuple(self.token_ids), tuple(self.logprobs), not self.stopped, self.text_end)


Read = Callable[[], tuple[list[int], list[float], list[bool], list[bool]]]


def read_later(
    chosen: torch.Tensor, logprob: torch.Tensor, stop: torch.Tensor, answers: torch.Tensor
) -> Read:
    """Begin to fetch what a step chose; the function that waits for it and reads it."""
    columns = torch.stack([chosen.double(), logprob.double(), stop.double(), answers.double()])
    fetched = None
    if columns.device.type == "cuda":
        pinned = torch.empty(columns.shape, dtype=columns.dtype, pin_memory=True)
        columns = pinned.copy_(columns, non_blocking=True)
        fetched = torch.cuda.Event()
        fetched.record()

    def read() -> tuple[list[int], list[float], list[bool], list[bool]]:
        if fetched is not None:
            fetched.synchronize()
        chosen, logprob, stop, answers = columns.tolist()
        ids = [int(token) for token in chosen]
        return ids, logprob, [value == 1 for value in stop], [value == 1 for value in answers]

    return read
