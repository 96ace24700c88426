"""Decode streams: what one decoded row is made of, and how a question becomes one stream or N.

Legend: ``B`` questions of a batch, ``n`` streams of a question, ``R = B * n`` rows, ``K`` segments
of a row, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from self_ensemble.attention.positions import (
    PositionIds,
    assign_positions,
    assign_question_positions,
)
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.system.errors import UserError

# (logits [B, n, V] float32, weights [B, n] or None) → scores [B, V], whose log-softmax is the
# distribution that a question's next token is taken from.
Reduce = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
# (logits [B, N, V] float32 of each paraphrase's first answer token, as if it were asked alone) →
# [B, N], logarithms of the paraphrases' weights, up to a constant of each question.
Weigh = Callable[[torch.Tensor], torch.Tensor]

# Logits whose distributions are computed at once: several copies of them are needed.
WEIGHED_LOGITS = 1 << 26


@dataclass(frozen=True)
class Stream:
    """One decoded row.

    segments: K tuples of token ids. tail: the fused tokens it opens with; empty in the layout
    ``concat``, where the first token is read off the last segment. separators: token ids that
    belong to no segment and that every fused token sees.
    """

    segments: tuple[tuple[int, ...], ...]
    tail: tuple[int, ...]
    separators: tuple[int, ...]
    positions: PositionIds

    @property
    def encoded_tokens(self) -> int:
        return sum(map(len, self.segments)) + len(self.separators)

    @property
    def answer_start(self) -> int:
        """The position of the first generated token."""
        return self.positions.fused_start + len(self.tail)


def attention_streams(question: SplitQuestion, prefix_length: int, positions: str) -> list[Stream]:
    """One stream that sees every segment: the fusion is in the attention."""
    assigned = assign_question_positions(question, prefix_length, positions)
    separators = tuple(token for _, token in question.separators)
    return [Stream(question.segments, question.tail, separators, assigned)]


def logit_streams(question: SplitQuestion, prefix_length: int) -> list[Stream]:
    """A stream a paraphrase, each as if it were alone: the fusion is at the logits."""
    return [
        Stream(
            (segment,), question.tail, (), assign_positions([len(segment)], prefix_length, "left")
        )
        for segment in question.segments
    ]


def combine_streams(
    reduce: Reduce,
    logits: torch.Tensor,
    weights: torch.Tensor | None,
    counts: Sequence[int],
) -> torch.Tensor:
    """Each question's streams combined: logits [B, n, V] → scores [B, V].

    Args:
        reduce: how.
        logits: n is the most streams that a question has; behind a question's own comes padding.
        weights: [B, n], or None.
        counts: how many streams each question has. Those with as many are reduced together, so
            that a reduction never sees padding.

    Raises:
        UserError: a registered logit method returns another shape.
    """
    n = logits.shape[1]
    if set(counts) == {n}:
        return _checked_scores(reduce(logits, weights), logits)
    scores = torch.empty_like(logits[:, 0])
    for count in sorted(set(counts)):
        places = [place for place, its in enumerate(counts) if its == count]
        at = torch.tensor(places, device=logits.device)
        its_logits = logits[at, :count]
        given = None if weights is None else weights[at, :count]
        scores[at] = _checked_scores(reduce(its_logits, given), its_logits)
    return scores


def _checked_scores(scores: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    expected = [logits.shape[0], logits.shape[-1]]
    if list(scores.shape) != expected:
        raise UserError(
            "a logit method must return scores of the shape [questions, vocabulary] = "
            f"{expected}; this one returns {list(scores.shape)}"
        )
    return scores


def weigh_paraphrases(
    weigh: Weigh, logits: torch.Tensor, counts: Sequence[int], most: int | None = None
) -> torch.Tensor:
    """Each question's weights, [B, N] float32, summing to one; behind a question's own zeros.

    Args:
        weigh: how.
        logits: of the paraphrases of all questions, one behind the other, [sum of counts, V].
        counts: how many paraphrases each question has. `weigh` never sees padding.
        most: N, the most that any question has; None: any of these.

    Raises:
        UserError: it returns another shape, or leaves a question no paraphrase.
    """
    counted = torch.tensor(counts)
    first = counted.cumsum(0) - counted
    weights = torch.zeros(len(counts), most or max(counts), device=logits.device)
    for count in sorted(set(counts)):
        alike = (counted == count).nonzero()[:, 0]
        for part in alike.split(max(1, WEIGHED_LOGITS // (count * logits.shape[-1]))):
            rows = (first[part, None] + torch.arange(count)).to(logits.device)
            found = weigh(logits[rows].float())
            if list(found.shape) != list(rows.shape):
                raise UserError(
                    "a weighting must return logarithms of the shape [questions, paraphrases] = "
                    f"{list(rows.shape)}; this one returns {list(found.shape)}"
                )
            found = found.float().softmax(-1)
            if not found.isfinite().all():
                raise UserError(
                    "a paraphrase's weight is not a number: the logits of its first answer token "
                    "are not numbers in this number format (use --dtype float32), or the "
                    "weighting leaves no paraphrase"
                )
            weights[part.to(logits.device), :count] = found
    return weights


def only_stream(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The reduction of a question that has one stream: [B, 1, V] → [B, V]."""
    assert logits.shape[1] == 1, logits.shape
    return logits[:, 0]
