"""Fusions, logit methods and weightings that were tried beside the toolkit's own.

Each is registered under a name, as a user's own would be (docs/extending.md), so that pretrained.py
asks for it as for any other. They run in plain torch. What is no fusion, weighting or logit method
is a class with settings as keyword arguments, under its name in `METHODS`. docs/evidence.md says
what came of them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from self_ensemble.attention.fusion import (
    mean_of_partitions,
    partition_scores,
    register_fusion,
    weighted_partitions,
)
from self_ensemble.generation.streams import attention_streams, logit_streams
from self_ensemble.methods.attention_fusion import AttentionFusion
from self_ensemble.methods.base import Outcome, split_questions
from self_ensemble.methods.logit_fusion import register_logit_method
from self_ensemble.methods.weighting import entropy, register_weighting
from self_ensemble.system.errors import UserError

METHODS: dict[str, Callable[..., Any]] = {}
TEMPERATURES = (0.8, 0.9, 1.1)
POWERS = (0.5, 2, 4)


def tempered(temperature, prefix, segments, fused, fusion):
    """`mean` with the scores towards the segments divided by a temperature."""
    return mean_of_partitions(prefix, segments / temperature, fused, fusion)


def by_segment(prefix, segments, fused, fusion):
    """`mean` whose dial looks at the segments' own attention mass, not at the partitions'."""
    scores = partition_scores(prefix, segments, fused)
    mass = segments.float().logsumexp(-1, keepdim=True)
    return weighted_partitions(scores, (fusion.tau * mass).softmax(2), prefix, segments)


class LayerDial:
    """`mean` whose dial is on in the layers of one half of the model.

    A fusion is not told its layer: every forward calls each layer once, in order. That holds where
    all questions have as many paraphrases.
    """

    def __init__(self):
        self.begin(1, "upper")

    def begin(self, layers, half):
        self.layers, self.half, self.calls = layers, half, 0

    def __call__(self, prefix, segments, fused, fusion):
        half = "upper" if self.calls % self.layers >= self.layers // 2 else "lower"
        self.calls += 1
        tau = fusion.tau if half == self.half else 0.0
        return mean_of_partitions(prefix, segments, fused, replace(fusion, tau=tau))


class ByLayer:
    """Attention fusion with the dial on in the ``upper`` or the ``lower`` half of the layers."""

    def __init__(self, half, **settings):
        if half not in ("upper", "lower"):
            raise UserError(f"by_layer: half is upper or lower, not {half!r}")
        self.half, self.fusion = half, AttentionFusion(fusion="by_layer", **settings)

    def answer(self, asked):
        LAYER_DIAL.begin(asked.engine.config.num_hidden_layers, self.half)
        return self.fusion.answer(asked)


def power_mean(power, logits, weights):
    """The mean of powers: 1 is `prob_avg`, towards 0 `avg`, towards infinity `max`."""
    return (power * logits.log_softmax(-1)).logsumexp(1) / power


def weighted_power_mean(power, logits, weights):
    """The same, weighted."""
    fractions = (weights / weights.sum(-1, keepdim=True)).log()[:, :, None]
    return (power * logits.log_softmax(-1) + fractions).logsumexp(1) / power


def agreement(logits, strength):
    """exp(-strength * KL(own || mean of all)): a paraphrase that says what the others do counts."""
    logprobs = logits.log_softmax(-1)
    mean = logprobs.logsumexp(1, keepdim=True) - torch.tensor(float(logits.shape[1])).log()
    return -strength * (logprobs.exp() * (logprobs - mean)).sum(-1)


def without_most_entropy(logits, strength):
    """Leaves out so many paraphrases, those with the highest entropy; the others count alike."""
    surest = entropy(logits, 1.0)
    left_out = surest.argsort(-1)[:, : min(int(strength), logits.shape[1] - 1)]
    return torch.zeros_like(surest).scatter(-1, left_out, -torch.inf)


def top_probability(logits, strength):
    """The probability of a paraphrase's likeliest token, to the power ``strength``."""
    return strength * logits.log_softmax(-1).amax(-1)


class BothDepths:
    """One fused row and N single rows a question: the mean of their logits, the fused one half.

    settings: those of `AttentionFusion`.
    """

    def __init__(self, **settings):
        self.fusion = AttentionFusion(**settings)

    def answer(self, asked):
        request = self.fusion.request(asked.engine, asked.template, asked.questions, asked.config)
        prefix, split = split_questions(asked.engine.tokenizer, asked.template, asked.questions)
        positions = self.fusion.positions_on(asked.engine.model.config)
        rows = [
            attention_streams(each, len(prefix), positions) + logit_streams(each, len(prefix))
            for each in split
        ]

        def reduce(logits, weights):
            logprobs = logits.log_softmax(-1)
            return (logprobs[:, 0] + logprobs[:, 1:].mean(1)) / 2

        request = replace(request, questions=rows, reduce=reduce, capture=False)
        batches = asked.ask("both depths", request, batch_size=asked.config.batch_size)
        for batch in batches:
            for index, answer in batch:
                yield Outcome(index, (answer,))


LAYER_DIAL = LayerDial()
METHODS |= {"both": BothDepths, "by_layer": ByLayer}
register_fusion("by_layer", tau=True, weights=True)(LAYER_DIAL)
register_fusion("by_segment", tau=True)(by_segment)
for _temperature in TEMPERATURES:
    register_fusion(f"tempered_{_temperature:g}", tau=True, weights=True)(
        partial(tempered, _temperature)
    )
for _power in POWERS:
    register_logit_method(f"power_{_power:g}")(partial(power_mean, _power))
    register_logit_method(f"weighted_power_{_power:g}", weighted=True)(
        partial(weighted_power_mean, _power)
    )
register_weighting("agreement")(agreement)
register_weighting("without")(without_most_entropy)
register_weighting("top")(top_probability)
