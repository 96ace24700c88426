"""Likelihoods of given continuations, from the same encode pass and attention as generation.

A question's segments are encoded once. A *row* is a sequence of fused tokens, the tail and a
continuation without its last token, in as many streams as the question has; it is read in one
forward. Continuations of which one begins another, such as choices of one token, share a row.

Legend: ``n`` streams of a question, ``R`` rows times their streams, ``K`` segments of a stream,
``M`` tokens of the longest, ``S`` fused tokens of the longest row of a forward, ``W`` of them whose
logits are wanted, ``P`` places whose distributions are read, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from self_ensemble.attention.continuations import Continuation
from self_ensemble.generation.decode import NOT_NUMBERS
from self_ensemble.generation.request import Request
from self_ensemble.generation.rows import left_padded
from self_ensemble.generation.streams import Reduce, Stream, combine_streams
from self_ensemble.system.errors import UserError

# Logits of one forward, in the model's number format; and those that are float32 at a time.
CPU_LOGITS, GPU_LOGITS = 1 << 25, 1 << 28
FLOAT_LOGITS = 1 << 24
# Attention scores of one forward and layer, float32. A choice of many tokens has many towards a
# long prompt, and on a CPU memory that runs out ends the process.
CPU_SCORES, GPU_SCORES = 1 << 26, 1 << 29
# Tokens of segments that the rows of one forward see, at least as many as a batch encodes.
SEGMENT_TOKENS = 4096


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation, under the fused distribution.

    logprobs: the natural log-probability of each of its tokens.
    greedy: of each, whether it was the likeliest token (ties to the lowest id).
    """

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]


# (index into a request's questions, a likelihood for each of its continuations)
ScoredBatch = list[tuple[int, tuple[Likelihood, ...]]]


@dataclass(frozen=True, eq=False)
class ScoringRequest(Request):
    """Questions with continuations whose likelihoods are asked for.

    Nothing is generated: ``stop`` and ``sampling`` play no part, and ``max_new_tokens`` is the
    longest continuation.

    Args:
        continuations: of each question, at least one.
        others: see `Request`.
    """

    continuations: Sequence[Sequence[Continuation]] = ()

    def __post_init__(self) -> None:
        count = len(self.questions)
        assert len(self.continuations) == count, (len(self.continuations), count)
        longest = max((len(c.token_ids) for each in self.continuations for c in each), default=1)
        object.__setattr__(self, "max_new_tokens", longest)
        super().__post_init__()


@dataclass(frozen=True)
class Read:
    """Where a row says how likely a continuation's tokens are.

    continuation: its index.
    outputs: which of the row's distributions these are: 0 is the one before its first token, which
        is read off the segments, and i + 1 the one that follows its token i.
    """

    continuation: int
    outputs: range
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Fused tokens that are read at once, for one question.

    question: its index in the batch. streams: its streams, as indices into the batch's.
    """

    question: int
    streams: range
    token_ids: tuple[int, ...]
    reads: tuple[Read, ...]

    @property
    def wanted(self) -> int:
        """Of how many tokens, counted from the last one, a distribution is read."""
        first = min(read.outputs.start for read in self.reads)
        return len(self.token_ids) + 1 - max(first, 1)


def plan_rows(
    question: int,
    streams: range,
    tail: Sequence[int],
    continuations: Sequence[Continuation],
) -> list[Row]:
    """The fewest rows that read all continuations of a question, longest first."""
    fed = [(*tail, *continuation.token_ids[:-1]) for continuation in continuations]
    rows: dict[tuple[int, ...], list[Read]] = {}
    for index in sorted(range(len(fed)), key=lambda index: (-len(fed[index]), index)):
        tokens, scored = fed[index], continuations[index].scored
        row = next((row for row in rows if row[: len(tokens)] == tokens), tokens)
        end = len(tokens) + 1
        targets = continuations[index].token_ids[-scored:]
        rows.setdefault(row, []).append(Read(index, range(end - scored, end), targets))
    return [Row(question, streams, tokens, tuple(reads)) for tokens, reads in rows.items()]


@dataclass(frozen=True)
class RowLimits:
    """What the rows of one forward may have together, at most; a row alone may have more.

    distributions: that are read.
    segment_tokens: of the segments that they see.
    scores: of attention, of one head.
    prefix: tokens that each of them sees.
    """

    distributions: int
    segment_tokens: int
    scores: int
    prefix: int

    def hold(self, rows: Sequence[Row], groups: Sequence[Sequence[Stream]]) -> bool:
        streams = [stream for row in rows for stream in groups[row.question]]
        R, S = len(streams), max(len(row.token_ids) for row in rows)
        K = max(len(stream.segments) for stream in streams)
        M = max(len(segment) for stream in streams for segment in stream.segments)
        return (
            R * max(row.wanted for row in rows) <= self.distributions
            and sum(stream.encoded_tokens for stream in streams) <= self.segment_tokens
            and R * K * S * (self.prefix + M + S) <= self.scores
        )


def group_rows(
    rows: Sequence[Row], groups: Sequence[Sequence[Stream]], limits: RowLimits
) -> Iterator[list[Row]]:
    """Rows that are read in one forward: near in length, and alike in how many streams they have.

    groups: the streams of each question.
    """

    def length(row: Row) -> tuple[int, int, int]:
        return len(row.streams), row.wanted, len(row.token_ids)

    for _, alike in groupby(sorted(rows, key=length), key=lambda row: len(row.streams)):
        left = list(alike)
        while left:
            # One, and as many more as there is room for; found by halving.
            counts = range(2, len(left) + 1)
            more = bisect_left(counts, True, key=lambda n: not limits.hold(left[:n], groups))
            yield left[: 1 + more]
            left = left[1 + more :]


def pad_rows(
    rows: Sequence[Row], streams: Sequence[Stream]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids, positions and which are real, [rows * n, S] each, left-padded."""
    each = [(row, streams[index]) for row in rows for index in row.streams]
    return left_padded([stream for _, stream in each], [row.token_ids for row, _ in each])


