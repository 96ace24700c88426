"""A request whose continuations are being scored, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from self_ensemble.attention.kv_state import EncodeState
from self_ensemble.generation.encode import encode_streams
from self_ensemble.generation.likelihood import (
    CPU_LOGITS,
    CPU_SCORES,
    GPU_LOGITS,
    GPU_SCORES,
    SEGMENT_TOKENS,
    Likelihood,
    Row,
    RowLimits,
    ScoringRequest,
    group_rows,
    pad_rows,
    plan_rows,
    read_rows,
)
from self_ensemble.generation.passes import Pass
from self_ensemble.generation.rows import make_rows
from self_ensemble.generation.streams import Stream, weigh_paraphrases


class LikelihoodPass(Pass[tuple[Likelihood, ...]]):
    """A request whose continuations are being scored, batch by batch; see `Pass`."""

    _request: ScoringRequest

    def _compute(
        self,
        questions: Sequence[int],
        places: int,
        finished: Callable[[int, tuple[Likelihood, ...]], None],
    ) -> None:
        for begin in range(0, len(questions), places):
            part = questions[begin : begin + places]
            for index, likelihoods in zip(part, self._score(part), strict=True):
                finished(index, likelihoods)

    def _score(self, part: Sequence[int]) -> list[tuple[Likelihood, ...]]:
        """1. encode all segments, isolated; 2. read the continuations' rows, some at a time."""
        request = self._request
        groups = [request.questions[index] for index in part]
        streams = [stream for group in groups for stream in group]
        encoded, first = encode_streams(
            self._context.forward,
            streams,
            self._context.prefix,
            each_tail=request.weigh is not None,
        )
        self.stats.encoded_tokens += sum(stream.encoded_tokens for stream in streams)
        weights = None if request.weights is None else request.weights[list(part)]
        of_segments = None
        if request.weigh is not None:
            assert first is not None
            tails = sum(len(stream.segments) * len(stream.tail) for stream in streams)
            self.stats.encoded_tokens += tails
            counts = [sum(len(stream.segments) for stream in group) for group in groups]
            if all(len(group) == 1 for group in groups):
                of_segments = weigh_paraphrases(
                    request.weigh, first, counts, self._context.partitions
                )
                weights = torch.ones(len(groups), 1)  # of each question's only stream
            else:
                weights = weigh_paraphrases(request.weigh, first, counts)
            first = None

        rows, begin = [], 0
        for question, (index, group) in enumerate(zip(part, groups, strict=True)):
            own = range(begin, begin := begin + len(group))
            rows += plan_rows(question, own, group[0].tail, request.continuations[index])
        found: list[dict[int, Likelihood]] = [{} for _ in part]
        for chunk in group_rows(rows, groups, self._limits(streams)):
            logits = self._row_logits(chunk, streams, encoded, first, of_segments)
            for question, continuation, likelihood in read_rows(
                chunk, logits, request.reduce, weights
            ):
                found[question][continuation] = likelihood
                self.stats.decoded_tokens += len(likelihood.logprobs)
        return [tuple(each[index] for index in range(len(each))) for each in found]

    def _limits(self, streams: Sequence[Stream]) -> RowLimits:
        """streams: that were encoded together."""
        config, on_cpu = self._engine.config, self._engine.device.type == "cpu"
        return RowLimits(
            distributions=(CPU_LOGITS if on_cpu else GPU_LOGITS) // config.vocab_size,
            segment_tokens=max(SEGMENT_TOKENS, sum(s.encoded_tokens for s in streams)),
            scores=(CPU_SCORES if on_cpu else GPU_SCORES) // config.num_attention_heads,
            prefix=len(self._context.prefix.ids),
        )

    def _row_logits(
        self,
        rows: Sequence[Row],
        streams: Sequence[Stream],
        encoded: EncodeState,
        first: torch.Tensor | None,
        weights: torch.Tensor | None,
    ) -> torch.Tensor:
        """[rows * n, W, V], as `read_rows` takes them."""
        device = self._engine.device
        of = [index for row in rows for index in row.streams]
        before = None if first is None else first[of][:, None]
        if not any(row.token_ids for row in rows):
            assert before is not None
            return before
        ids, positions, mask = pad_rows(rows, streams)
        width = max(len(stream.separators) for stream in streams) + ids.shape[1]
        state = make_rows(self._context, streams, encoded, of, slots=width, weights=weights)
        state.append(positions.to(device), mask.to(device))
        self.stats.count_forward(len(of))
        with self._engine.wrapper.using(state):
            logits = self._context.forward.fused_tokens(
                ids.to(device), positions.to(device), max(row.wanted for row in rows)
            )
        return logits if before is None else torch.cat([before, logits.float()], dim=1)
