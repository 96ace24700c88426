"""Encode isolated segments; decode with one KV loop. Token ids in, token ids out.

A *stream* is one decoded row: a prefix shared by all, K segments, and fused tokens. Attention
fusion has one stream a question with K = N; logit fusion has N streams a question with K = 1,
whose logits a reduction turns into one token that all of them append. Both go through the loop in
`Engine._decode`, the only one in the project.

Legend: ``B`` questions of a batch, ``n`` streams of a question, ``R = B * n`` rows, ``K`` segments
of a row, ``M`` the longest segment, ``V`` vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch

from self_ensemble.attention.buffers import BufferPool
from self_ensemble.attention.checks import head_shape, reason_of
from self_ensemble.attention.cuda_graphs import CapturedDecodeState, CapturedStep
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState, EncodeState, FusedTokenState
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.positions import (
    PositionIds,
    assign_positions,
    assign_question_positions,
)
from self_ensemble.attention.rotary import read_rotary
from self_ensemble.attention.scoring import KeyValues
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.generation.sampling import pick, uniform
from self_ensemble.system.console import say_if_slow
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

# Tokens encoded in one forward, at most. On a CPU more gains nothing; on a GPU it was not measured.
CPU_TOKENS_PER_BATCH = 4096
GPU_TOKENS_PER_BATCH = 65536
# On a CPU FlexAttention compiles once a length, so packed lengths are rounded up to a multiple of
# this, and longer ones to eight lengths an octave. On a GPU to what a block of the mask has: with
# fewer tokens FlexAttention goes over to another kernel.
FLEX_BUCKET, GPU_FLEX_BUCKET = 1024, 128
# Finished questions leave the batch once they are this share of it. Where steps are recorded, once
# half of it has room for the others: batches of a size then come down by the same sizes.
COMPACT_SHARE = 0.25
# So many recorded steps are kept.
RECORDED_STEPS = 32

STARTING = (
    "compiling for this GPU: up to a minute the first time, sooner in later runs, since the result "
    "is kept on disk (--attention sdpa starts at once, and is slower after that)"
)

Combine = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


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


@dataclass
class Counts:
    """What was computed, for the manifest."""

    encoded_tokens: int = 0
    decoded_tokens: int = 0  # of answers, however many streams each has
    decode_forwards: int = 0
    decode_rows: int = 0  # summed over the forwards
    largest_batch: int = 0  # answers
    out_of_memory: int = 0  # how often a batch was halved


def attention_streams(question: SplitQuestion, prefix_length: int, positions: str) -> list[Stream]:
    """One stream that sees every segment."""
    placement = assign_question_positions(question, prefix_length, positions)
    separators = tuple(token for _, token in question.separators)
    return [Stream(question.segments, question.tail, separators, placement)]


def logit_streams(question: SplitQuestion, prefix_length: int) -> list[Stream]:
    """A stream a paraphrase, each as if it were alone."""
    return [
        Stream(
            (segment,), question.tail, (), assign_positions([len(segment)], prefix_length, "left")
        )
        for segment in question.segments
    ]


def only_stream(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The reduction of a question that has one stream: [B, 1, V] → [B, V]."""
    assert logits.shape[1] == 1, logits.shape
    return logits[:, 0]


