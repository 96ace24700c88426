"""Answer requests: encode isolated segments, decode with one loop. Token ids in, token ids out.

A *stream* is one decoded row: a prefix shared by all, K segments, and fused tokens. Attention
fusion has one stream a question with K = N; logit fusion has N streams a question with K = 1,
whose logits a reduction turns into one token that all of them append.

Legend: ``B`` questions of a batch, ``n`` streams of a question, ``R = B * n`` rows, ``K`` segments
of a row, ``M`` the longest segment, ``V`` vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

import torch

from self_ensemble.attention.cuda_graphs import CapturedDecodeState
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.kv_state import DecodeState, EncodeState
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.rotary import RotaryTables, read_rotary
from self_ensemble.attention.scoring import KeyValues
from self_ensemble.generation import batching
from self_ensemble.generation.capture_check import find_capture_problem
from self_ensemble.generation.captured import CapturedSteps
from self_ensemble.generation.decode import Answer, DecodeLoop
from self_ensemble.generation.encode import Prefix, encode_prefix, encode_streams
from self_ensemble.generation.forward import Forward
from self_ensemble.generation.likelihood import (
    CPU_LOGITS,
    GPU_LOGITS,
    SEGMENT_TOKENS,
    Likelihood,
    Row,
    ScoringRequest,
    group_rows,
    pad_rows,
    plan_rows,
    read_rows,
)
from self_ensemble.generation.limits import check_request
from self_ensemble.generation.request import Request
from self_ensemble.generation.sampling import Chooser, Greedy, Sampler
from self_ensemble.generation.stats import Stats
from self_ensemble.generation.stopping import LineStop, StopRule, end_of_sequence_ids
from self_ensemble.generation.streams import Stream
from self_ensemble.system.console import say_if_slow
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

STARTING = (
    "compiling for this GPU: up to a minute the first time, sooner in later runs, since the result "
    "is kept on disk (--attention sdpa starts at once, and is slower after that)"
)

# What attends is a setting of the model, and so of all threads and all engines around it.
_LOCKS: WeakKeyDictionary[Any, RLock] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()


def _lock_of(model: Any) -> RLock:
    with _LOCKS_LOCK:
        return _LOCKS.setdefault(model, RLock())


Batch = list[tuple[int, Answer]]
RowState = DecodeState | CapturedDecodeState


class Engine:
    """A model under our attention, and what its requests share.

    Requests share encoded prefixes, rotary tables and captured steps; none of these changes an
    answer. The model is patched while it computes and given back in between, unless the wrapper is
    patched already. Several threads may have requests: their batches wait for each other. A thread
    that uses the model itself meanwhile would meet our attention in it.

    Args:
        model: a causal language model on its device.
        tokenizer: the model's own.
        wrapper: a `FlexAttentionWrapper` around the model.
        capture: on a GPU, with compiled FlexAttention: compile the model's layers, capture the
            decode step as a CUDA graph and replay it; see docs/performance.md.
        keep_prefix: the model does not change between requests, so that a prefix encoded for one
            serves the next one too. Not for a model that somebody else may train or load anew.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        wrapper: FlexAttentionWrapper,
        *,
        capture: bool = False,
        keep_prefix: bool = False,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.wrapper = wrapper
        self.device: torch.device = model.device
        self.config = model.config.get_text_config()
        vocabulary = self.config.vocab_size
        self.eos_ids = end_of_sequence_ids(model, tokenizer, vocabulary)
        self.line_stop: StopRule = LineStop(tokenizer, self.eos_ids, vocabulary, self.device)
        assert not capture or wrapper.backend == "flex", wrapper.backend
        self._captured = CapturedSteps() if capture else None
        self._capture_problems: dict[tuple[object, ...], str | None] = {}
        self._last_prefix: Prefix | None = None
        self._rotary: dict[tuple[int, int], RotaryTables | None] = {}
        self._started = not capture
        self._keep_prefix = keep_prefix
        self._lock = _lock_of(model)

    @property
    def captures(self) -> bool:
        """Whether decode steps are captured, for the fusions that a kernel knows."""
        return self._captured is not None

    def generate(
        self,
        request: Request,
        *,
        batch_size: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        max_batch_size: int | None = None,
    ) -> Generation:
        """Begin to answer a request.

        Args:
            request: what is asked.
            batch_size: questions a batch; None chooses from the lengths and what memory is free.
            batches: see `schedule`; these are answered as they are, and no others.
            max_batch_size: of an earlier generation, where memory has run out before.

        Returns:
            An iterator of batches of (index into ``request.questions``, answer), shortest questions
            first. Several may be open at once, and be consumed in any order.

        Raises:
            UserError: a question is longer than the model's context, has a token that the model
                does not know, or positions that it cannot have; memory ran out with the prefix.
        """
        return self._begin(
            request,
            self.schedule(request.questions, batch_size) if batches is None else batches,
            max_batch_size,
            captured=self._is_captured(request),
        )

    def score(
        self,
        request: ScoringRequest,
        *,
        batch_size: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        max_batch_size: int | None = None,
    ) -> LikelihoodPass:
        """Begin to say how likely a request's continuations are.

        Arguments, errors and order are those of `generate`; nothing is captured.

        Returns:
            An iterator of batches of (index into ``request.questions``, likelihoods of its
            continuations).
        """
        if batches is None:
            batches = self.schedule(request.questions, batch_size)
        prefix, rotary = self._prepare(request, captured=False)
        return LikelihoodPass(
            self, request, prefix, rotary, batches, captured=False, max_batch_size=max_batch_size
        )

    def schedule(
        self,
        questions: Sequence[Sequence[Stream]],
        batch_size: int | None,
        among: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Which questions go together: see `batching.schedule_batches`."""
        tokens = batching.tokens_per_batch(self.config, self.device, self.model.dtype.itemsize)
        return batching.schedule_batches(questions, batch_size, tokens, among)

    def release(self) -> None:
        """Give back what memory is kept from batch to batch."""
        if self._captured is not None:
            self._captured.clear()
        torch.cuda.empty_cache()

    def capture_problem(self, fusion: Fusion) -> str | None:
        """Why decode steps under this fusion are not captured; None where they are.

        The first time that a fusion is asked about, a few tokens' logits by the captured path are
        held against those of the plain path. A problem is told once.
        """
        if self._captured is None:
            return "this engine captures nothing"
        if not fusion.in_kernel:
            return f"no kernel computes the fusion {fusion.kind!r}"
        key = fusion.kind, fusion.tau != 0, fusion.weights is not None
        if key not in self._capture_problems:
            problem = find_capture_problem(fusion, self._answer_all, self.model)
            self._capture_problems[key] = problem
            if problem is not None:
                logger.warning(
                    "this model cannot be compiled and captured here (%s): it runs as it is",
                    problem,
                )
                self.release()
        return self._capture_problems[key]

    def decode_path(self, fusion: Fusion) -> str:
        """How fused tokens are computed under this fusion, as a manifest says it."""
        captured = self.captures and self.capture_problem(fusion) is None
        return "one kernel, recorded" if captured else "split softmax"

    def _answer_all(self, request: Request, captured: bool) -> None:
        batch = list(range(len(request.questions)))
        for _ in self._begin(request, [batch], None, captured=captured):
            pass

    def _is_captured(self, request: Request) -> bool:
        if not (self.captures and request.capture and request.observe is None):
            return False
        return self.capture_problem(request.fusion) is None

    @torch.inference_mode()
    def _prepare(self, request: Request, *, captured: bool) -> tuple[Prefix, RotaryTables | None]:
        check_request(request, self.config, self.tokenizer)
        with self.computing():
            return self._encoded_prefix(request.prefix, captured=captured), self._rotary_for(
                request
            )

    def _begin(
        self,
        request: Request,
        batches: Sequence[Sequence[int]],
        max_batch_size: int | None,
        *,
        captured: bool,
    ) -> Generation:
        prefix, rotary = self._prepare(request, captured=captured)
        return Generation(
            self, request, prefix, rotary, batches, captured=captured, max_batch_size=max_batch_size
        )

    def _encoded_prefix(self, ids: tuple[int, ...], *, captured: bool) -> Prefix:
        """The prefix, encoded now, or where prefixes are kept, for the request before."""
        found = self._last_prefix
        if found is None or found.ids != ids:
            # Outside the buffers that batches share, and with all the memory that they had.
            self._last_prefix = None
            if self._captured is not None:
                self._captured.clear()
            forward = Forward(self.model, self.wrapper, compiled=captured)
            with self.telling(captured):
                try:
                    found = encode_prefix(forward, ids)
                except torch.OutOfMemoryError as error:
                    raise UserError(
                        f"out of memory with the {len(ids)} tokens that all prompts begin with: "
                        "take fewer few-shot examples, or a smaller model"
                    ) from error
            self._last_prefix = found if self._keep_prefix else None
        return found

    def _rotary_for(self, request: Request) -> RotaryTables | None:
        """The tables that rotate queries back, where ``exact`` positions ask for it.

        Raises:
            UserError: the model cannot have these positions.
        """
        streams = [stream for group in request.questions for stream in group]
        furthest = max((max(stream.positions.rope_offsets) for stream in streams), default=0)
        if furthest == 0:
            return None
        last = max(stream.answer_start for stream in streams) + request.max_new_tokens
        if (furthest, last) not in self._rotary:
            if len(self._rotary) >= 8:
                self._rotary.clear()
            self._rotary[furthest, last] = read_rotary(self.wrapper, furthest, last)
        tables = self._rotary[furthest, last]
        if tables is None:
            raise UserError(
                "--positions exact: this model's positions are not rotary, or turn in a way that "
                "is not known here; use --positions left"
            )
        return tables

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within, the model is patched and in eval mode; then it is as it was."""
        with self._lock, ExitStack() as stack:
            training = [module for module in self.model.modules() if module.training]
            stack.enter_context(self.wrapper)
            for module in training:
                module.training = False
                stack.callback(setattr, module, "training", True)
            yield

    def telling(self, captured: bool) -> AbstractContextManager[Any]:
        """Within what is first where layers are compiled, what takes so long is said."""
        if self._started or not captured:
            return nullcontext()
        return say_if_slow(STARTING, once=True)

    def has_started(self) -> None:
        self._started = True


class Generation(Iterator[Batch]):
    """A request that is being answered, batch by batch.

    Attributes:
        stats: what was computed so far.
        max_batch_size: what memory allows at a time, once it has run out; None before.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        prefix: Prefix,
        rotary: RotaryTables | None,
        batches: Sequence[Sequence[int]],
        *,
        captured: bool,
        max_batch_size: int | None,
    ):
        self.stats = Stats()
        self.max_batch_size = max_batch_size
        self._engine = engine
        self._request = request
        self._prefix = prefix
        self._rotary = rotary
        self._batches = iter(batches)
        self._steps = engine._captured if captured else None
        self._forward = Forward(engine.model, engine.wrapper, compiled=captured)
        # A batch of one row has kernels of its own, that would be compiled in mid-run.
        self._fewest_slots = 1 if all(len(batch) == 1 for batch in batches) else 2
        self._capacity = self._largest_batch(batches) if captured else 0

    def __next__(self) -> Batch:
        return self._answer_what_fits(list(next(self._batches)))

    def _largest_batch(self, batches: Sequence[Sequence[int]]) -> int:
        """Packed tokens of the largest batch; 0 where memory has run out before."""
        if self.max_batch_size is not None:
            return 0
        tokens = [sum(s.encoded_tokens for s in group) for group in self._request.questions]
        sums = (sum(tokens[index] for index in batch) for batch in batches)
        return max((batching.padded_length(s, self._engine.device) for s in sums), default=0)

    def _answer_what_fits(self, batch: list[int]) -> Batch:
        """The batch, in as many parts as the memory asks for; later batches begin at that size."""
        size = self.max_batch_size or len(batch)
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        answered: Batch = []
        while parts:
            part = parts.pop(0)
            before, answers = replace(self.stats), None
            try:
                answers = self._answer(part)
            except torch.OutOfMemoryError:
                if len(part) == 1:
                    raise UserError(
                        "out of memory with one question at a time: take fewer paraphrases or "
                        "few-shot examples, or a smaller model"
                    ) from None
            if answers is None:  # outside the handler, which still holds the failed tensors
                self._engine.release()
                self._capacity = 0
                if self.max_batch_size is None:
                    logger.warning("out of memory with %d questions at a time: halved", len(part))
                self.stats = replace(before, out_of_memory=before.out_of_memory + 1)
                self.max_batch_size = len(part) // 2
                parts[:0] = [part[: self.max_batch_size], part[self.max_batch_size :]]
                continue
            self.stats.largest_batch = max(self.stats.largest_batch, len(part))
            answered += zip(part, answers, strict=True)
        return answered

    @torch.inference_mode()
    def _answer(self, part: Sequence[int]) -> list[Answer]:
        """1. encode all segments, isolated; 2. say whose row they belong to; 3. decode."""
        captured = self._steps is not None
        with self._engine.computing(), self._engine.telling(captured):
            answers = self._encode_and_decode(part)
        self._engine.has_started()
        return answers

    def _encode_and_decode(self, part: Sequence[int]) -> list[Answer]:
        request, device = self._request, self._engine.device
        groups = [request.questions[index] for index in part]
        streams = [stream for group in groups for stream in group]
        buffers = None if self._steps is None else self._steps.buffers
        encoded, logits = encode_streams(
            self._forward, streams, self._prefix, buffers=buffers, capacity=self._capacity
        )
        self.stats.encoded_tokens += sum(stream.encoded_tokens for stream in streams)

        slots, n = self._slots(len(part)), len(groups[0])
        rows = [slot * n + stream for slot in slots for stream in range(n)]
        state = self._decode_state(streams, rows, encoded)
        streams = [streams[row] for row in rows]
        weights = None
        if request.weights is not None:
            weights = request.weights[[part[slot] for slot in slots]].to(device)
        with self._engine.wrapper.using(state):
            logits = self._read_tails(streams, state) if logits is None else logits[rows]
            return self._loop(state, [part[slot] for slot in slots]).run(
                state,
                logits,
                torch.tensor([stream.answer_start for stream in streams], device=device),
                questions=len(part),
                streams=n,
                weights=weights,
                stats=self.stats,
            )

    def _slots(self, count: int) -> list[int]:
        """A batch's questions by slot; where steps are captured, padded to a size that is."""
        slots = list(range(count))
        if self._steps is None:
            return slots
        return batching.fill_slots(slots, batching.captured_slots(count, self._fewest_slots))

    def _compact(self, running: Sequence[int], size: int) -> list[int] | None:
        if self._steps is None:
            return batching.compacted(running, size)
        return batching.compacted_captured(running, size, self._fewest_slots)

    def _loop(self, state: RowState, questions: Sequence[int]) -> DecodeLoop:
        request = self._request
        chooser: Chooser = Greedy()
        if request.sampling is not None:
            chooser = Sampler(request.sampling, questions, self._engine.device)
        return DecodeLoop(
            step=lambda ids, positions: self._step(state, ids, positions),
            reduce=request.reduce,
            chooser=chooser,
            stop=request.stop or self._engine.line_stop,
            compact=self._compact,
            eos_ids=self._engine.eos_ids,
            max_new_tokens=request.max_new_tokens,
            overlapped=self._steps is not None,
        )

    def _decode_state(
        self, streams: Sequence[Stream], rows: Sequence[int], encoded: EncodeState
    ) -> RowState:
        """What the rows' fused tokens attend to. rows: of which stream each row is."""
        device, S = self._engine.device, len(streams)
        K, separators = len(streams[0].segments), len(streams[0].separators)
        offsets = torch.tensor([stream.positions.rope_offsets for stream in streams])[list(rows)]
        tail = max(len(stream.tail) for stream in streams)
        common: dict[str, Any] = {
            "prefix": self._prefix.layers,
            "rope_offsets": offsets.to(device) if offsets.any() else None,
            "rotary": self._rotary,
            "slots": separators + tail + self._request.max_new_tokens,
            "fusion": self._request.fusion,
        }
        lengths = encoded.lengths[: S * K].view(S, K)[list(rows)]
        state: RowState
        if self._steps is not None:
            starts = torch.tensor([stream.positions.starts for stream in streams])[list(rows)]
            state = CapturedDecodeState(
                segments=encoded.layers,
                starts=encoded.starts[: S * K].view(S, K)[list(rows)],
                lengths=lengths,
                segment_positions=starts,
                buffers=self._steps.buffers,
                **common,
            )
        else:
            M = int(lengths.max())
            segments = encoded.gather[: S * K]  # the separators' rows come behind
            gather = segments.view(S, K, -1)[list(rows)][:, :, :M]  # [R, K, M]
            state = DecodeState(
                segments={
                    layer: KeyValues(kv.keys[:, gather], kv.values[:, gather])
                    for layer, kv in encoded.layers.items()
                },
                segment_mask=(torch.arange(M) < lengths[:, :, None]).to(device),
                segment_positions=encoded.position_ids[gather],
                observe=self._request.observe,
                **common,
            )
        if separators:
            at = encoded.starts[S * K :].view(S, separators)[list(rows)]
            layers = {
                layer: KeyValues(kv.keys[:, at], kv.values[:, at])
                for layer, kv in encoded.layers.items()
            }
            state.put(layers, encoded.position_ids[at])
        return state

    def _read_tails(self, streams: Sequence[Stream], state: RowState) -> torch.Tensor:
        """The first fused tokens, left-padded to the longest tail. Returns logits [R, V]."""
        device = self._engine.device
        width = max(len(stream.tail) for stream in streams)
        ids = torch.tensor(
            [[0] * (width - len(stream.tail)) + [*stream.tail] for stream in streams]
        )
        tails = torch.tensor([len(stream.tail) for stream in streams])[:, None]
        starts = torch.tensor([stream.positions.fused_start for stream in streams])[:, None]
        step = torch.arange(width)[None, :] - (width - tails)  # [R, width], negative on padding
        positions = (starts + step).clamp(min=0).to(device)
        state.append(positions, (step >= 0).to(device))
        self.stats.count_forward(len(streams))
        return self._forward.fused(ids.to(device), positions)

    def _step(self, state: RowState, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One more token a row: ids, positions [R] → logits [R, V], until the next step."""
        ids, positions = ids[:, None], positions[:, None]
        state.advance(1)
        if self._steps is not None:
            assert isinstance(state, CapturedDecodeState)
            reads = self._prefix, self._rotary
            logits = self._steps.run(state, self._forward.fused, ids, positions, reads)
            if logits is not None:
                return logits
        state.mark(positions, torch.ones_like(positions, dtype=torch.bool))
        return self._forward.fused(ids, positions)


class LikelihoodPass(Generation):
    """A request whose continuations are being scored, batch by batch; see `Generation`."""

    _request: ScoringRequest

    def _encode_and_decode(self, part: Sequence[int]) -> list[Any]:
        """1. encode all segments, isolated; 2. read the continuations' rows, some at a time."""
        request, device = self._request, self._engine.device
        groups = [request.questions[index] for index in part]
        streams = [stream for group in groups for stream in group]
        encoded, first = encode_streams(self._forward, streams, self._prefix)
        self.stats.encoded_tokens += sum(stream.encoded_tokens for stream in streams)

        rows, begin = [], 0
        for question, (index, group) in enumerate(zip(part, groups, strict=True)):
            own = range(begin, begin := begin + len(group))
            rows += plan_rows(question, own, group[0].tail, request.continuations[index])
        weights = None if request.weights is None else request.weights[list(part)]
        places = CPU_LOGITS if device.type == "cpu" else GPU_LOGITS
        found: list[dict[int, Likelihood]] = [{} for _ in part]
        for chunk in group_rows(
            rows,
            groups,
            max_logits=places // self._engine.config.vocab_size,
            max_tokens=max(SEGMENT_TOKENS, sum(stream.encoded_tokens for stream in streams)),
        ):
            logits = self._row_logits(chunk, streams, encoded, first)
            for question, continuation, likelihood in read_rows(
                chunk, logits, request.reduce, weights
            ):
                found[question][continuation] = likelihood
                self.stats.decoded_tokens += len(likelihood.logprobs)
        return [tuple(each[index] for index in range(len(each))) for each in found]

    def _row_logits(
        self,
        rows: Sequence[Row],
        streams: Sequence[Stream],
        encoded: EncodeState,
        first: torch.Tensor | None,
    ) -> torch.Tensor:
        """[rows * n, W, V], as `read_rows` takes them."""
        device = self._engine.device
        of = [index for row in rows for index in row.streams]
        before = None if first is None else first[of][:, None]
        if not any(row.token_ids for row in rows):
            assert before is not None
            return before
        ids, positions, mask = pad_rows(rows, streams)
        state = self._decode_state(streams, of, encoded)
        state.append(positions.to(device), mask.to(device))
        self.stats.count_forward(len(of))
        with self._engine.wrapper.using(state):
            logits = self._forward.fused_tokens(
                ids.to(device), positions.to(device), max(row.wanted for row in rows)
            )
        return logits if before is None else torch.cat([before, logits.float()], dim=1)
