"""Answer requests: encode isolated segments, decode with one loop. Token ids in, token ids out.

A *stream* is one decoded row: a prefix shared by all, K segments, and fused tokens. Attention
fusion has one stream a question with K = N; logit fusion has N streams a question with K = 1,
whose logits a reduction turns into one token that all of them append.

Legend: ``B`` questions of a batch, ``n`` streams of a question, ``R = B * n`` rows, ``K`` segments
of a row, ``M`` the longest segment, ``V`` vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.patching import FlexAttentionWrapper
from self_ensemble.attention.rotary import RotaryTables, read_rotary
from self_ensemble.generation import batching
from self_ensemble.generation.capture_check import find_capture_problem
from self_ensemble.generation.decode import Answer
from self_ensemble.generation.encode import Prefix, encode_prefix
from self_ensemble.generation.forward import Forward
from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.likelihood_pass import LikelihoodPass
from self_ensemble.generation.limits import check_continuations, check_request
from self_ensemble.generation.passes import Generation, OnProgress
from self_ensemble.generation.patched_model import PatchedModel
from self_ensemble.generation.request import Request
from self_ensemble.generation.streams import Stream
from self_ensemble.models.environment import versions
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

Batch = list[tuple[int, Answer]]


class Engine(PatchedModel):
    """Answers requests with a model; they share what `PatchedModel` has, and encoded prefixes.

    None of it changes an answer. Several threads may have requests: their batches wait for each
    other. A thread that uses the model itself meanwhile would meet our attention in it.

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
        super().__init__(model, tokenizer, wrapper, capture=capture)
        self._capture_problems: dict[tuple[object, ...], str | None] = {}
        self._last_prefix: Prefix | None = None
        self._rotary: dict[tuple[int, int], RotaryTables | None] = {}
        self._keep_prefix = keep_prefix

    def generate(
        self,
        request: Request,
        *,
        batch_size: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        max_batch_size: int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Generation:
        """Begin to answer a request.

        Args:
            request: what is asked.
            batch_size: questions at a time; None chooses from the lengths and what memory is free.
            batches: see `schedule`; these are answered as they are, and no others.
            max_batch_size: of an earlier generation, where memory has run out before.
            on_progress: called while a batch is answered, with how many of the request's questions
                are finished, and how many tokens they and the others have.

        Returns:
            An iterator of batches of (index into ``request.questions``, answer), shortest questions
            first. Several may be open at once, and be consumed in any order.

        Raises:
            UserError: a question is longer than the model's context, has a token that the model
                does not know, or positions that it cannot have; memory ran out with the prefix.
        """
        if batches is None:
            batches = self.schedule(request.questions, batch_size)
        return self._begin(
            request,
            batches,
            max_batch_size,
            captured=self._is_captured(request),
            batch_size=batch_size,
            on_progress=on_progress,
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
        check_continuations(request, self.config, self.tokenizer)
        if batches is None:
            batches = self.schedule(request.questions, batch_size)
        prefix, rotary = self._prepare(request, captured=False)
        return LikelihoodPass(
            self,
            request,
            prefix,
            rotary,
            batches,
            captured=False,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
        )

    def schedule(
        self,
        questions: Sequence[Sequence[Stream]],
        batch_size: int | None,
        among: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Which questions go together: see `batching.schedule_batches`.

        A batch has more questions than are answered at a time: others wait in it for a place.
        """
        tokens = batching.tokens_at_once(self.config, self.devices, self.model.dtype.itemsize)
        shrink = self.device.type == "cpu"  # there a small batch costs nothing
        return batching.schedule_batches(questions, batch_size, tokens, among, shrink=shrink)

    def capture_problem(self, fusion: Fusion) -> str | None:
        """Why decode steps under this fusion are not captured; None where they are.

        The first time that a fusion is asked about, a few tokens' logits by the captured path are
        held against those of the plain path. A problem is told once.
        """
        if self.captured_steps is None:
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

    def decode_path(self, fusion: Fusion, *, weighed: bool = False) -> str:
        """How fused tokens are computed under this fusion, as a manifest says it.

        weighed: with weights of each question's own, see `Request.weigh`.
        """
        if weighed:
            fusion = _weighted(fusion)
        captured = self.captures and self.capture_problem(fusion) is None
        return "one kernel, recorded" if captured else "split softmax"

    def environment(self, fusion: Fusion, *, asked: str, weighed: bool = False) -> dict[str, Any]:
        """What computes under this fusion, for a manifest; JSON types.

        asked: see `ModelConfig.attention`. weighed: see `decode_path`.
        """
        return {
            "device": self.device_name,
            "attention": {
                "asked": asked,
                "encode": self.wrapper.backend,
                "fallback": self.wrapper.fallback,
                "decode": self.decode_path(fusion, weighed=weighed),
            },
            "versions": versions(),
        }

    def _answer_all(self, request: Request, captured: bool) -> None:
        batch = list(range(len(request.questions)))
        for _ in self._begin(request, [batch], None, captured=captured, batch_size=len(batch)):
            pass

    def _is_captured(self, request: Request) -> bool:
        if not (self.captures and request.capture and request.observe is None):
            return False
        fusion = request.fusion if request.weigh is None else _weighted(request.fusion)
        return self.capture_problem(fusion) is None

    @torch.inference_mode()
    def _prepare(self, request: Request, *, captured: bool) -> tuple[Prefix, RotaryTables | None]:
        check_request(request, self.config, self.tokenizer)
        with self.computing():
            prefix = self._encoded_prefix(request.prefix, captured=captured)
            return prefix, self._rotary_for(request)

    def _begin(
        self,
        request: Request,
        batches: Sequence[Sequence[int]],
        max_batch_size: int | None,
        *,
        captured: bool,
        batch_size: int | None,
        on_progress: OnProgress | None = None,
    ) -> Generation:
        prefix, rotary = self._prepare(request, captured=captured)
        return Generation(
            self,
            request,
            prefix,
            rotary,
            batches,
            captured=captured,
            batch_size=batch_size,
            max_batch_size=max_batch_size,
            on_progress=on_progress,
        )

    def _encoded_prefix(self, ids: tuple[int, ...], *, captured: bool) -> Prefix:
        """The prefix, encoded now, or where prefixes are kept, for the request before."""
        found = self._last_prefix
        if found is None or found.ids != ids:
            # Outside the buffers that batches share, and with all the memory that they had.
            self._last_prefix = None
            if self.captured_steps is not None:
                self.captured_steps.clear()
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
        furthest = request.extent.rope_offset
        if furthest == 0:
            return None
        last = request.extent.answer_start + request.max_new_tokens
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


def _weighted(fusion: Fusion) -> Fusion:
    """The fusion with weights, whichever: what a captured step can do does not depend on them."""
    return fusion if fusion.weights is not None else replace(fusion, weights=torch.ones(1))
