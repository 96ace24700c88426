"""What is asked of the engine: everything an answer depends on, in one value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.generation.config import DEFAULT_MAX_NEW_TOKENS
from self_ensemble.generation.sampling import Sampling
from self_ensemble.generation.stopping import StopRule
from self_ensemble.generation.streams import Reduce, Stream, Weigh, only_stream


@dataclass(frozen=True)
class Extent:
    """What the questions of a request have at most.

    answer_start: the position of a first generated token.
    rope_offset: see `PositionIds`.
    token: the highest id of segments, tails and separators.
    segments: of a stream. streams: of a question.
    """

    answer_start: int = 0
    rope_offset: int = 0
    token: int = 0
    segments: int = 1
    streams: int = 1

    @classmethod
    def of(cls, questions: Iterable[Sequence[Stream]]) -> Extent:
        """Where there are no questions, the least that there is."""
        start = offset = token = 0
        segments = streams = 1
        for group in questions:
            streams = max(streams, len(group))
            for stream in group:
                start = max(start, stream.answer_start)
                offset = max((offset, *stream.positions.rope_offsets))
                parts = (*stream.segments, stream.tail, stream.separators)
                token = max((token, *(max(part, default=0) for part in parts)))
                segments = max(segments, len(stream.segments))
        return cls(start, offset, token, segments, streams)


@dataclass(frozen=True, eq=False)
class Request:
    """Questions with the prefix, fusion, stop rule and limits that they are answered under.

    Args:
        prefix: token ids that every stream begins with; may be empty.
        questions: the streams of each question. Their number n, and the number K of a stream's
            segments, is the same for all.
        fusion: how a stream's partitions are combined in the attention.
        reduce: how a question's streams are combined at the logits. Where steps are captured, the
            last of the questions may stand there more than once, and the logits hold until the
            next call.
        max_new_tokens: the limit of generated tokens. limits: a lower one of each question's own.
        weights: of the streams, [number of questions, n], handed to ``reduce``.
        weigh: how the paraphrases of a question are weighted by what each says alone: a stream's
            segments, or a question's streams, whose ``weights`` they become. Needs a tail.
        stop: when an answer ends: a rule, or what `GenerationConfig.stop` asks for, of which the
            engine makes one where its model is.
        sampling: how tokens are drawn; None for the likeliest, ties to the lowest id.
        observe: called in every layer of every fused forward, see `attention.kv_state.DecodeState`.
            Nothing is captured then.
        capture: False runs every forward as it is, even on an engine that captures steps.
    """

    prefix: tuple[int, ...]
    questions: Sequence[Sequence[Stream]]
    fusion: Fusion = field(default_factory=Fusion)
    reduce: Reduce = only_stream
    max_new_tokens: int = DEFAULT_MAX_NEW_TOKENS
    limits: Sequence[int] | None = None
    weights: torch.Tensor | None = None
    weigh: Weigh | None = None
    stop: StopRule | tuple[str, ...] | None = None
    sampling: Sampling | None = None
    observe: Callable[..., None] | None = None
    capture: bool = True

    def __post_init__(self) -> None:
        assert self.max_new_tokens > 0, self.max_new_tokens
        count = len(self.questions)
        assert self.weights is None or len(self.weights) == count, (len(self.weights), count)
        given = self.weights is not None or self.fusion.weights is not None
        assert self.weigh is None or not given, "weights are given, or found"
        if self.limits is not None:
            assert len(self.limits) == count, (len(self.limits), count)
            assert all(0 < each <= self.max_new_tokens for each in self.limits), self.limits
        assert self.sampling is None or len(self.sampling.keys) == count, count

    def limit(self, question: int) -> int:
        """The most tokens that a question is given."""
        return self.max_new_tokens if self.limits is None else self.limits[question]

    @cached_property
    def extent(self) -> Extent:
        """See `Extent`. All questions are looked through, once."""
        return Extent.of(self.questions)
