"""What the method does to one question, written down: cuts, isolation, and every step of decoding.

Everything here is asked of the engine. The logits of a step are those that its reduction is given,
the attention is the probabilities that its layers read their values with, and what single
paraphrases would have said are answers of further streams whose tails end with the same tokens.

Legend: ``N`` paraphrases, ``T`` steps, ``L`` layers, ``H`` query heads, ``P`` tokens of the prefix,
``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.segments import SplitQuestion, split_prompts
from self_ensemble.diagnostics.certificate import (
    Forward,
    follow_each,
    fused_difference,
    fused_tolerance,
    packed_differences,
    rounding,
    size,
    step_logits,
    watched,
    without_a_mask,
    without_stops,
)
from self_ensemble.generation.engine import (
    Answer,
    Engine,
    Stream,
    attention_streams,
    check_turns,
    logit_streams,
    only_stream,
)

ANSWER_TOKENS = 2  # of the answer, in the mask


@dataclass(frozen=True)
class Settings:
    """How paraphrases are fused: the flags of the command line."""

    positions: str
    fusion: str = "mean"
    tau: float = 0.0
    weights: tuple[float, ...] | None = None

    def fusion_of(self, paraphrases: Sequence[int], device) -> Fusion | None:
        """The fusion of only these paraphrases; None where their weights are all 0."""
        if self.weights is None:
            return Fusion(self.fusion, self.tau)
        weights = [self.weights[i] for i in paraphrases]
        return Fusion.of(self.fusion, self.tau, weights, device) if any(weights) else None


@dataclass(frozen=True)
class Step:
    """One token of the answer, and what chose it.

    logits: fused, [V].
    attention: of the token whose output these logits are (the last of the tail, then the one chosen
        before), [L, H, N + 2]: the shares of the prefix, of each paraphrase and of its own text
        (tail and answer so far, itself included); over the last axis they sum to 1.
    alone: logits of each paraphrase by itself after the same tokens, [N, V].
    left_out: logits of the fusion without paraphrase i after the same tokens, [V] each; None where
        nothing is left.
    """

    token: int
    logits: torch.Tensor
    attention: torch.Tensor
    alone: torch.Tensor
    left_out: tuple[torch.Tensor | None, ...]

    @property
    def decisive(self) -> list[int]:
        """The paraphrases without which another token would have been chosen."""
        return [
            i
            for i, logits in enumerate(self.left_out)
            if logits is not None and int(logits.argmax()) != self.token
        ]


@dataclass(frozen=True)
class Trace:
    """A question's whole decode.

    answer: as `flex_attention_generate.py` gives it. alone: each paraphrase's own. left_out: that
    of the fusion without paraphrase i, None where nothing is left.
    """

    steps: tuple[Step, ...]
    answer: Answer
    alone: tuple[Answer, ...]
    left_out: tuple[Answer | None, ...]

    @property
    def decisive(self) -> list[int]:
        """The paraphrases without which a token of the answer would have been another."""
        return sorted({i for step in self.steps for i in step.decisive})


@dataclass(frozen=True)
class Isolation:
    """What the engine did with a question, held against stock forwards of its prompts.

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
        # A value that is no number passes no comparison.
        return all(difference <= self.tolerance for difference in self.differences)

    @property
    def decodes(self) -> bool:
        return self.fused <= self.fused_tolerance

    @property
    def passed(self) -> bool:
        return self.apart and self.decodes


# ---- isolation ----------------------------------------------------------------------------------


