"""Whether the method isolates and decodes one question right, with the mask that it really had."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.diagnostics.measured_masks import Forwards, measured_mask, watched
from self_ensemble.diagnostics.probes import run_prefix, step_logits
from self_ensemble.diagnostics.references import (
    comparable_positions,
    compare_with_single_prompts,
    fused_difference,
    packed_differences,
    unmasked_difference,
)
from self_ensemble.diagnostics.tolerances import fused_rounding, largest, rounding, within
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.streams import attention_streams

ANSWER_TOKENS = 2  # of the answer, in the mask


@dataclass(frozen=True)
class Isolation:
    """What the engine did with a question, held against single-prompt references.

    mask: which token attends to which, as measured in the layers, any of them and any head:
        prefix, packed segments, tail and `ANSWER_TOKENS` of the answer, [S, S] bool.
    differences: of each paraphrase's packed keys, values and hidden states, the largest, relative
        to their norm. tolerance: what passes.
    unmasked: the same if all paraphrases stood in one causal sequence; None for one paraphrase.
    fused: of the logits with all the weight on one paraphrase, the largest, relative to their
        spread. fused_tolerance: what passes.
    """

    mask: torch.Tensor
    differences: tuple[float, ...]
    tolerance: float
    unmasked: float | None
    fused: float
    fused_tolerance: float

    @property
    def apart(self) -> bool:
        return all(within(difference, self.tolerance) for difference in self.differences)

    @property
    def decodes(self) -> bool:
        return within(self.fused, self.fused_tolerance)

    @property
    def passed(self) -> bool:
        return self.apart and self.decodes


@torch.inference_mode()
def check_isolation(
    engine: Engine,
    prefix: tuple[int, ...],
    question: SplitQuestion,
    positions: str,
    fusion: Fusion | None = None,
) -> Isolation:
    """Encode and fuse a question as a run does, and compare as a certificate does.

    Args:
        engine: that would answer it.
        prefix, question: its prompts as they were split.
        positions, fusion: as the run has them; the plain mean where no fusion is given.

    Raises:
        UserError: the model cannot have these positions, or not so many.
    """
    fusion = fusion or Fusion()
    with engine.computing():
        ran = _forwards_of(engine, prefix, question, positions, fusion)
        with watched(engine) as of_prefix:
            run_prefix(engine, prefix)
        comparable = comparable_positions(positions)
        packed = ran.packed
        if comparable != positions:
            packed = _forwards_of(engine, prefix, question, comparable, fusion).packed
        [compared] = compare_with_single_prompts(engine, prefix, [question], positions, fusion)
        references = [each.reference for each in compared]
        unmasked = None
        if len(references) > 1:
            unmasked = unmasked_difference(engine, prefix, question, references)
    dtype, layers = engine.model.dtype, engine.config.num_hidden_layers
    return Isolation(
        mask=measured_mask(of_prefix.encoded, ran.packed, ran.fused, question.lengths),
        differences=tuple(
            largest(relative for relative, _ in each.values())
            for each in packed_differences(packed, question.lengths, references)
        ),
        tolerance=rounding(dtype, layers),
        unmasked=unmasked,
        fused=fused_difference(compared),
        fused_tolerance=fused_rounding(dtype, layers, exact=positions == "exact"),
    )


def _forwards_of(
    engine: Engine,
    prefix: tuple[int, ...],
    question: SplitQuestion,
    positions: str,
    fusion: Fusion,
) -> Forwards:
    """Of the segments, of the tail, and of the answer's tokens."""
    streams = attention_streams(question, len(prefix), positions)
    with watched(engine) as forwards:
        step_logits(engine, prefix, [streams], steps=ANSWER_TOKENS + 1, fusion=fusion)
    return forwards
