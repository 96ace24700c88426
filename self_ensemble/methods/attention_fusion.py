"""Fusion in the attention: all paraphrases encoded side by side, one decoded row a question."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from self_ensemble.attention.continuations import concatenate_choices, split_choices
from self_ensemble.attention.fusion import FUSIONS, Fusion, FusionKind
from self_ensemble.attention.positions import POSITIONS, default_positions
from self_ensemble.attention.segments import SplitQuestion, concatenate_prompts
from self_ensemble.data.names import SEPARATOR
from self_ensemble.generation.answering import AnyEngine
from self_ensemble.generation.config import GenerationConfig
from self_ensemble.generation.likelihood import ScoringRequest
from self_ensemble.generation.packed import PackedStreams
from self_ensemble.generation.request import Request
from self_ensemble.generation.streams import attention_streams
from self_ensemble.methods.base import (
    Asked,
    AskedChoices,
    Outcome,
    ScoredChoices,
    Template,
    check_weights,
    sampling_of,
    split_questions,
)
from self_ensemble.methods.config import LAYOUTS, AttentionFusionConfig
from self_ensemble.methods.weighting import parse_weighting, weigh_by
from self_ensemble.system.errors import UserError

PASS_NAME = "attention fusion"


def default_positions_on(config: Any, fusion: str) -> str:
    """The positions where none are asked for: of a model of this configuration, under a fusion."""
    rope_offsets = FUSIONS.get(fusion).rope_offsets
    return default_positions(config.get_text_config(), rope_offsets=rope_offsets)


@dataclass(frozen=True)
class AttentionFusion(AttentionFusionConfig):
    """The toolkit's own method, with the settings of `AttentionFusionConfig`.

    Raises:
        UserError: a setting is unknown, or settings do not go together.
    """

    def __post_init__(self) -> None:
        kind = FUSIONS.get(self.fusion)
        Fusion(self.fusion, self.tau_used)
        if self.layout not in LAYOUTS:
            raise UserError(f"unknown layout {self.layout!r}: there is {', '.join(LAYOUTS)}")
        if self.positions not in (None, *POSITIONS):
            raise UserError(
                f"unknown positions {self.positions!r}: there is {', '.join(POSITIONS)}"
            )
        if self.positions == "exact" and not kind.rope_offsets:
            raise UserError(
                f"the fusion {self.fusion} has one query for all paraphrases and cannot have the "
                "positions exact; use left"
            )
        if self.weights is not None:
            check_weights("weights", self.weights)
        if self.weights_by is not None:
            parse_weighting(self.weights_by)
            self._check_weighting(kind)

    def _check_weighting(self, kind: FusionKind) -> None:
        if self.weights is not None:
            raise UserError("weights are given, or found by weights_by: leave one of them out")
        if not kind.weights:
            raise UserError(f"the fusion {self.fusion!r} uses no weights: leave weights_by out")
        if self.layout == "concat":
            raise UserError(
                "weights_by needs the layout shared: in concat no paraphrase's own first token is "
                "known"
            )

    def positions_on(self, config: Any) -> str:
        """The positions on a model of this configuration."""
        return self.positions or default_positions_on(config, self.fusion)

    def fusion_on(self, device: torch.device | str) -> Fusion:
        """How partitions are combined, with the weights on a device."""
        return Fusion.of(self.fusion, self.tau_used, self.weights, device)

    def request(
        self,
        engine: AnyEngine,
        template: Template,
        questions: Sequence[Sequence[str]],
        config: GenerationConfig,
    ) -> Request:
        """Split every prompt into prefix, segments and tail, and assign positions.

        Raises:
            UserError: the tokenizer does not allow it, or not each paraphrase has a weight.
        """
        for paraphrases in questions:
            self.check_count(len(paraphrases))
        tokenizer = engine.tokenizer
        prefix: tuple[int, ...] = ()
        if self.layout == "concat":
            split: Iterator[SplitQuestion] = (
                concatenate_prompts(tokenizer, template, paraphrases, SEPARATOR)
                for paraphrases in questions
            )
        else:
            prefix, split = split_questions(tokenizer, template, questions)
        positions = self.positions_on(engine.config)
        return Request(
            prefix,
            PackedStreams(attention_streams(each, len(prefix), positions) for each in split),
            self.fusion_on(engine.device),
            max_new_tokens=config.max_new_tokens,
            weigh=weigh_by(self.weights_by),
            stop=config.stop,
        )

    def answer(self, asked: Asked) -> Iterator[Outcome]:
        """See `methods.base.Method`."""
        config = asked.config
        request = self.request(asked.engine, asked.template, asked.questions, config)
        request = replace(request, sampling=sampling_of(asked, ((u, 0) for u in asked.uuids)))
        for batch in asked.ask(PASS_NAME, request, batch_size=config.batch_size):
            for index, answer in batch:
                yield Outcome(index, (answer,))

    def score(self, asked: AskedChoices) -> Iterator[ScoredChoices]:
        """See `methods.base.ScoringMethod`."""
        for paraphrases in asked.questions:
            self.check_count(len(paraphrases))
        engine = asked.engine
        given = engine.tokenizer, asked.template, asked.questions, asked.choices
        prefix: tuple[int, ...] = ()
        if self.layout == "concat":
            split = concatenate_choices(*given)
        else:
            prefix, split = split_choices(*given)
        positions = self.positions_on(engine.config)
        request = ScoringRequest(
            prefix,
            PackedStreams(
                attention_streams(each.question, len(prefix), positions) for each in split
            ),
            self.fusion_on(engine.device),
            weigh=weigh_by(self.weights_by),
            continuations=[each.continuations for each in split],
        )
        for batch in asked.ask(PASS_NAME, request, batch_size=asked.batch_size):
            for index, likelihoods in batch:
                yield ScoredChoices(index, (likelihoods,))
