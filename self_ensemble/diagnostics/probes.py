"""Asking a loaded engine for logits, without its stop rule and without changing it.

Legend: ``R`` questions, ``n`` streams of a question, ``V`` vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.generation.legacy import Combine, Counts, Engine, Stream, only_stream
from self_ensemble.system.errors import UserError

# What a probe decodes: the first token of the answer, and one after it.
STEPS = 2


def without_stops(engine: Engine) -> Engine:
    """The engine with a prefix and counts of its own; answers of any length, nothing recorded."""
    trial = copy.copy(engine)
    trial.counts, trial.recording, trial.room, trial.recorded_steps = Counts(), False, None, {}
    trial.stop = lambda tokens, seen: (torch.zeros_like(seen), seen, seen)
    return trial


def step_logits(
    engine: Engine,
    prefix: Sequence[int],
    streams: Sequence[Sequence[Stream]],
    *,
    steps: int,
    combine: Combine = only_stream,
    fusion: Fusion | None = None,
) -> torch.Tensor:
    """At each of the first steps of each question, before they are combined: [steps, R, n, V].

    Raises:
        UserError: out of memory, or the model cannot have these tokens, lengths or positions.
    """
    assert tuple(prefix) == engine.prefix_ids, (prefix, engine.prefix_ids)
    kept = []

    def keep(logits, weights):
        kept.append(logits)
        return combine(logits, weights)

    halved = engine.counts.out_of_memory
    batches = engine.generate(
        streams,
        fusion=fusion or Fusion(),
        combine=keep,
        max_new_tokens=steps,
        batch_size=len(streams),
    )
    [answers] = list(batches)
    if engine.counts.out_of_memory > halved:
        raise UserError("out of memory with a few questions at a time; take a smaller model")
    order = torch.tensor([index for index, _ in answers])
    return torch.stack(kept)[:, order.argsort()]
