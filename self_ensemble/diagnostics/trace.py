"""What the method does to one question, written down: every step of decoding, and what moved it.

Everything here is asked of the engine. The logits of a step are those that its reduction is given,
the attention is the probabilities that its layers read their values with, and what single
paraphrases would have said are answers of further streams whose tails end with the same tokens.

Legend: ``N`` paraphrases, ``T`` steps, ``L`` layers, ``H`` query heads, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from self_ensemble.attention.fusion import Fusion
from self_ensemble.attention.segments import split_prompts
from self_ensemble.data import PromptTemplate
from self_ensemble.generation.decode import Answer
from self_ensemble.generation.engine import Engine
from self_ensemble.generation.request import Request
from self_ensemble.generation.stopping import StopRule
from self_ensemble.generation.streams import (
    Stream,
    attention_streams,
    logit_streams,
    only_stream,
)
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.methods.config import AttentionFusionConfig
from self_ensemble.methods.weighting import parse_weighting


@dataclass(frozen=True)
class Step:
    """One token of the answer, and what chose it.

    logits: fused, [V].
    attention: of the token whose output these logits are (the last of the tail, then the one chosen
        before), [L, H, N + 2]: the shares of the prefix, of each paraphrase and of its own text
        (tail and answer so far, itself included); over the last axis they sum to 1.
    single: logits of each paraphrase by itself after the same tokens, [N, V].
    left_out: logits of the fusion without paraphrase i after the same tokens, [V] each; None where
        nothing is left.
    """

    token: int
    logits: torch.Tensor
    attention: torch.Tensor
    single: torch.Tensor
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

    weights: the paraphrases' own, given or found for this question, summing to one; None where all
        count alike. What tau makes of them differs from token to token, layer to layer.
    answer: as `flex_attention_generate.py` gives it. single: each paraphrase's own. left_out: that
    of the fusion without paraphrase i, None where nothing is left.
    """

    steps: tuple[Step, ...]
    weights: tuple[float, ...] | None
    answer: Answer
    single: tuple[Answer, ...]
    left_out: tuple[Answer | None, ...]

    @property
    def decisive(self) -> list[int]:
        """The paraphrases without which a token of the answer would have been another."""
        return sorted({i for step in self.steps for i in step.decisive})


def method_of(config: AttentionFusionConfig) -> AttentionFusion:
    """Raises UserError where its settings do not go together."""
    return AttentionFusion(**asdict(config))


def positions_of(settings: AttentionFusion, engine: Engine) -> str:
    return settings.positions_on(engine.model.config)


def fusion_of(settings: AttentionFusion, engine: Engine) -> Fusion:
    return settings.fusion_on(engine.device)


def weighted_fusion_of(
    settings: AttentionFusion, engine: Engine, prefix: tuple[int, ...], stream: Stream
) -> Fusion:
    """The fusion of one question, whose weights may be the question's own: a run finds the same."""
    fusion = fusion_of(settings, engine)
    if settings.weights_by is None:
        return fusion
    weigh = parse_weighting(settings.weights_by).weigh
    found: list[torch.Tensor] = []

    def keep(logits: torch.Tensor) -> torch.Tensor:
        found.append(weigh(logits))
        return found[-1]

    request = Request(prefix, [[stream]], fusion, max_new_tokens=1, weigh=keep, capture=False)
    _answers(engine, request)
    [log_weights] = found[-1]  # of the only question
    return replace(fusion, weights=log_weights.float().softmax(-1))


def trace_question(
    engine: Engine,
    template: PromptTemplate,
    paraphrases: Sequence[str],
    *,
    settings: AttentionFusion,
    max_new_tokens: int,
) -> Trace:
    """Answer a question as `flex_attention_generate.py` does, and keep what was met on the way.

    On a GPU too every step runs as it is, not captured: where steps are captured, half precision
    may round otherwise.

    Raises:
        UserError: the tokenizer, the model or the lengths do not allow it.
    """
    prefix, [question] = split_prompts(engine.tokenizer, template, [paraphrases])
    positions = positions_of(settings, engine)
    [stream] = attention_streams(question, len(prefix), positions)
    fusion = weighted_fusion_of(settings, engine, prefix, stream)
    decode = watch(engine, prefix, stream, fusion, max_new_tokens)

    asker = _Asker(engine, prefix, decode.tokens, max_new_tokens)
    single = logit_streams(question, len(prefix))
    single_logits = asker.logits_on_the_way(single, Fusion())  # [N, T, V]
    left_out = _left_out(engine, template, paraphrases, settings)
    without_logits = [
        None if one is None else asker.logits_on_the_way([one.stream], one.fusion)[0]
        for one in left_out
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
        None if fusion.weights is None else tuple(fusion.weights.tolist()),
        decode.answer,
        tuple(asker.answers(single, Fusion())),
        tuple(
            None if one is None else asker.answers([one.stream], one.fusion)[0] for one in left_out
        ),
    )


