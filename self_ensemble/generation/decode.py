"""The decode loop, the only one of the project: rows of fused tokens, a token a row and step.

Legend: ``B`` slots of a batch, ``n`` streams of a question, ``R = B * n`` rows, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from self_ensemble.attention.kv_state import FusedTokenState
from self_ensemble.generation.sampling import Chooser
from self_ensemble.generation.stats import Stats
from self_ensemble.generation.stopping import StopRule
from self_ensemble.generation.streams import Reduce, combine_streams
from self_ensemble.system.errors import UserError

NOT_NUMBERS = "the model's logits are not numbers in this number format; use --dtype float32"


@dataclass(frozen=True)
class Answer:
    """What one question got.

    token_ids: what was generated, without an end-of-sequence token.
    logprobs: natural log-probabilities of the answer's tokens; of a stop token where its text
        before the newline is part of the answer.
    truncated: the token limit came before a stop.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    truncated: bool


@dataclass(frozen=True)
class DecodeLoop:
    """How rows go on, step by step.

    step: (ids [R], positions [R]) → logits [R, V] of one more token a row, until the next step.
    reduce: how a question's streams are combined, see `streams.Reduce`.
    chooser: takes tokens from the combined scores.
    stop: when a question ends.
    compact: (running slots, number of slots) → the slots to go on with, or None for all.
    eos_ids: token ids that are no part of an answer that they end.
    max_new_tokens: the limit.
    overlapped: read what a step chose while the next one runs. A question may then be carried for a
        step more than it needs, which changes nothing in its answer.
    """

    step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    reduce: Reduce
    chooser: Chooser
    stop: StopRule
    compact: Callable[[Sequence[int], int], list[int] | None]
    eos_ids: Collection[int]
    max_new_tokens: int
    overlapped: bool

    def run(
        self,
        state: FusedTokenState,
        logits: torch.Tensor,
        positions: torch.Tensor,
        *,
        questions: int,
        streams: int,
        weights: torch.Tensor | None,
        stats: Stats,
    ) -> list[Answer]:
        """Decode a batch; each question stops on its own.

        Args:
            state: of the rows, their tails read.
            logits: after the tails, [R, V].
            positions: of the rows' first generated tokens, [R].
            questions: how many there are; slots behind them are padding.
            streams: n, of each question.
            weights: of the streams, [B, n], or None.
            stats: what is computed is added to it.

        Returns:
            The questions' answers, in the order of their slots.

        Raises:
            UserError: a question's scores are not numbers.
        """
        n = streams
        seen = torch.zeros(len(logits) // n, dtype=torch.bool, device=logits.device)
        alive = list(range(questions))  # the question in each slot
        drafts = [_Draft() for _ in alive]
        for step in range(self.max_new_tokens):
            scores = combine_streams(self.reduce, logits.unflatten(0, (-1, n)), weights)
            chosen = self.chooser.choose(scores, step)
            logprob = scores.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
            stop, answers, seen = self.stop(chosen, seen)
            read = read_later(chosen, logprob, stop, answers)
            is_last = step + 1 == self.max_new_tokens
            if self.overlapped and not is_last:
                stats.count_forward(len(chosen) * n)
                logits = self.step(chosen.repeat_interleave(n), positions + step)
            for question, token, value, stops, is_answer in zip(
                alive, *read(len(alive)), strict=True
            ):
                if not drafts[question].stopped:
                    self._take(drafts[question], token, value, stops, is_answer)
                    stats.decoded_tokens += 1
            running = [slot for slot, question in enumerate(alive) if not drafts[question].stopped]
            if not running or is_last:
                break
            slots = self.compact(running, len(chosen))
            if slots is not None:
                keep = torch.tensor(slots, device=logits.device)
                rows = (keep[:, None] * n + torch.arange(n, device=keep.device)).flatten()
                state.keep_rows(rows)
                self.chooser.keep(slots)
                chosen, seen, positions = chosen[keep], seen[keep], positions[rows]
                logits = logits[rows]
                weights = None if weights is None else weights[keep]
                alive = [alive[slot] for slot in running]
            if not self.overlapped:
                stats.count_forward(len(alive) * n)
                logits = self.step(chosen.repeat_interleave(n), positions + step)
        return [draft.finished() for draft in drafts]

    def _take(
        self, draft: _Draft, token: int, logprob: float, stops: bool, is_answer: bool
    ) -> None:
        if math.isnan(logprob):
            raise UserError(NOT_NUMBERS)
        draft.stopped = stops
        if not (stops and token in self.eos_ids):
            draft.token_ids.append(token)
        if is_answer:
            draft.logprobs.append(logprob)


@dataclass
class _Draft:
    """An answer that is being generated."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    def finished(self) -> Answer:
        return Answer(tuple(self.token_ids), tuple(self.logprobs), not self.stopped)


def read_later(
    chosen: torch.Tensor, logprob: torch.Tensor, stop: torch.Tensor, answers: torch.Tensor
) -> Callable[[int], tuple[list[int], list[float], list[bool], list[bool]]]:
    """Begin to fetch what a step chose; the function that waits for it and reads so many."""
    columns = torch.stack([chosen.double(), logprob.double(), stop.double(), answers.double()])
    fetched = None
    if columns.device.type == "cuda":
        pinned = torch.empty(columns.shape, dtype=columns.dtype, pin_memory=True)
        columns = pinned.copy_(columns, non_blocking=True)
        fetched = torch.cuda.Event()
        fetched.record()

    def read(count: int) -> tuple[list[int], list[float], list[bool], list[bool]]:
        if fetched is not None:
            fetched.synchronize()
        chosen, logprob, stop, answers = columns[:, :count].tolist()
        ids = [int(token) for token in chosen]
        return ids, logprob, [value == 1 for value in stop], [value == 1 for value in answers]

    return read
