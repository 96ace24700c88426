"""Fusion at the logits: N paraphrases, one decoded row each, one token taken for all of them.

A logit method is a function of logits [B, N, V] float32 and weights [B, N] (or None) that returns
scores [B, V], whose log-softmax is the fused distribution (`B` questions, `N` paraphrases, `V`
vocabulary). `register_logit_method` gives it a name; docs/extending.md shows one of a user's own.
Nothing here imports torch, so that a command line knows the names at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from self_ensemble.methods.own_code import check_name
from self_ensemble.methods.registries import LOGIT_METHODS, VOTES, LogitMethod

if TYPE_CHECKING:
    import torch

    from self_ensemble.generation.decode import Answer
    from self_ensemble.generation.likelihood import Likelihood
    from self_ensemble.generation.streams import Reduce


__all__ = ["LOGIT_METHODS", "LogitMethod", "confidence", "register_logit_method"]


def register_logit_method(name: str, *, weighted: bool = False) -> Callable[[Reduce], Reduce]:
    """Register a function of (logits, weights) as the method ``name``.

    Raises:
        ValueError: the name is taken, or can name no file.
    """
    check_name(name, VOTES.__contains__)

    def register(reduce: Reduce) -> Reduce:
        LOGIT_METHODS.add(name, LogitMethod(reduce, weighted))
        return reduce

    return register


@register_logit_method("avg")
def average_logits(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Mean of the logits: up to a constant the mean log-probability, a product of experts."""
    return logits.mean(1)


@register_logit_method("max")
def highest_probability(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The probability of each token where it is highest."""
    return logits.log_softmax(-1).amax(1)


@register_logit_method("prob_avg")
def average_probabilities(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Mean of the probabilities: a mixture of experts."""
    return logits.log_softmax(-1).logsumexp(1)


@register_logit_method("weighted_avg", weighted=True)
def weighted_average_logits(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """Logits weighted by each paraphrase's confidence."""
    assert weights is not None
    fractions = weights / weights.sum(-1, keepdim=True)
    return (logits * fractions[:, :, None]).sum(1)


@register_logit_method("weighted_prob_avg", weighted=True)
def weighted_average_probabilities(
    logits: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """Probabilities weighted by each paraphrase's confidence: a mixture of experts."""
    assert weights is not None
    fractions = weights / weights.sum(-1, keepdim=True)
    return (logits.log_softmax(-1) + fractions.log()[:, :, None]).logsumexp(1)


@register_logit_method("weighted_max", weighted=True)
def most_confident(logits: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    """The most confident paraphrase's logits; ties to the earlier paraphrase."""
    assert weights is not None
    best = weights.argmax(-1)
    return logits[best.new_tensor(range(len(best))), best]


def confidence(answer: Answer) -> float:
    """exp of the mean log-probability of an answer's tokens; 0 for an empty answer."""
    if not answer.logprobs:
        return 0.0
    return math.exp(sum(answer.logprobs) / len(answer.logprobs))


def choice_confidence(likelihoods: Sequence[Likelihood]) -> float:
    """The probability of a paraphrase's likeliest choice, among its choices.

    A softmax over their log-likelihoods (sums). The confidence of a generated answer has no
    counterpart here: choices differ in length, and none need be what the paraphrase would say.
    """
    sums = [sum(likelihood.logprobs) for likelihood in likelihoods]
    best = max(sums)
    if best == -math.inf:  # none is possible: all are alike
        return 1 / len(sums)
    return 1 / sum(math.exp(value - best) for value in sums)