class StopRule:
    """Stops a row at end-of-sequence, or at a newline after its first visible character.

    Exact, by token id: what a token's text holds is tabled once for the whole vocabulary. Special
    tokens have no text, as in the generation that is shown.
    """

    def __init__(
        self, tokenizer, eos_ids: Sequence[int], vocabulary: int, device, *, disabled=False
    ):
        texts = tokenizer.batch_decode(
            [[token] for token in range(vocabulary)], skip_special_tokens=True
        )
        table = lambda test: torch.tensor([test(text) for text in texts], device=device)  # noqa: E731
        self.visible = table(lambda text: bool(text.strip()))
        self.newline = table(lambda text: "\n" in text)
        self.newline_after_visible = table(lambda text: "\n" in text.lstrip())
        self.visible_before_newline = table(lambda text: bool(text.split("\n")[0].strip()))
        self.eos = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self.eos[list(eos_ids)] = True
        if disabled:
            for stopping in (self.newline, self.newline_after_visible, self.eos):
                stopping.zero_()

    def __call__(
        self, tokens: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What chosen tokens mean for their rows.

        Args:
            tokens: [B].
            seen: whether a visible character came before, [B].

        Returns:
            Whether the row stops, whether the token has text of the answer or comes before it, and
            the new ``seen``; [B] each.
        """
        eos = self.eos[tokens]
        line_ends = torch.where(seen, self.newline[tokens], self.newline_after_visible[tokens])
        only_ends = line_ends & seen & ~self.visible_before_newline[tokens]
        return eos | line_ends, ~(eos | only_ends), seen | self.visible[tokens]


class Engine:
    """A patched model, its stop rule, and the run's prefix.

    Args:
        model: a causal language model, in eval mode on its device.
        tokenizer: the model's own.
        wrapper: a patched `FlexAttentionWrapper` around the model.
        ignore_stops: generate to the token limit whatever comes (for benchmarks).
        recorded: on a GPU, with compiled FlexAttention, compile the model's layers, record the
            decode step as a CUDA graph and replay it: see docs/performance.md.
    """

    def __init__(
        self,
        model,
        tokenizer,
        wrapper: FlexAttentionWrapper,
        *,
        ignore_stops=False,
        recorded: bool = False,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.wrapper = wrapper
        self.device = model.device
        self.config = model.config.get_text_config()
        vocabulary = self.config.vocab_size
        self.eos_ids = end_of_sequence_ids(model, tokenizer, vocabulary)
        self.stop = StopRule(
            tokenizer, self.eos_ids, vocabulary, self.device, disabled=ignore_stops
        )
        self.prefix_ids: tuple[int, ...] = ()
        self.prefix: dict[int, KeyValues] = {}
        self.rotary = None
        self.fitting: int | None = None  # questions at a time, once memory has run out
        computes = self.device.type, wrapper.backend
        assert not recorded or computes == ("cuda", "flex"), computes
        self.recording = recorded
        self.observe: Callable[..., None] | None = None
        self.room = BufferPool() if recorded else None
        self.capacity = 0  # tokens of the run's largest batch; 0 once memory has run out
        self.recorded_steps: dict[tuple, CapturedStep | None] = {}  # None: has run once as it is
        self.recorded_in = 0  # the room's version
        self.started = not recorded
        self.alone = False  # every question of the run is asked alone
        self.counts = Counts()

    @torch.inference_mode()
    def set_prefix(self, prefix_ids: Sequence[int]) -> None:
        """Encode what every prompt of the run begins with, once."""
        self._check_tokens(prefix_ids)
        self._check_length(len(prefix_ids) + 1)
        self.prefix_ids, self.prefix = (), {}
        self._forget()  # recorded steps read the prefix that was
        if P := len(prefix_ids):
            with self._telling():
                try:
                    plan, _ = self._encode([prefix_ids], [0], {})
                except torch.OutOfMemoryError as error:
                    raise UserError(
                        f"out of memory with the {P} tokens that all prompts begin with: take "
                        "fewer few-shot examples, or a smaller model"
                    ) from error
            self.prefix = {
                # Without a bucket's padding.
                layer: KeyValues(
                    kv.keys[:, :P].clone(memory_format=torch.contiguous_format),
                    kv.values[:, :P].clone(memory_format=torch.contiguous_format),
                )
                for layer, kv in plan.layers.items()
            }
            self.prefix_ids = tuple(prefix_ids)
            self.counts.encoded_tokens += P

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Within, every forward runs as it is."""
        before, self.recording = self.recording, False
        try:
            yield
        finally:
            self.recording = before

    @contextmanager
    def observed(self, observe: Callable[..., None]) -> Iterator[None]:
        """Within, every layer of every fused forward is observed, and no step is recorded.

        Args:
            observe: see `kv_state.DecodeState`.
        """
        self.observe = observe
        try:
            with self.unrecorded():
                yield
        finally:
            self.observe = None

    def can_turn(self, streams: Sequence[Sequence[Stream]], max_new_tokens: int) -> bool:
        """Prepare ``exact`` positions for these streams; false where the model cannot have them."""
        self._check_lengths(streams, max_new_tokens)
        turns = [max(stream.positions.rope_offsets) for group in streams for stream in group]
        if max(turns) == 0:
            return True
        last = max(stream.answer_start for group in streams for stream in group) + max_new_tokens
        self.rotary = read_rotary(self.wrapper, max(turns), last)
        self.recorded_steps.clear()  # they read the tables that were
        return self.rotary is not None

    def generate(
        self,
        questions: Sequence[Sequence[Stream]],
        *,
        fusion: Fusion,
        combine: Combine,
        max_new_tokens: int,
        batch_size: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        weights: torch.Tensor | None = None,
    ) -> Iterator[list[tuple[int, Answer]]]:
        """Answer questions batch by batch.

        Args:
            questions: each one's n streams; n, and the number K of segments, is the same for all.
            fusion: how a stream's partitions are combined in the attention.
            combine: (logits [B, n, V] float32, weights [B, n] or None) → [B, V]. Where steps are
                recorded, the last of the questions may stand there more than once, and the logits
                hold until the next call.
            max_new_tokens: the limit of generated tokens.
            batch_size, batches: see `plan`; ``batches`` are answered as they are, and no others.
            weights: of the streams, [number of questions, n], handed to ``combine``.

        Yields:
            Batches of (index into ``questions``, answer), shortest questions first.

        Raises:
            UserError: a question is longer than the model's context, or has a token that the
                model does not know.
        """
        self._check_lengths(questions, max_new_tokens)
        streams = (stream for group in questions for stream in group)
        parts = (part for s in streams for part in (*s.segments, s.tail, s.separators))
        self._check_tokens(chain.from_iterable(parts))
        if batches is None:
            batches = self.plan(questions, batch_size)
        self.alone = all(len(batch) == 1 for batch in batches)
        if self.recording:
            tokens = [stream.encoded_tokens for group in questions for stream in group]
            n = len(questions[0]) if questions else 0
            sums = (sum(sum(tokens[q * n : q * n + n]) for q in batch) for batch in batches)
            packed = (bucketed(total, self.device) for total in sums)
            self.capacity = 0 if self.fitting else max(packed, default=0)
        for batch in batches:
            yield self._answer_what_fits(
                batch,
                lambda part: self._answer(
                    [questions[index] for index in part],
                    fusion,
                    combine,
                    max_new_tokens,
                    None if weights is None else weights[part].to(self.device),
                ),
            )

    def release(self) -> None:
        """Give back what memory is kept from batch to batch."""
        self._forget()
        torch.cuda.empty_cache()

    def _forget(self) -> None:
        """Drop recorded steps and the room that they read."""
        self.recorded_steps.clear()
        if self.room is not None:
            self.room = BufferPool()

    def plan(
        self,
        questions: Sequence[Sequence[Stream]],
        batch_size: int | None,
        among: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Which questions go together: indices, batch by batch, shortest first.

        batch_size: questions a batch; None chooses from the lengths and what the device has free.
        among: the indices of those that are to be answered; None for all.
        """
        return plan_batches(questions, batch_size, self._tokens_per_batch(), among)

    def _answer_what_fits(self, batch, answer) -> list[tuple[int, Answer]]:
        """The batch, in as many parts as the memory asks for; later batches begin at that size."""
        size = self.fitting or len(batch)
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        answered = []
        while parts:
            part = parts.pop(0)
            counts, answers = replace(self.counts), None
            try:
                answers = answer(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise UserError(
                        "out of memory with one question at a time: take fewer paraphrases or "
                        "few-shot examples, or a smaller model"
                    ) from None
            if answers is None:  # outside the handler, which still holds the failed tensors
                self.release()
                self.capacity = 0
                if self.fitting is None:
                    logger.warning("out of memory with %d questions at a time: halved", len(part))
                self.counts = replace(counts, out_of_memory=counts.out_of_memory + 1)
                self.fitting = len(part) // 2
                parts[:0] = [part[: self.fitting], part[self.fitting :]]
                continue
            self.counts.largest_batch = max(self.counts.largest_batch, len(part))
            answered += zip(part, answers, strict=True)
        return answered

    def _tokens_per_batch(self) -> int:
        """How many packed tokens to encode at a time where no batch size is asked for."""
        if self.device.type != "cuda":
            return CPU_TOKENS_PER_BATCH
        _, heads, size = head_shape(self.config)
        # Keys and values of all layers, packed and (unrecorded) by row, and the widest activations.
        values = 2 * 3 * self.config.num_hidden_layers * heads * size + 32 * self.config.hidden_size
        free, _ = torch.cuda.mem_get_info(self.device)
        fitting = free // 2 // (values * self.model.dtype.itemsize)
        least = 1024
        rounded = fitting // least * least  # slightly less free memory gives the same batches
        return max(least, min(GPU_TOKENS_PER_BATCH, rounded))

    @torch.inference_mode()
    def _answer(self, groups, fusion, combine, max_new_tokens, weights) -> list[Answer]:
        """1. encode all segments, isolated; 2. say whose row they belong to; 3. decode."""
        with self._telling():
            found = self._encode_and_decode(groups, fusion, combine, max_new_tokens, weights)
        self.started = True
        return found

    def _encode_and_decode(self, groups, fusion, combine, max_new_tokens, weights):
        streams = [stream for group in groups for stream in group]
        encoded, logits = self._encode_streams(streams)
        places = self._places(len(groups))
        n = len(groups[0])
        rows = [place * n + stream for place in places for stream in range(n)]
        plan = self._fuse_plan(streams, rows, encoded, fusion, max_new_tokens)
        streams = [streams[row] for row in rows]
        if weights is not None:
            weights = weights[places]
        with self.wrapper.using(plan):
            logits = self._read_tails(streams, plan) if logits is None else logits[rows]
            return self._decode(
                streams, plan, logits, len(groups), n, combine, max_new_tokens, weights
            )

    def _telling(self):
        """Within what is first, what takes so long is said."""
        if self.started:
            return nullcontext()
        return say_if_slow(STARTING, once=True)

    @torch.inference_mode()
    def recording_problem(self) -> str | None:
        """Why recorded steps cannot be had for this model; None if they can.

        Holds a few tokens' logits by the recorded path against those of the plain path.
        """
        tokens = [token % self.config.vocab_size for token in range(1, 9)]
        # Long enough for the prefix' own kernel, where the model can have it.
        longest = getattr(self.config, "max_position_embeddings", None) or 600
        prefix = (tokens * 65)[: min(520, longest // 2)]

        def streams(positions: str) -> list[list[Stream]]:
            return [
                [
                    Stream(
                        tuple(tuple(tokens[:n]) for n in pair),
                        tuple(tokens),
                        (),
                        assign_positions(pair, len(prefix), positions),
                    )
                ]
                for pair in ((1, 3), (4, 2), (5, 5))
            ]

        def logits() -> torch.Tensor:
            seen = []

            def watch(logits, weights):
                seen.append(logits[:3, 0].clone())
                return torch.zeros_like(logits[:, 0])  # the same tokens, whatever they say

            self.set_prefix(prefix)
            exact = streams("exact")
            asked = exact if self.can_turn(exact, 4) else streams("left")
            self._answer(asked, Fusion(), watch, 4, None)
            return torch.cat(seen)

        counts, stop, self.counts = self.counts, self.stop, Counts()
        self.stop = lambda tokens, seen: (seen, seen, seen)
        try:
            fast = logits()
            self.recording = False
            plain = logits()
        except Exception as error:  # the compiler's own faults come in every kind
            logger.info("recording failed", exc_info=True)
            return reason_of(error.__cause__ or error)
        finally:
            self.recording, self.started = True, False
            self.counts, self.stop = counts, stop
            self.set_prefix(())
        difference = ((fast - plain).norm() / plain.norm()).item()
        if not difference <= (1e-3 if self.model.dtype == torch.float32 else 0.1):
            return f"its logits are off by {difference:.1%}"
        return None

    def _places(self, count: int) -> list[int]:
        """Questions in a batch's places, the last one repeated up to a size that is recorded."""
        if not self.recording:
            return list(range(count))
        return filled(list(range(count)), max(recorded_size(count), self._fewest))

    @property
    def _fewest(self) -> int:
        """Places of a batch. One row has kernels of its own, that would be compiled in mid-run."""
        return 1 if self.alone else 2

    def _encode_streams(self, streams):
        """All segments, then all separators, packed; the first logits where there is no tail."""
        counts = {len(stream.separators) for stream in streams}
        assert len(counts) == 1, counts
        segments = [segment for stream in streams for segment in stream.segments]
        starts = [start for stream in streams for start in stream.positions.starts]
        segments += [(token,) for stream in streams for token in stream.separators]
        starts += [position for stream in streams for position in stream.positions.separators]
        last = None
        if not streams[0].tail:
            last = torch.tensor([sum(map(len, s.segments)) for s in streams]).cumsum(0) - 1
        room = self.room if self.recording else None
        encoded, logits = self._encode(segments, starts, self.prefix, last, room)
        self.counts.encoded_tokens += sum(map(len, segments))
        return encoded, logits

    def _encode(self, segments, starts, prefix, last=None, room=None):
        """One packed forward of segments whose first tokens have the positions ``starts``.

        Returns its plan, and the logits at the indices ``last`` [R, V].
        """
        lengths = torch.tensor(list(map(len, segments)))
        ids = torch.from_numpy(np.fromiter(chain.from_iterable(segments), np.int64))
        segment_ids = torch.arange(len(lengths)).repeat_interleave(lengths)
        begun = torch.tensor(starts) - (lengths.cumsum(0) - lengths)
        position_ids = torch.arange(len(ids)) + begun.repeat_interleave(lengths)
        if self.wrapper.backend == "flex":
            ids, segment_ids, position_ids = pad_to_bucket(
                ids, segment_ids, position_ids, self.device
            )
        ids, segment_ids, position_ids = (
            tensor.to(self.device) for tensor in (ids, segment_ids, position_ids)
        )
        plan = EncodeState(
            lengths,
            segment_ids,
            position_ids,
            prefix,
            backend=self.wrapper.backend,
            compiled=self.wrapper.compiled,
            buffers=room,
            capacity=self.capacity if room else 0,
        )
        inputs = {"input_ids": ids[None], "position_ids": position_ids[None], "use_cache": False}
        with self.wrapper.using(plan), self._compiled_layers():
            if last is None:
                self.model.base_model(**inputs)
                return plan, None
            logits = self.model(**inputs, logits_to_keep=last.to(self.device)).logits
            return plan, logits[0].float()

    def _compiled_layers(self, tokens: int | None = None):
        """Within, layers run compiled where steps are recorded."""
        if not self.recording:
            return nullcontext()
        return self.wrapper.compiled_layers(one_token=tokens == 1)

    def _fuse_plan(self, streams, rows, encoded, fusion, max_new_tokens) -> FusedTokenState:
        """rows: of which stream each row of the plan is."""
        K = len(streams[0].segments)
        separators = len(streams[0].separators)
        turns = torch.tensor([stream.positions.rope_offsets for stream in streams])[rows]
        assert not turns.any() or turns.max() <= self.rotary.furthest, turns.max()
        tail = max(len(stream.tail) for stream in streams)
        common = {
            "prefix": self.prefix,
            "rope_offsets": turns.to(self.device) if turns.any() else None,
            "rotary": self.rotary,
            "slots": separators + tail + max_new_tokens,
            "fusion": fusion,
        }
        lengths = encoded.lengths[: len(streams) * K].view(len(streams), K)[rows]
        if self.recording:
            starts = torch.tensor([stream.positions.starts for stream in streams])[rows]
            plan = CapturedDecodeState(
                segments=encoded.layers,
                starts=encoded.starts[: len(streams) * K].view(len(streams), K)[rows],
                lengths=lengths,
                segment_positions=starts,
                buffers=self.room,
                **common,
            )
        else:
            M = int(lengths.max())
            segments = encoded.gather[: len(streams) * K]  # the separators' rows come behind
            gather = segments.view(len(streams), K, -1)[rows][:, :, :M]  # [R, K, M]
            plan = DecodeState(
                segments={
                    layer: KeyValues(kv.keys[:, gather], kv.values[:, gather])
                    for layer, kv in encoded.layers.items()
                },
                segment_mask=(torch.arange(M) < lengths[:, :, None]).to(self.device),
                segment_positions=encoded.position_ids[gather],
                observe=self.observe,
                **common,
            )
        if separators:
            at = encoded.starts[len(streams) * K :].view(len(streams), separators)[rows]
            plan.put(
                {
                    layer: KeyValues(kv.keys[:, at], kv.values[:, at])
                    for layer, kv in encoded.layers.items()
                },
                encoded.position_ids[at],
            )
        return plan

    def _read_tails(self, streams, plan) -> torch.Tensor:
        """The first fused tokens, left-padded to the longest tail. Returns logits [R, V]."""
        width = max(len(stream.tail) for stream in streams)
        ids = torch.tensor(
            [[0] * (width - len(stream.tail)) + [*stream.tail] for stream in streams]
        )
        tails = torch.tensor([len(stream.tail) for stream in streams])[:, None]
        starts = torch.tensor([stream.positions.fused_start for stream in streams])[:, None]
        step = torch.arange(width)[None, :] - (width - tails)  # [R, width], negative on padding
        positions = (starts + step).clamp(min=0).to(self.device)
        plan.append(positions, (step >= 0).to(self.device))
        self.count_forward(len(streams))
        return self.forward(ids.to(self.device), positions)

    def count_forward(self, rows: int) -> None:
        self.counts.decode_forwards += 1
        self.counts.decode_rows += rows

    def forward(self, ids, positions) -> torch.Tensor:
        """One decode forward. ids, positions [R, S] → logits of the last token [R, V].

        Where steps are recorded, the tokens come as one packed sequence, as in encoding, so that
        the layers are compiled once for both.
        """
        R, S = ids.shape
        last = 1
        if self.recording:
            ids, positions = ids.reshape(1, -1), positions.reshape(1, -1)
            last = torch.arange(1, R + 1, device=self.device) * S - 1 if S > 1 else 0
        with self._compiled_layers(tokens=R * S):
            logits = self.model(
                input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=last
            ).logits
        return (logits[0] if self.recording else logits[:, -1]).float()

    def _step(self, plan, ids, positions) -> torch.Tensor:
        """The forward of one token a row: ids, positions [R] → logits [R, V], until the next step.

        Compiling and choosing kernels cannot be recorded, so the first step of a shape runs as it
        is, and the second is recorded.
        """
        ids, positions = ids[:, None], positions[:, None]
        plan.advance(1)
        if self.recording:
            if plan.shape in self.recorded_steps:
                if self.recorded_steps[plan.shape] is None:
                    others = [step for step in self.recorded_steps.values() if step is not None]
                    self.recorded_steps[plan.shape] = CapturedStep(
                        plan, self.forward, ids, positions, others
                    )
                return self.recorded_steps[plan.shape](ids, positions)
            if len(self.recorded_steps) == RECORDED_STEPS or self.recorded_in != self.room.version:
                self.recorded_steps.clear()
            self.recorded_steps[plan.shape], self.recorded_in = None, self.room.version
        plan.mark(positions, torch.ones_like(positions, dtype=torch.bool))
        return self.forward(ids, positions)

    def _decode(
        self, streams, plan, logits, B, n, combine, max_new_tokens, weights
    ) -> list[Answer]:
        """Greedy decoding, ties to the lowest id; each question stops on its own.

        Where steps are recorded, what a step chose is read while the next one runs: a question may
        then be carried for a step more than it needs, which changes nothing in its answer.
        """
        positions = torch.tensor([s.answer_start for s in streams], device=self.device)
        seen = torch.zeros(len(streams) // n, dtype=torch.bool, device=self.device)
        alive = list(range(B))  # the question at each place of the batch
        tokens, logprobs, stopped = [[] for _ in alive], [[] for _ in alive], [False] * B
        for step in range(max_new_tokens):
            fused = combine(logits.unflatten(0, (-1, n)), weights)  # [B, V]
            chosen = fused.argmax(-1)
            logprob = fused.log_softmax(-1).gather(-1, chosen[:, None])[:, 0]
            stop, answers, seen = self.stop(chosen, seen)
            read = read_later(chosen, logprob, stop, answers)
            is_last = step + 1 == max_new_tokens
            if self.recording and not is_last:
                self.count_forward(len(chosen) * n)
                logits = self._step(plan, chosen.repeat_interleave(n), positions + step)
            for question, token, value, stops, is_answer in zip(
                alive, *read(len(alive)), strict=True
            ):
                if stopped[question]:
                    continue
                self.counts.decoded_tokens += 1
                stopped[question] = stops
                if token not in self.eos_ids:
                    tokens[question].append(token)
                if is_answer:
                    logprobs[question].append(value)
            running = [place for place, question in enumerate(alive) if not stopped[question]]
            if not running or is_last:
                break
            places = self._thinned(running, len(chosen))
            if places is not None:
                keep = torch.tensor(places, device=self.device)
                rows = (keep[:, None] * n + torch.arange(n, device=self.device)).flatten()
                plan.keep_rows(rows)
                chosen, seen, positions = chosen[keep], seen[keep], positions[rows]
                logits = logits[rows]
                weights = None if weights is None else weights[keep]
                alive = [alive[place] for place in running]
            if not self.recording:
                self.count_forward(len(alive) * n)
                logits = self._step(plan, chosen.repeat_interleave(n), positions + step)
        return [Answer(tuple(tokens[q]), tuple(logprobs[q]), not stopped[q]) for q in range(B)]

    def _thinned(self, running: list[int], size: int) -> list[int] | None:
        """Of a batch's ``size`` places those to go on with, if enough questions have finished."""
        if not self.recording:
            return running if size - len(running) >= COMPACT_SHARE * size else None
        smaller = size
        while smaller // 2 >= max(len(running), self._fewest):
            smaller //= 2
        return filled(running, smaller) if smaller < size else None

    def _check_lengths(self, questions, max_new_tokens) -> None:
        starts = [stream.answer_start for group in questions for stream in group]
        if starts:
            self._check_length(max(starts) + max_new_tokens)

    def _check_length(self, length: int) -> None:
        """Refuse what the model's positions cannot hold."""
        limit = getattr(self.config, "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise UserError(
                f"the longest prompt needs {length} positions with its answer, more than the "
                f"model's {limit}: take fewer few-shot examples, a smaller --max_new_tokens, or a "
                "model with a longer context"
            )
        rope = getattr(self.config, "rope_parameters", None) or {}
        original = rope.get("original_max_position_embeddings") or limit
        if rope.get("rope_type") in ("longrope", "dynamic") and length > (original or length):
            raise UserError(
                f"the longest prompt needs {length} positions with its answer; beyond {original} "
                "this model turns all positions of a batch another way, so answers would depend on "
                "the questions they are batched with: take fewer few-shot examples"
            )

    def _check_tokens(self, tokens: Iterable[int]) -> None:
        highest = max(tokens, default=0)
        if highest >= self.config.vocab_size:
            raise UserError(
                f"the prompts hold the token {self.tokenizer.decode([highest])!r} ({highest}), "
                f"beyond the model's vocabulary of {self.config.vocab_size}: its tokenizer was "
                "extended and the model was not"
            )


def check_turns(engine: Engine, streams: Sequence[Sequence[Stream]], max_new_tokens: int) -> None:
    """Raises UserError where the model cannot have these streams' positions."""
    if not engine.can_turn(streams, max_new_tokens):
        raise UserError(
            "--positions exact: this model's positions are not rotary, or turn in a way that is "
            "not known here; use --positions left"
        )


def end_of_sequence_ids(model, tokenizer, vocabulary: int) -> frozenset[int]:
    """Of the model and of the tokenizer. An id beyond the vocabulary cannot come."""
    ids = model.generation_config.eos_token_id
    ids = ids if isinstance(ids, list) else [ids]
    return frozenset(
        token
        for token in (*ids, tokenizer.eos_token_id)
        if token is not None and 0 <= token < vocabulary
    )


def plan_batches(
    questions,
    batch_size: int | None,
    tokens_per_batch: int,
    among: Iterable[int] | None = None,
) -> list[list[int]]:
    """Indices of questions, batch by batch, shortest first: a function of data and settings."""
    indices = range(len(questions)) if among is None else among
    cost = {i: sum(stream.encoded_tokens for stream in questions[i]) for i in indices}
    order = sorted(cost, key=lambda index: (cost[index], index))
    if batch_size is not None:
        return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    batches, tokens = [], tokens_per_batch
    for index in order:
        if tokens + cost[index] > tokens_per_batch:
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += cost[index]
    return batches


def filled(places: list[int], size: int) -> list[int]:
    """So many places, the last one repeated."""
    return places + places[-1:] * (size - len(places))


def recorded_size(questions: int) -> int:
    """The next larger number of questions that batches begin with: four to an octave."""
    step = 1 << max(0, (questions - 1).bit_length() - 3)
    return -(-questions // step) * step


def read_later(chosen, logprob, stop, answers) -> Callable[[int], list[list]]:
    """Begin to fetch what a step chose; the function that waits for it and reads so many."""
    columns = torch.stack([chosen.double(), logprob.double(), stop.double(), answers.double()])
    fetched = None
    if columns.device.type == "cuda":
        pinned = torch.empty(columns.shape, dtype=columns.dtype, pin_memory=True)
        columns = pinned.copy_(columns, non_blocking=True)
        fetched = torch.cuda.Event()
        fetched.record()

    def read(count: int) -> list[list]:
        if fetched is not None:
            fetched.synchronize()
        chosen, logprob, stop, answers = columns[:, :count].tolist()
        to_bool = lambda column: [value == 1 for value in column]  # noqa: E731
        return [[int(token) for token in chosen], logprob, to_bool(stop), to_bool(answers)]

    return read


def bucketed(total: int, device: torch.device) -> int:
    """The packed length that so many tokens are padded to for FlexAttention."""
    if device.type == "cuda":
        return total + -total % GPU_FLEX_BUCKET
    return total + -total % max(FLEX_BUCKET, (1 << total.bit_length()) // 16)


def pad_to_bucket(ids, segment_ids, position_ids, device: torch.device):
    """Padding tokens behind the packed ones, each a segment of its own that nobody reads.

    device: what they will be encoded on.
    """
    missing = bucketed(len(ids), device) - len(ids)
    alone = segment_ids[-1] + 1 + torch.arange(missing)
    zeros = torch.zeros(missing, dtype=torch.long)
    return (
        torch.cat([ids, zeros]),
        torch.cat([segment_ids, alone]),
        torch.cat([position_ids, zeros]),
    )


def fresh_state(count: int) -> torch.Tensor:
    """What `sampler` is handed as the engine's ``weights``: (which draw, its next step), [B, 2].

    It travels with the rows: the engine copies it for each batch, also for one that is run again
    because memory ran out, and drops the rows of finished draws.
    """
    return torch.stack([torch.arange(count), torch.zeros(count, dtype=torch.long)], dim=1)


def sampler(
    draws: Sequence[tuple[str, int]], *, seed: int, temperature: float, top_p: float
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The `combine` of `Engine.generate` that draws tokens.

    Args:
        draws: uuid and attempt of each of the run's streams.
        seed: whatever is drawn with another seed is drawn independently.
        temperature: above 0; the logits are divided by it.
        top_p: above 0; sampled from the likeliest tokens that together have this probability.

    Returns:
        (logits [B, 1, V], state [B, 2] of `fresh_state`) → scores [B, V]; one step further in
        ``state``.
    """

    def combine(logits: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        assert logits.shape[1] == 1 and state.shape == (len(logits), 2), (logits.shape, state.shape)
        numbers = [uniform(seed, *draws[draw], step) for draw, step in state.tolist()]
        state[:, 1] += 1
        chosen = pick(logits[:, 0], torch.tensor(numbers, dtype=torch.float64), temperature, top_p)
        scores = torch.full_like(logits[:, 0], -torch.inf)  # [B, V]
        return scores.scatter_(1, chosen[:, None], 0.0)

    return combine


@contextmanager
def loaded_engine(source, *, attention: str, recorded: bool = True) -> Iterator[Engine]:
    """The model on its device with our attention in its layers; taken out at the end.

    Args:
        source: from `find_model`.
        attention: ``auto``, ``flex``, ``sdpa`` or ``eager``; only ``auto`` falls back.
        recorded: see `Engine`; with FlexAttention on a GPU alone, and where this model cannot have
            it a warning says so.

    Raises:
        UserError: damaged files, an architecture that cannot work, or a backend asked for and
            not to be had.
    """
    from self_ensemble.attention.checks import check_architecture
    from self_ensemble.models.loading import choose_backend, load_model

    model, tokenizer = load_model(source)
    with FlexAttentionWrapper(model, "eager") as wrapper:
        check_architecture(wrapper)
        wrapper.backend, wrapper.fallback = choose_backend(attention, wrapper)
        recorded = recorded and wrapper.backend == "flex" and source.device.type == "cuda"
        engine = Engine(model, tokenizer, wrapper, recorded=recorded)
        if engine.recording:
            problem = engine.recording_problem()
            if problem is not None:
                logger.warning(
                    "this model cannot be compiled and recorded here (%s): it runs as it is",
                    problem,
                )
                engine.recording, engine.room = False, None
        yield engine
