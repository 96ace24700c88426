"""Asking an engine for the logits of its first steps, whatever they say.

Legend: ``R`` questions, ``n`` streams of a question, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.generation.encode import encode_prefix
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.forward import Forward
from self_ensemble.generation.request import Request
from self_ensemble.generation.stopping import NeverStop
from self_ensemble.generation.streams import Reduce, Stream, only_stream
from self_ensemble.system.errors import UserError

# What a probe decodes: the first token of the answer, and one after it.
STEPS = 2


def run_prefix(engine: Engine, prefix: tuple[int, ...]) -> None:
    """Encode a prefix as the engine does, which may have it already and then would not."""
    if prefix:
        with torch.inference_mode(), engine.computing():
            encode_prefix(Forward(engine.model, engine.wrapper, compiled=False), prefix)


def step_logits(
    engine: Engine,
    prefix: tuple[int, ...],
    questions: Sequence[Sequence[Stream]],
    *,
    steps: int,
    reduce: Reduce = only_stream,
    fusion: Fusion | None = None,
) -> torch.Tensor:
    """At each of the first steps of each question, before they are reduced: [steps, R, n, V].

    No step is captured, and none is the last: answers go on to the limit. NaN is kept, and the
    decode goes on past it, where a run would stop: it is what is looked for.

    Raises:
        UserError: out of memory, or the model cannot have these tokens, lengths or positions.
    """
    kept: list[torch.Tensor] = []

    def keep(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        kept.append(logits)
        return reduce(logits, weights).nan_to_num()

    request = Request(
        prefix,
        questions,
        fusion or Fusion(),
        keep,
        max_new_tokens=steps,
        stop=NeverStop(),
        capture=False,
    )
    generation = engine.generate(request, batch_size=len(questions))
    [answers] = list(generation)
    if generation.stats.out_of_memory:
        raise UserError("out of memory with a few questions at a time; take a smaller model")
    order = torch.tensor([index for index, _ in answers])
    return torch.stack(kept)[:, order.argsort()]
