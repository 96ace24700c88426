"""A request that is being answered, batch by batch: how many at a time, and what fits in memory.

Legend: ``B`` questions of a batch, ``n`` streams of a question, ``R = B * n`` rows, ``V``
vocabulary.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch

from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.cuda_graphs import CapturedDecodeState
from self_ensemble.attention.rotary import RotaryTables
from self_ensemble.generation import batching
from self_ensemble.generation.decode import Answer, DecodeLoop, OpenedRows
from self_ensemble.generation.encode import Prefix, encode_streams
from self_ensemble.generation.forward import Forward
from self_ensemble.generation.patched_model import PatchedModel
from self_ensemble.generation.request import Request
from self_ensemble.generation.rows import (
    Captured,
    RowContext,
    RowState,
    make_rows,
    own_width,
    read_tails,
)
from self_ensemble.generation.sampling import Chooser, Greedy, Sampler
from self_ensemble.generation.stats import Stats
from self_ensemble.generation.stopping import StopRule
from self_ensemble.generation.streams import Stream, combine_streams, weigh_paraphrases
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

# Fused tokens that a row has room for at first; more as they come.
FIRST_SLOTS = 64
# From so many tokens an answer on, captured batches get smaller in small steps.
FINE_FROM = 100

Given = TypeVar("Given")
# (finished questions, tokens so far)
OnProgress = Callable[[int, int], None]


class Pass(Iterator[list[tuple[int, Given]]], Generic[Given]):
    """A request over whose questions a model passes, batch by batch.

    Args:
        engine: whose model.
        request: what is asked.
        prefix, rotary: of the request.
        batches: indices of its questions.
        captured: decode steps are captured.
        batch_size: questions at a time; None for what fits.
        max_batch_size: see below; of an earlier pass.
        on_progress: see `Engine.generate`.

    Attributes:
        stats: what was computed so far.
        max_batch_size: what memory allows at a time, once it has run out; None before.
        computed_by, environment: see `answering.Answering`.
    """

    def __init__(
        self,
        engine: PatchedModel,
        request: Request,
        prefix: Prefix,
        rotary: RotaryTables | None,
        batches: Sequence[Sequence[int]],
        *,
        captured: bool,
        batch_size: int | None,
        max_batch_size: int | None,
        on_progress: OnProgress | None = None,
    ):
        self.stats = Stats()
        self.computed_by: Mapping[str, int] = {}
        self.environment: Mapping[str, Any] = {}
        self.max_batch_size = max_batch_size
        self._engine = engine
        self._request = request
        self._batches = iter(batches)
        self._batch_size = batch_size
        self._captured = captured
        self._on_progress = on_progress
        memory = engine.config, engine.devices, engine.model.dtype.itemsize
        self._tokens_at_once = batching.tokens_at_once(*memory)
        self._tokens_kept = batching.tokens_kept(*memory, request.max_new_tokens)
        stop = request.stop
        self._stop = stop if isinstance(stop, StopRule) else engine.stop_rule(stop)
        self._max_new_tokens = request.max_new_tokens
        self._context = RowContext(
            Forward(engine.model, engine.wrapper, compiled=captured),
            prefix,
            rotary,
            request.fusion,
            request.extent.segments,
            request.observe,
        )
        self._prepare(batches)

    def _prepare(self, batches: Sequence[Sequence[int]]) -> None:
        """What is known of all batches before the first."""

    def __next__(self) -> list[tuple[int, Given]]:
        return self._answered(list(next(self._batches)))

    def answer_part(self, part: Request) -> list[tuple[int, Given]]:
        """Answer all questions of a part of the request, as one batch; indices are the part's.

        What is longest in the whole request must be in what the pass was begun with: so a part is
        computed with the same shapes as if all of it were here.
        """
        self._request = part
        return self._answered(list(range(len(part.questions))))

    def _answered(self, batch: list[int]) -> list[tuple[int, Given]]:
        found = self._compute_what_fits(batch)
        return [(index, found[index]) for index in batch]

    @abstractmethod
    def _compute(
        self, questions: Sequence[int], places: int, finished: Callable[[int, Given], None]
    ) -> None:
        """Tell ``finished`` what each question is given, with so many of them at a time.

        May run out of memory in the middle.
        """

    def _places(self, batch: Sequence[int]) -> int:
        """How many of a batch's questions are computed at a time; the others wait for a place."""
        request = self._request
        if self._batch_size is not None:
            places = self._batch_size
        else:
            places = batching.places(
                [request.questions[index] for index in batch],
                tokens_at_once=self._tokens_at_once,
                tokens_kept=self._tokens_kept,
                max_new_tokens=self._max_new_tokens,
            )
        return min(places, len(batch), self.max_batch_size or len(batch))

    def _compute_what_fits(self, batch: list[int]) -> dict[int, Given]:
        """The batch, so many at a time as the memory has room for."""
        found: dict[int, Given] = {}
        while left := [index for index in batch if index not in found]:
            places = min(self._places(batch), len(left))
            if self._has_room(left, places, found):
                self.stats.largest_batch = max(self.stats.largest_batch, places)
                break
            # Outside the handler, which still held the failed tensors.
            if places == 1:
                raise UserError(
                    "out of memory with one question at a time: take fewer paraphrases or "
                    "few-shot examples, a smaller --max_new_tokens, or a smaller model"
                )
            self._engine.release()
            self._memory_ran_out()
            if self.max_batch_size is None:
                logger.warning("out of memory with %d questions at a time: halved", places)
            self.stats.out_of_memory += 1
            self.max_batch_size = -(-places // 2)
        return found

    @torch.inference_mode()
    def _has_room(self, left: Sequence[int], places: int, found: dict[int, Given]) -> bool:
        """Compute what is left; whether memory held out. What was finished before it ran out
        counts."""
        with self._engine.computing(), self._engine.telling(self._captured):
            try:
                self._compute(left, places, found.__setitem__)
            except torch.OutOfMemoryError:
                return False
        self._engine.has_started()
        return True

    def _memory_ran_out(self) -> None:
        """The next batches are smaller."""


class Generation(Pass[Answer]):
    """Answers that are being generated; see `Pass`."""

    def _prepare(self, batches: Sequence[Sequence[int]]) -> None:
        self._finished = 0
        self._steps = self._engine.captured_steps if self._captured else None
        self._streams = self._request.extent.streams
        weighs = self._request.weigh is not None
        self._weighs_segments, self._weighs_streams = (
            weighs and self._streams == 1,
            weighs and self._streams > 1,
        )
        self._found_weights: dict[int, torch.Tensor] = {}  # of each question's streams, [n]
        # A batch of one row has kernels of its own, that would be compiled in mid-run.
        self._fewest_slots = 1 if all(self._places(batch) == 1 for batch in batches) else 2
        # Room for the largest encode pass, so that nothing is moved; none where memory ran out.
        self._capacity = 0
        if self._captured and self.max_batch_size is None:
            self._capacity = max(map(self._most_encoded, batches), default=0)

    def _memory_ran_out(self) -> None:
        self._capacity = 0

    def _most_encoded(self, batch: Sequence[int]) -> int:
        """Packed tokens of the batch's largest encode pass."""
        groups = (self._request.questions[index] for index in batch)
        tokens = sorted(sum(map(self._encoded, group)) for group in groups)
        return batching.padded_length(sum(tokens[-self._places(batch) :]), self._engine.device)

    def _encoded(self, stream: Stream) -> int:
        """How many tokens of a stream the encode pass has."""
        tails = len(stream.segments) * len(stream.tail) if self._weighs_segments else 0
        return stream.encoded_tokens + tails

    def _compute(
        self, questions: Sequence[int], places: int, finished: Callable[[int, Answer], None]
    ) -> None:
        def count(question: int, answer: Answer) -> None:
            finished(question, answer)
            self._finished += 1

        self._loop(questions, places).run(questions, places, count)

    def _loop(self, questions: Sequence[int], places: int) -> DecodeLoop:
        request, engine = self._request, self._engine
        waits = len(questions) > places
        groups = [request.questions[index] for index in questions]
        streams = [stream for group in groups for stream in group]
        chooser: Chooser = Greedy()
        if request.sampling is not None:
            chooser = Sampler(request.sampling, engine.device)
        return DecodeLoop(
            open=partial(self._open, self._sizes(streams, waits)),
            step=self._step,
            reduce=self._reduce,
            chooser=chooser,
            stop=self._stop,
            compact=self._compact,
            eos_ids=engine.eos_ids,
            limit=request.limit,
            streams=self._streams,
            overlapped=self._steps is not None,
            stats=self.stats,
        )

    def _sizes(self, streams: Sequence[Stream], waits: bool) -> _Sizes:
        """Of the rows of a batch, in which others may wait."""
        new, width = self._request.max_new_tokens, own_width(streams)
        most, slots = width + new, width + min(new, FIRST_SLOTS)
        if waits:  # room for rows that begin later than others
            slots += FIRST_SLOTS // 2
        return _Sizes(
            slots=slots,
            most_slots=most,
            longest=max(len(segment) for stream in streams for segment in stream.segments),
            room=max(sum(map(len, s.segments)) for s in streams) if waits else None,
        )

    def _open(self, sizes: _Sizes, questions: Sequence[int], beside: bool) -> OpenedRows:
        """Encode questions, and read their tails.

        beside: they come in beside others, who are in the buffers.
        """
        request, context = self._request, self._context
        groups = [request.questions[index] for index in questions]
        streams = [stream for group in groups for stream in group]
        rows = self._rows(groups)
        if request.sampling is not None:
            streams, rows = _alike_once(streams, rows)
        self.stats.encoded_tokens += sum(map(self._encoded, streams))
        of_rows = [streams[row] for row in rows]
        # Draws of a question are alike until their first token. Captured rows stay where they are.
        spread = self._steps is None and len(streams) < len(rows)
        begun = list(range(len(streams))) if spread else rows
        captured = None
        if self._steps is not None:
            captured = Captured(
                BufferPool() if beside else self._steps.buffers,
                self._steps.buffers,
                self._capacity,
                sizes.longest,
                None if beside else sizes.room,
            )
        width = own_width(of_rows)
        encoded, last = encode_streams(
            context.forward,
            streams,
            context.prefix,
            each_tail=self._weighs_segments,
            buffers=None if captured is None else captured.encoding,
            capacity=0 if captured is None else captured.capacity,
        )
        weights = None
        if self._weighs_segments:
            assert last is not None and request.weigh is not None
            counts = [len(stream.segments) for stream in streams]
            weights = weigh_paraphrases(request.weigh, last, counts, context.partitions)
            last = None
        state = make_rows(
            context,
            streams,
            encoded,
            begun,
            slots=width if beside else sizes.slots,
            most_slots=width if beside else sizes.most_slots,
            captured=captured,
            weights=weights,
        )
        if last is not None:
            logits = last[torch.tensor(begun, device=last.device)]
        else:
            self.stats.count_forward(len(begun))
            with self._engine.wrapper.using(state):
                logits = read_tails(context.forward, [streams[row] for row in begun], state)
        if spread:
            at = torch.tensor(rows, device=logits.device)
            state.keep_rows(at)
            logits = logits[at]
        if self._weighs_streams:
            self._weigh_streams(questions, logits)
        starts = [stream.answer_start for stream in of_rows]
        positions = torch.tensor(starts, device=self._engine.device)
        return OpenedRows(list(questions), state, logits, positions)

    def _weigh_streams(self, questions: Sequence[int], logits: torch.Tensor) -> None:
        """Weights of these questions' streams, from the logits of their first tokens, [R, V]."""
        request, n = self._request, self._streams
        assert request.weigh is not None
        counts = [len(request.questions[index]) for index in questions]
        own = [place * n + k for place, count in enumerate(counts) for k in range(count)]
        weights = weigh_paraphrases(request.weigh, logits[own], counts, n)
        self._found_weights.update(zip(questions, weights, strict=True))

    def _rows(self, groups: Sequence[Sequence[Stream]]) -> list[int]:
        """Of which stream each row is; as many for each question.

        A question with fewer streams than others has its first one again, and where steps are
        captured the last question stands there again, up to a number of rows that is captured.
        """
        rows: list[int] = []
        first = 0
        for group in groups:
            rows += [first + (k if k < len(group) else 0) for k in range(self._streams)]
            first += len(group)
        if self._steps is not None:
            missing = batching.captured_slots(len(groups), self._fewest_slots) - len(groups)
            rows += rows[-self._streams :] * missing
        return rows

    def _reduce(self, logits: torch.Tensor, questions: Sequence[int]) -> torch.Tensor:
        """See `decode.ReducePlaces`."""
        request = self._request
        by_question = logits.unflatten(0, (-1, self._streams))  # [B, n, V]
        weights = None
        if request.weights is not None:
            weights = request.weights[list(questions)].to(logits.device)
        elif self._weighs_streams:
            weights = torch.stack([self._found_weights[index] for index in questions])
        elif self._weighs_segments:
            weights = torch.ones(len(questions), 1, device=logits.device)  # of the only stream
        counts = [len(request.questions[index]) for index in questions]
        return combine_streams(request.reduce, by_question, weights, counts)

    def _compact(self, running: Sequence[int], size: int) -> list[int] | None:
        if self._steps is None:
            return batching.compacted(running, size)
        fine = self._request.max_new_tokens >= FINE_FROM
        return batching.compacted_captured(running, size, self._fewest_slots, fine=fine)

    def _step(self, state: RowState, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One more token a row: ids, positions [R] → logits [R, V], until the next step."""
        if self._on_progress is not None:
            self._on_progress(self._finished, self.stats.decoded_tokens)
        ids, positions = ids[:, None], positions[:, None]
        forward = self._context.forward.fused
        with self._engine.wrapper.using(state):
            state.advance(1)
            if self._steps is not None:
                assert isinstance(state, CapturedDecodeState)
                reads = self._context.prefix, self._context.rotary
                logits = self._steps.run(state, forward, ids, positions, reads)
                if logits is not None:
                    return logits
            state.mark(positions, torch.ones_like(positions, dtype=torch.bool))
            return forward(ids, positions)


def _alike_once(streams: Sequence[Stream], rows: Sequence[int]) -> tuple[list[Stream], list[int]]:
    """Streams without repetitions, and of which of them each row is."""
    place: dict[Stream, int] = {}
    for stream in streams:
        place.setdefault(stream, len(place))
    return list(place), [place[streams[row]] for row in rows]


@dataclass(frozen=True)
class _Sizes:
    """Of a batch's rows: see `FusedTokenState` and `CapturedDecodeState`."""

    slots: int
    most_slots: int
    longest: int
    room: int | None