@torch.inference_mode()
def check_isolation(engine: Engine, question: SplitQuestion, positions: str) -> Isolation:
    """Encode and fuse a question as a run does, and compare as a certificate does.

    Raises:
        UserError: the model cannot have these positions, or not so many.
    """
    trial = without_stops(engine)
    with watched(trial) as forwards:
        trial.set_prefix(engine.prefix_ids)
    P, lengths = len(trial.prefix_ids), question.lengths
    # Under other positions segments stand elsewhere than alone.
    comparable = positions if positions == "exact" else "left"
    asked = [attention_streams(question, P, each) for each in {comparable, positions}]
    check_turns(trial, asked, ANSWER_TOKENS + 1)

    def forwards_of(positions):
        stream = attention_streams(question, P, positions)
        with watched(trial) as found:
            step_logits(trial, [stream], steps=ANSWER_TOKENS + 1)
        return found

    ran = forwards_of(positions)
    packed = ran[0] if positions == comparable else forwards_of(comparable)[0]
    [followed] = follow_each(trial, [question], positions)
    alone = [stock for _, stock in followed]
    found = packed_differences(packed, lengths, alone)
    return Isolation(
        measured_mask([*forwards, *ran], P, lengths),
        tuple(max((off for off, _ in each.values()), key=size) for each in found),
        rounding(engine.model.dtype, engine.config.num_hidden_layers),
        without_a_mask(trial, question, alone) if len(lengths) > 1 else None,
        fused_difference(followed),
        fused_tolerance(trial, positions),
    )


def measured_mask(forwards: Sequence[Forward], P: int, lengths: Sequence[int]) -> torch.Tensor:
    """Of one question's forwards: of the prefix where there is one, the segments, and the fused.

    Returns [S, S] bool, see `Isolation`.
    """

    def visible(forward):
        return torch.stack([highest > 0 for _, highest in forward.shares.values()]).any(0)

    *encoded, tail, first, second = forwards
    T, fused = sum(lengths), [tail, first, second]
    S = P + T + sum(len(forward.slots) for forward in fused)
    mask = torch.zeros(S, S, dtype=torch.bool)
    if P:
        mask[:P, :P] = visible(encoded[0])[:P, :P]  # without a bucket's padding
    mask[P : P + T, : P + T] = visible(encoded[-1])[:T, : P + T]
    K, M = tail.plan.segment_mask.shape[1:]
    cells = [P + k * M + at for k in range(K) for at in range(lengths[k])]
    own = [P + K * M + slot for slot in range(S - P - T)]
    rows = torch.cat([visible(forward)[0] for forward in fused])
    mask[P + T :] = rows[:, [*range(P), *cells, *own]]
    return mask


# ---- decoding -----------------------------------------------------------------------------------


def cut(engine: Engine, template, paraphrases: Sequence[str]) -> SplitQuestion:
    """Cut a question's prompts, and encode what every prompt begins with."""
    prefix, [question] = split_prompts(engine.tokenizer, template, [paraphrases])
    if prefix != engine.prefix_ids:
        engine.set_prefix(prefix)
    return question


def trace_question(
    engine: Engine,
    template,
    paraphrases: Sequence[str],
    *,
    settings: Settings,
    max_new_tokens: int,
) -> Trace:
    """Answer a question as `flex_attention_generate.py` does, and keep what was met on the way.

    On a GPU too every step runs as it is, not recorded: where steps are recorded, half precision
    may round otherwise.

    Raises:
        UserError: the tokenizer, the model or the lengths do not allow it.
    """
    with engine.unrecorded():
        return _trace(engine, template, paraphrases, settings, max_new_tokens)


