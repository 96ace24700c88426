"""How N paraphrases' logits, or their answers, become one.

The reductions take logits [B, N, V] float32 and weights [B, N] and return scores [B, V], whose
log-softmax is the fused distribution (`B` questions, `N` paraphrases, `V` vocabulary).
"""

import math
from collections import Counter
from collections.abc import Sequence

from self_ensemble.data.answers import normalize_answer


def average_logits(logits, weights):
    """Mean of the logits: up to a constant the mean log-probability, a product of experts."""
    return logits.mean(1)


def highest_probability(logits, weights):
    """The probability of each token where it is highest."""
    return logits.log_softmax(-1).amax(1)


def average_probabilities(logits, weights):
    """Mean of the probabilities: a mixture of experts."""
    return logits.log_softmax(-1).logsumexp(1)


def weighted_average_logits(logits, weights):
    """Logits weighted by each paraphrase's confidence."""
    share = weights / weights.sum(-1, keepdim=True)
    return (logits * share[:, :, None]).sum(1)


def most_confident(logits, weights):
    """The most confident paraphrase's logits; ties to the earlier paraphrase."""
    best = weights.argmax(-1)
    return logits[best.new_tensor(range(len(best))), best]


REDUCTIONS = {
    "avg": average_logits,
    "max": highest_probability,
    "prob_avg": average_probabilities,
    "weighted_avg": weighted_average_logits,
    "weighted_max": most_confident,
}
WEIGHTED = ("weighted_avg", "weighted_max")


def confidence(answer) -> float:
    """exp of the mean log-probability of an answer's tokens; 0 for an empty answer."""
    if not answer.logprobs:
        return 0.0
    return math.exp(sum(answer.logprobs) / len(answer.logprobs))


def majority(predictions: Sequence[str]) -> int:
    """Which paraphrase answered what most of them did; ties to the earlier one.

    Answers are compared normalised; an empty one has no vote unless all are empty.
    """
    answers = [normalize_answer(prediction) for prediction in predictions]
    votes = Counter(answer for answer in answers if answer) or Counter(answers)
    most = max(votes.values())
    return next(i for i, answer in enumerate(answers) if votes[answer] == most)
