"""Intervals and tests of accuracies: one file, two in pairs, several at once.

All intervals are of 95%. What is resampled is questions, or the relations they belong to; random
draws have a fixed seed, so that the same files give the same figures.
"""

from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy and scipy come after parsing: --help stays quick
    import numpy as np

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
RESAMPLES = 10_000
SEED = 0


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """95% score interval of a proportion, right of n (Wilson 1927)."""
    assert 0 <= right <= n and n > 0, (right, n)
    fraction = right / n
    centre = fraction + Z**2 / (2 * n)
    margin = Z * (fraction * (1 - fraction) / n + Z**2 / (4 * n**2)) ** 0.5
    low, high = ((centre + side) / (1 + Z**2 / n) for side in (-margin, margin))
    return (0.0 if right == 0 else low, 1.0 if right == n else high)


def tango_interval(won: int, lost: int, n: int) -> tuple[float, float]:
    """95% score interval of the difference of two paired proportions, (won - lost) / n.

    It holds the differences that the score test does not refuse. At a difference of 0 that test is
    McNemar's without correction, so interval and p value tell one story, and the interval has a
    width where the files never differ. Tango 1998, "Equivalence test and confidence interval for
    the difference in proportions for the paired-sample design", Statistics in Medicine 17, 891-908.

    Args:
        won: pairs that only the first of the two got right.
        lost: pairs that only the second got right.
        n: all pairs.
    """
    from scipy.optimize import brentq

    assert won >= 0 and lost >= 0 and n >= max(1, won + lost), (won, lost, n)

    def excess(delta: float, side: int) -> float:
        # Zero where the observed difference lies Z standard deviations above (side +1) or below
        # (-1) delta. `loss` is the most likely probability of a loss, given delta.
        b = (2 * n - won + lost) * delta - won - lost
        c = -lost * delta * (1 - delta)
        loss = ((max(b * b - 8 * n * c, 0.0)) ** 0.5 - b) / (4 * n)
        variance = max(n * (2 * loss + delta * (1 - delta)), 0.0)
        return won - lost - n * delta - side * Z * variance**0.5

    observed = (won - lost) / n
    # Where the files never (or always) differ, the observed difference is a second root, of width
    # zero: a step away from it leaves only the limit.
    step = 1e-9
    low = -1.0 if lost == n else brentq(excess, -1.0, observed - step, args=(1,))
    high = 1.0 if won == n else brentq(excess, observed + step, 1.0, args=(-1,))
    return low, high


def mcnemar_p(won: int, lost: int) -> float:
    """Exact two-sided McNemar test: the pairs that differ fall either way like a fair coin."""
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p values for several tests at once, in the order given (Holm 1979, step-down Bonferroni).

    Those below 0.05 are the tests that can be believed together: the probability that any of them
    is a false alarm stays below 0.05.
    """
    adjusted, highest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def bootstrap_interval(
    values: "np.ndarray", *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """95% percentile interval of a mean, one value a question, resampling the questions.

    Answers to wordings of one question go together, so what is drawn is whole questions: 5
    paraphrases that always agree are worth one. Differences of two files are drawn as pairs
    (Efron and Tibshirani 1993, chapter 8).

    Args:
        values: [Q], such as the fraction of a question's paraphrases that were right, or the
            difference of two files on a question.
    """
    import numpy as np

    # A resample is told by how often it has each distinct value: a multinomial draw.
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(
        len(values), counts / len(values), size=resamples
    )  # [resamples, distinct]
    return _middle(draws @ distinct / len(values))


def cluster_bootstrap_interval(
    values: "np.ndarray",
    clusters: Sequence[str],
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float] | None:
    """95% percentile interval of a mean, resampling whole clusters: what holds for new relations.

    Questions of one relation ("capital of", "born in") share their templates and are easy or hard
    together, so that 2,000 questions of 41 relations are worth fewer than 2,000 of their own.

    Args:
        values: [Q]
        clusters: [Q], which cluster each belongs to.

    Returns:
        None where there is one cluster only, which tells nothing about others.
    """
    import numpy as np

    assert len(values) == len(clusters), (len(values), len(clusters))
    names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    if len(names) == 1:
        return None
    sums, sizes = np.bincount(member, weights=values), np.bincount(member)  # [clusters]
    draws = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )  # [resamples, clusters]
    return _middle((draws @ sums) / (draws @ sizes))


def _middle(means: "np.ndarray") -> tuple[float, float]:
    import numpy as np

    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