def _trace(engine, template, paraphrases, settings, max_new_tokens) -> Trace:
    question, P = cut(engine, template, paraphrases), len(engine.prefix_ids)
    everything = range(len(paraphrases))
    [stream] = attention_streams(question, P, settings.positions)
    alone = logit_streams(question, P)
    without = _left_out_streams(engine, template, paraphrases, settings.positions)
    check_turns(engine, [[stream], alone, without], max_new_tokens)
    fusion = settings.fusion_of(everything, engine.device)
    answer, tokens, logits, attention = watch(engine, stream, fusion, max_new_tokens)

    fusions = [
        settings.fusion_of([j for j in everything if j != i], engine.device) if without else None
        for i in everything
    ]
    own_logits = logits_on_the_way(engine, alone, Fusion(), tokens)  # [N, T, V]
    left_out_logits = [
        None if kind is None else logits_on_the_way(engine, [without[i]], kind, tokens)[0]
        for i, kind in enumerate(fusions)
    ]
    steps = [
        Step(
            token,
            logits[t],
            attention[t],
            own_logits[:, t],
            tuple(None if found is None else found[t] for found in left_out_logits),
        )
        for t, token in enumerate(tokens)
    ]
    return Trace(
        tuple(steps),
        answer,
        tuple(_answers(engine, alone, Fusion(), max_new_tokens)),
        tuple(
            None if kind is None else _answers(engine, [without[i]], kind, max_new_tokens)[0]
            for i, kind in enumerate(fusions)
        ),
    )


def _left_out_streams(engine, template, paraphrases, positions) -> list[Stream]:
    """The question without paraphrase i, for each i; none where nothing is left.

    Cut anew: fewer paraphrases may share a longer tail.
    """
    if len(paraphrases) == 1:
        return []
    rests = [
        [text for j, text in enumerate(paraphrases) if j != i] for i in range(len(paraphrases))
    ]
    _, questions = split_prompts(engine.tokenizer, template, rests)
    P = len(engine.prefix_ids)
    return [
        stream for question in questions for stream in attention_streams(question, P, positions)
    ]


def watch(engine, stream, fusion, max_new_tokens):
    """One question's decode: its answer, its tokens with the stop, and at each of T steps the
    logits [V] and the attention [L, H, N + 2]."""
    layers, logits, attention = {}, [], []

    def see_attention(layer, prefix, segments, fused):
        newest = (part[..., -1, :].sum(-1).flatten(0, 1) for part in (prefix, fused))
        to_prefix, to_own = (part.flatten() for part in newest)  # [H], of the only row
        to_segments = segments[..., -1, :].sum(-1)[:, 0].transpose(1, 2).flatten(0, 1)  # [H, N]
        layers[layer] = torch.cat([to_prefix[:, None], to_segments, to_own[:, None]], dim=1).cpu()

    def see_logits(given, weights):
        fused = only_stream(given, weights)
        logits.append(fused[0].cpu())
        attention.append(torch.stack([layers[layer] for layer in sorted(layers)]))
        return fused

    with engine.observed(see_attention):
        [answer] = _answers(engine, [stream], fusion, max_new_tokens, see_logits)
    return answer, [int(each.argmax()) for each in logits], logits, attention


def _answers(engine, streams, fusion, max_new_tokens, combine=only_stream) -> list[Answer]:
    """Each stream a question of its own; all have as many segments."""
    batches = engine.generate(
        [[stream] for stream in streams],
        fusion=fusion,
        combine=combine,
        max_new_tokens=max_new_tokens,
        batch_size=None,
    )
    found = dict(pair for batch in batches for pair in batch)
    return [found[index] for index in range(len(streams))]


def logits_on_the_way(engine, streams, fusion, tokens) -> torch.Tensor:
    """What each stream says after the tail and after each of the tokens but the last,
    [streams, T, V].

    A tail that goes on with the tokens so far: the same math as having decoded them.
    """
    grown = [
        replace(stream, tail=stream.tail + tuple(tokens[:t]))
        for stream in streams
        for t in range(len(tokens))
    ]
    seen = []

    def keep(logits, weights):
        fused = only_stream(logits, weights)
        seen.append(fused.cpu())
        return fused

    batches = engine.generate(
        [[stream] for stream in grown],
        fusion=fusion,
        combine=keep,
        max_new_tokens=1,
        batch_size=None,
    )
    order = torch.tensor([index for batch in batches for index, _ in batch])
    logits = torch.cat(seen)[order.argsort()]  # batches come shortest first
    assert len(logits) == len(grown), (len(logits), len(grown))
    return logits.unflatten(0, (len(streams), len(tokens)))
