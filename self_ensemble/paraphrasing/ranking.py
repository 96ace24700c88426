"""The order of a question's accepted paraphrases: likely ones first, each unlike those before it.

Maximal marginal relevance (Carbonell and Goldstein 1998): the next one is that whose score, less
its overlap with what was taken before, is highest. The question counts as taken, since a model
finds it likeliest behind its own words.
"""

from collections.abc import Sequence

from self_ensemble.paraphrasing.words import key

# What a full overlap costs, in the unit of `Judgement.explained`.
OVERLAP_COST = 0.5


def ranked(question: str, texts: Sequence[str], scores: Sequence[float]) -> list[int]:
    """Indices of the texts, the best first; ties go to the earlier one.

    scores: of each text, see `Judgement.score`.
    """
    taken, order = [question], []
    left = list(range(len(texts)))
    while left:
        # Negative indices break ties.
        best = max((scores[at] - OVERLAP_COST * _most(texts[at], taken), -at) for at in left)
        at = -best[1]
        left.remove(at)
        order.append(at)
        taken.append(texts[at])
    return order


def overlap(one: str, other: str) -> float:
    """The fraction of their words that two texts share (Jaccard index)."""
    a, b = set(key(one)), set(key(other))
    return len(a & b) / max(1, len(a | b))


def _most(text: str, taken: Sequence[str]) -> float:
    return max(overlap(text, each) for each in taken)
