"""Likelihoods of given continuations, from the same encode pass and attention as generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from self_ensemble.attention.continuations import Continuation
from self_ensemble.attention.fusion import Fusion
from self_ensemble.generation.streams import Reduce, Stream, only_stream


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
class ScoringRequest:
    """Questions with continuations whose likelihood is asked for; else as `Request`.

    Args:
        prefix, questions, fusion, reduce, weights: see `Request`.
        continuations: of each question, at least one.
    """

    prefix: tuple[int, ...]
    questions: Sequence[Sequence[Stream]]
    continuations: Sequence[Sequence[Continuation]]
    fusion: Fusion = field(default_factory=Fusion)
    reduce: Reduce = only_stream
    weights: torch.Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.questions)
        assert len(self.continuations) == count, (len(self.continuations), count)
        assert self.weights is None or len(self.weights) == count, (len(self.weights), count)

    @property
    def max_new_tokens(self) -> int:
        """The longest continuation, in tokens; 1 where there is no question."""
        return max((len(c.token_ids) for each in self.continuations for c in each), default=1)
