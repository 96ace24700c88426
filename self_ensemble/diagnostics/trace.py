"""What the method does to one question, written down: every step of decoding, and what moved it.

Everything here is asked of the engine. The logits of a step are those that its reduction is given,
the attention is the probabilities that its layers read their values with, and what single
paraphrases would have said are answers of further streams whose tails end with the same tokens.

Legend: ``N`` paraphrases, ``T`` steps, ``L`` layers, ``H`` query heads, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.segments import SplitQuestion, split_prompts
from self_ensemble.data import PromptTemplate
from self_ensemble.generation.legacy import (
    Answer,
    Combine,
    Engine,
    Stream,
    attention_streams,
    check_turns,
    logit_streams,
    only_stream,
)


@dataclass(frozen=True)
class Settings:
    """How paraphrases are fused: the flags of the command line."""

    positions: str
    fusion: str = "mean"
    tau: float = 0.0
    weights: tuple[float, ...] | None = None

    def fusion_of(self, paraphrases: Sequence[int], device: torch.device) -> Fusion | None:
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


def split_question(
    engine: Engine, template: PromptTemplate, paraphrases: Sequence[str]
) -> SplitQuestion:
    """Split a question's prompts, and encode what every prompt begins with."""
    prefix, [question] = split_prompts(engine.tokenizer, template, [paraphrases])
    if prefix != engine.prefix_ids:
        engine.set_prefix(prefix)
    return question


def trace_question(
    engine: Engine,
    template: PromptTemplate,
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


def _trace(engine, template, paraphrases, settings: Settings, max_new_tokens: int) -> Trace:
    question, P = split_question(engine, template, paraphrases), len(engine.prefix_ids)
    everything = range(len(paraphrases))
    [stream] = attention_streams(question, P, settings.positions)
    single = logit_streams(question, P)
    without = _left_out_streams(engine, template, paraphrases, settings.positions)
    check_turns(engine, [[stream], single, without], max_new_tokens)
    fusion = settings.fusion_of(everything, engine.device)
    assert fusion is not None, settings
    decode = watch(engine, stream, fusion, max_new_tokens)

    left_out = [_LeftOut.of(settings, i, without, engine.device) for i in everything]
    single_logits = logits_on_the_way(engine, single, Fusion(), decode.tokens)  # [N, T, V]
    without_logits = [
        None if one is None else one.logits_on_the_way(engine, decode.tokens) for one in left_out
    ]
    steps = [
        Step(
            token,
            decode.logits[t],
            decode.attention[t],
            single_logits[:, t],
            tuple(None if found is None else found[t] for found in without_logits),
        )
        for t, token in enumerate(decode.tokens)
    ]
    return Trace(
        tuple(steps),
        decode.answer,
        tuple(_answers(engine, single, Fusion(), max_new_tokens)),
        tuple(None if one is None else one.answer(engine, max_new_tokens) for one in left_out),
    )


@dataclass(frozen=True)
class _LeftOut:
    """The question without one of its paraphrases."""

    stream: Stream
    fusion: Fusion

    @classmethod
    def of(cls, settings, i: int, without: Sequence[Stream], device) -> _LeftOut | None:
        """None where nothing is left without paraphrase i. without: the streams by paraphrase."""
        rest = [j for j in range(len(without)) if j != i]
        fusion = settings.fusion_of(rest, device) if rest else None
        return None if fusion is None else cls(without[i], fusion)

    def logits_on_the_way(self, engine: Engine, tokens: Sequence[int]) -> torch.Tensor:
        return logits_on_the_way(engine, [self.stream], self.fusion, tokens)[0]

    def answer(self, engine: Engine, max_new_tokens: int) -> Answer:
        [answer] = _answers(engine, [self.stream], self.fusion, max_new_tokens)
        return answer


def _left_out_streams(engine, template, paraphrases, positions: str) -> list[Stream]:
    """The question without paraphrase i, for each i; none where nothing is left.

    Split anew: fewer paraphrases may share a longer tail.
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


@dataclass(frozen=True)
class Decode:
    """One question's decode: its tokens with the stop, and at each of T steps the logits [V] and
    the attention [L, H, N + 2]; see `Step`."""

    answer: Answer
    tokens: list[int]
    logits: list[torch.Tensor]
    attention: list[torch.Tensor]


def watch(engine: Engine, stream: Stream, fusion: Fusion, max_new_tokens: int) -> Decode:
    """Answer one question, and keep every step's logits and attention."""
    layers: dict[int, torch.Tensor] = {}
    logits: list[torch.Tensor] = []
    attention: list[torch.Tensor] = []

    def see_attention(layer, prefix, segments, fused) -> None:
        newest = (part[..., -1, :].sum(-1).flatten(0, 1) for part in (prefix, fused))
        to_prefix, to_own = (part.flatten() for part in newest)  # [H], of the only row
        to_segments = segments[..., -1, :].sum(-1)[:, 0].transpose(1, 2).flatten(0, 1)  # [H, N]
        layers[layer] = torch.cat([to_prefix[:, None], to_segments, to_own[:, None]], dim=1).cpu()

    def see_logits(given, weights) -> torch.Tensor:
        fused = only_stream(given, weights)
        logits.append(fused[0].cpu())
        attention.append(torch.stack([layers[layer] for layer in sorted(layers)]))
        return fused

    with engine.observed(see_attention):
        [answer] = _answers(engine, [stream], fusion, max_new_tokens, see_logits)
    return Decode(answer, [int(each.argmax()) for each in logits], logits, attention)


def _answers(
    engine: Engine,
    streams: Sequence[Stream],
    fusion: Fusion,
    max_new_tokens: int,
    combine: Combine = only_stream,
) -> list[Answer]:
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


def logits_on_the_way(
    engine: Engine, streams: Sequence[Stream], fusion: Fusion, tokens: Sequence[int]
) -> torch.Tensor:
    """What each stream says after the tail and after each of the tokens but the last,
    [streams, T, V].

    A tail that goes on with the tokens so far: the same math as having decoded them.
    """
    grown = [
        replace(stream, tail=stream.tail + tuple(tokens[:t]))
        for stream in streams
        for t in range(len(tokens))
    ]
    seen: list[torch.Tensor] = []

    def keep(logits, weights) -> torch.Tensor:
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
