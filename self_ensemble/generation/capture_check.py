"""Captured decode steps, held against the plain path on the user's own model before use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from self_ensemble.attention.checks import reason_of
from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.positions import assign_positions
from self_ensemble.generation.request import Request
from self_ensemble.generation.stopping import NeverStop
from self_ensemble.generation.streams import Stream
from self_ensemble.system.errors import UserError

logger = logging.getLogger(__name__)

# Segments of these lengths, two a question.
LENGTHS = ((1, 3), (4, 2), (5, 5))
NEW_TOKENS = 4
# In place of those that are asked for: some whose absence is seen in the logits.
TAU, WEIGHTS = 8.0, (0.1, 0.9)
# Half precision rounds by shape, and whole paths that differ move logits by their own size.
TOLERANCE_FLOAT32, TOLERANCE_HALF = 1e-3, 0.1


def find_capture_problem(
    fusion: Fusion, answer: Callable[[Request, bool], None], model: Any
) -> str | None:
    """Why captured steps cannot be had for this model and fusion; None if they can.

    answer: answers a request in one batch, captured or not.
    """
    if fusion.tau != 0:  # a small one could be left out without moving the logits enough
        fusion = replace(fusion, tau=TAU)
    if fusion.weights is not None:
        fusion = replace(fusion, weights=torch.tensor(WEIGHTS, device=model.device))
    try:
        fast = _logits(fusion, lambda request: answer(request, True), model)
        plain = _logits(fusion, lambda request: answer(request, False), model)
    except Exception as error:  # the compiler's own faults come in every kind
        logger.info("capturing failed", exc_info=True)
        cause = error.__cause__
        return reason_of(cause if isinstance(cause, Exception) else error)
    difference = ((fast - plain).norm() / plain.norm()).item()
    tolerance = TOLERANCE_FLOAT32 if model.dtype == torch.float32 else TOLERANCE_HALF
    if not difference <= tolerance:
        return f"its logits are off by {difference:.1%}"
    return None


def _logits(fusion: Fusion, answer: Callable[[Request], None], model: Any) -> torch.Tensor:
    """Logits of all steps of a few questions, [steps * questions, V]."""
    config = model.config.get_text_config()
    tokens = [token % config.vocab_size for token in range(1, 9)]
    # Long enough for the prefix' own kernel, where the model can have it.
    longest = getattr(config, "max_position_embeddings", None) or 600
    prefix = tuple((tokens * 65)[: min(520, longest // 2)])
    seen: list[torch.Tensor] = []

    def watch(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        seen.append(logits[: len(LENGTHS), 0].clone())
        return torch.zeros_like(logits[:, 0])  # the same tokens, whatever they say

    def ask(positions: str) -> None:
        questions = [
            [
                Stream(
                    tuple(tuple(tokens[:n]) for n in pair),
                    tuple(tokens),
                    (),
                    assign_positions(pair, len(prefix), positions),
                )
            ]
            for pair in LENGTHS
        ]
        answer(
            Request(prefix, questions, fusion, watch, max_new_tokens=NEW_TOKENS, stop=NeverStop())
        )

    try:
        ask("exact" if fusion.rope_offsets else "left")
    except UserError:  # learned positions
        ask("left")
    return torch.cat(seen)
