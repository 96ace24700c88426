"""Whether the method isolates and decodes one question right, with the mask that it really had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.segments import SplitQuestion
from self_ensemble.diagnostics.measured_masks import Forward, measured_mask, watched
from self_ensemble.diagnostics.probes import step_logits, without_stops
from self_ensemble.diagnostics.references import (
    compare_with_single_prompts,
    fused_difference,
    packed_differences,
    unmasked_difference,
)
from self_ensemble.diagnostics.tolerances import fused_rounding, largest, rounding, within
from self_ensemble.generation.legacy import Engine, attention_streams, check_turns

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
    engine: Engine, question: SplitQuestion, positions: str, fusion: Fusion | None = None
) -> Isolation:
    """Encode and fuse a question as a run does, and compare as a certificate does.

    Args:
        engine: with the question's prefix set; left as it is.
        question: as it was split.
        positions, fusion: as the run has them; the plain mean where no fusion is given.

    Raises:
        UserError: the model cannot have these positions, or not so many.
    """
    trial, prefix, fusion = without_stops(engine), engine.prefix_ids, fusion or Fusion()
    with watched(trial) as of_prefix:
        trial.set_prefix(prefix)
    # Under other positions segments stand elsewhere than in their own prompts.
    comparable = positions if positions == "exact" else "left"
    asked = [attention_streams(question, len(prefix), each) for each in {comparable, positions}]
    check_turns(trial, asked, ANSWER_TOKENS + 1)

    ran = _forwards_of(trial, prefix, question, positions, fusion)
    packed, *_ = (
        ran
        if positions == comparable
        else _forwards_of(trial, prefix, question, comparable, fusion)
    )
    [compared] = compare_with_single_prompts(trial, prefix, [question], positions, fusion)
    references = [each.reference for each in compared]
    dtype, layers = engine.model.dtype, engine.config.num_hidden_layers
    several = len(references) > 1
    return Isolation(
        mask=measured_mask([*of_prefix, *ran], len(prefix), question.lengths),
        differences=tuple(
            largest(relative for relative, _ in each.values())
            for each in packed_differences(packed, question.lengths, references)
        ),
        tolerance=rounding(dtype, layers),
        unmasked=unmasked_difference(trial, prefix, question, references) if several else None,
        fused=fused_difference(compared),
        fused_tolerance=fused_rounding(dtype, layers, exact=positions == "exact"),
    )


def _forwards_of(
    engine: Engine, prefix: Sequence[int], question: SplitQuestion, positions: str, fusion: Fusion
) -> list[Forward]:
    """Of the segments, of the tail, and of the answer's tokens."""
    stream = attention_streams(question, len(prefix), positions)
    with watched(engine) as found:
        step_logits(engine, prefix, [stream], steps=ANSWER_TOKENS + 1, fusion=fusion)
    return found