@dataclass(frozen=True)
class _Rest:
    """The question without one of its paraphrases."""

    stream: Stream
    fusion: Fusion


def _left_out(
    engine: Engine,
    template: PromptTemplate,
    paraphrases: Sequence[str],
    settings: AttentionFusion,
) -> list[_Rest | None]:
    """The question without paraphrase i, for each i; None where nothing is left.

    Split anew: fewer paraphrases may share a longer tail.
    """
    found: list[_Rest | None] = []
    for i in range(len(paraphrases)):
        rest = [j for j in range(len(paraphrases)) if j != i]
        weights = settings.weights and tuple(settings.weights[j] for j in rest)
        if not rest or (weights is not None and not any(weights)):
            found.append(None)
            continue
        texts = [paraphrases[j] for j in rest]
        prefix, [question] = split_prompts(engine.tokenizer, template, [texts])
        positions = positions_of(settings, engine)
        [stream] = attention_streams(question, len(prefix), positions)
        without = replace(settings, weights=weights)
        found.append(_Rest(stream, weighted_fusion_of(without, engine, prefix, stream)))
    return found


@dataclass(frozen=True)
class _Asker:
    """What further streams would have said. Each is a question of its own.

    tokens: of the answer, with the stop.
    """

    engine: Engine
    prefix: tuple[int, ...]
    tokens: Sequence[int]
    max_new_tokens: int

    def answers(self, streams: Sequence[Stream], fusion: Fusion) -> list[Answer]:
        questions = [[stream] for stream in streams]
        request = Request(
            self.prefix, questions, fusion, max_new_tokens=self.max_new_tokens, capture=False
        )
        return _answers(self.engine, request)

    def logits_on_the_way(self, streams: Sequence[Stream], fusion: Fusion) -> torch.Tensor:
        """After the tail and after each of the tokens but the last, [streams, T, V].

        A tail that goes on with the tokens so far: the same math as having decoded them.
        """
        grown = [
            [replace(stream, tail=stream.tail + tuple(self.tokens[:t]))]
            for stream in streams
            for t in range(len(self.tokens))
        ]
        seen: list[torch.Tensor] = []

        def keep(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
            seen.append(only_stream(logits, weights).cpu())
            return logits[:, 0]

        request = Request(self.prefix, grown, fusion, keep, max_new_tokens=1, capture=False)
        order = [index for batch in self.engine.generate(request) for index, _ in batch]
        logits = torch.cat(seen)[torch.tensor(order).argsort()]  # batches come shortest first
        assert len(logits) == len(grown), (len(logits), len(grown))
        return logits.unflatten(0, (len(streams), len(self.tokens)))


def _answers(engine: Engine, request: Request) -> list[Answer]:
    """In the order of the request's questions."""
    found = dict(pair for batch in engine.generate(request) for pair in batch)
    return [found[index] for index in range(len(request.questions))]


@dataclass(frozen=True)
class Decode:
    """One question's decode: its tokens with the stop, and at each of T steps the logits [V] and
    the attention [L, H, N + 2]; see `Step`."""

    answer: Answer
    tokens: list[int]
    logits: list[torch.Tensor]
    attention: list[torch.Tensor]


def watch(
    engine: Engine,
    prefix: tuple[int, ...],
    stream: Stream,
    fusion: Fusion,
    max_new_tokens: int,
    stop: StopRule | None = None,
) -> Decode:
    """Answer one question, and keep every step's logits and attention. stop: see `Request`."""
    layers: dict[int, torch.Tensor] = {}
    logits: list[torch.Tensor] = []
    attention: list[torch.Tensor] = []

    def see_attention(
        layer: int, prefix: torch.Tensor, segments: torch.Tensor, fused: torch.Tensor
    ) -> None:
        newest = (part[..., -1, :].sum(-1).flatten(0, 1) for part in (prefix, fused))
        to_prefix, to_own = (part.flatten() for part in newest)  # [H], of the only row
        to_segments = segments[..., -1, :].sum(-1)[:, 0].transpose(1, 2).flatten(0, 1)  # [H, N]
        layers[layer] = torch.cat([to_prefix[:, None], to_segments, to_own[:, None]], dim=1).cpu()

    def see_logits(given: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        fused = only_stream(given, weights)
        logits.append(fused[0].cpu())
        attention.append(torch.stack([layers[layer] for layer in sorted(layers)]))
        return fused

    request = Request(
        prefix,
        [[stream]],
        fusion,
        see_logits,
        max_new_tokens=max_new_tokens,
        stop=stop,
        observe=see_attention,
    )
    [answer] = _answers(engine, request)
    return Decode(answer, [int(each.argmax()) for each in logits], logits, attention)