def read_rows(
    rows: Sequence[Row],
    logits: torch.Tensor,
    reduce: Reduce,
    weights: torch.Tensor | None,
) -> Iterator[tuple[int, int, Likelihood]]:
    """What rows of n streams each say of their continuations.

    Args:
        rows: of one forward.
        logits: [rows * n, W, V]; the last column follows a row's last token, and where a row reads
            what comes before its first token, that is in column 0.
        reduce: how a question's streams are combined.
        weights: of the batch's questions, [questions, n].

    Yields:
        (question, continuation, likelihood).
    """
    n, W = len(rows[0].streams), logits.shape[1]
    by_row = logits.unflatten(0, (-1, n))  # [rows, n, W, V]
    targets: dict[tuple[int, int], list[int]] = {}  # (row, output) → tokens asked about
    for at, row in enumerate(rows):
        for read in row.reads:
            for output, target in zip(read.outputs, read.targets, strict=True):
                targets.setdefault((at, output), []).append(target)
    found: dict[tuple[int, int, int], tuple[float, bool]] = {}
    places, at_once = list(targets), max(1, FLOAT_LOGITS // (n * logits.shape[-1]))
    for begin in range(0, len(places), at_once):
        part = places[begin : begin + at_once]
        index = torch.tensor([at for at, _ in part])
        column = torch.tensor([_column(rows[at], output, W) for at, output in part])
        given = None
        if weights is not None:
            given = weights[[rows[at].question for at, _ in part], :n].to(logits.device)
        by_place = by_row[index, :, column].float()
        scores = combine_streams(reduce, by_place, given, [n] * len(part))  # [P, V]
        asked = [(i, target) for i, place in enumerate(part) for target in targets[place]]
        which, tokens = torch.tensor(asked, device=logits.device).T
        logprobs = scores[which, tokens] - scores.logsumexp(-1)[which]
        greedy = scores.argmax(-1)[which] == tokens
        for (i, target), *value in zip(asked, logprobs.tolist(), greedy.tolist(), strict=True):
            found[*part[i], target] = tuple(value)
    for at, row in enumerate(rows):
        for read in row.reads:
            each = [
                found[at, output, target]
                for output, target in zip(read.outputs, read.targets, strict=True)
            ]
            logprobs_of, greedy_of = zip(*each, strict=True)
            if any(map(math.isnan, logprobs_of)):
                raise UserError(NOT_NUMBERS)
            yield row.question, read.continuation, Likelihood(logprobs_of, greedy_of)


def _column(row: Row, output: int, width: int) -> int:
    return 0 if output == 0 else width - 1 - (len(row.token_ids) - output)
