"""How well the probabilities of choices say how often they are right.

    probabilities = softmax([-1.2, -0.4, -3.0])
    bins = equal_width_bins(confidences, right)
    expected_calibration_error(bins)

The probability of a choice is the softmax of its log-likelihood, under a norm for its length, over
the choices of its question: what the model would say if it had to take one of them. A question's
confidence is the probability of the choice that was taken.

Legend: Q answers (questions, or of `per_prompt` questions times paraphrases), C choices.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # numpy comes after parsing: --help stays quick
    import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Answers of like confidence.

    low, high: the limits of their confidence; where bins are of equal mass, the least and the most.
    count: how many there are; at least one.
    confidence, accuracy: their means.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def softmax(scores: Sequence[float]) -> "np.ndarray":
    """[C] probabilities. scores: [C] log-likelihoods, all finite."""
    import numpy as np

    values = np.exp(np.asarray(scores, dtype=float) - max(scores))
    return values / values.sum()


def equal_width_bins(confidences: "np.ndarray", right: "np.ndarray") -> list[Bin]:
    """Those of BINS bins of equal width that hold an answer.

    Bin i of M holds the confidences in ((i - 1) / M, i / M], as Guo et al. 2017, "On Calibration of
    Modern Neural Networks" (arXiv 1706.04599), section 2, and the first holds 0 too. So a
    confidence of exactly 0 or 1 lies in the first or the last bin (not so in some releases of
    torchmetrics: Lightning-AI/torchmetrics, issues 1646 and 3510).

    Args:
        confidences: [Q] from 0 to 1.
        right: [Q] whether the choice that was taken is right.
    """
    import numpy as np

    edges = np.linspace(0, 1, BINS + 1)
    member = np.searchsorted(edges[1:-1], confidences, side="left")  # [Q] 0 .. BINS - 1
    return [
        _bin(confidences[member == i], right[member == i], float(edges[i]), float(edges[i + 1]))
        for i in np.unique(member)
    ]


def equal_mass_bins(confidences: "np.ndarray", right: "np.ndarray") -> list[Bin]:
    """BINS bins of as many answers each, give or take one, by confidence; fewer of fewer answers.

    Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis for natural language
    processing models", section 3.2; Nixon et al. 2019, "Measuring Calibration in Deep Learning"
    (arXiv 1904.01685). The latter average over all classes too; the choices of unlike questions
    are no classes, so that here, as in equal widths, it is the chosen one's probability alone.

    Where equal confidences fall into two bins, each has its part of their common accuracy: the
    order of the rows changes nothing.

    Args:
        confidences: [Q] from 0 to 1.
        right: [Q] whether the choice that was taken is right.
    """
    import numpy as np

    distinct, member, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    accuracy = np.bincount(member, weights=right, minlength=len(distinct)) / counts
    ordered = np.sort(confidences)
    shared = np.repeat(accuracy, counts)  # [Q] in the order of `ordered`
    parts = np.array_split(np.arange(len(ordered)), min(BINS, len(ordered)))
    return [
        _bin(ordered[part], shared[part], float(ordered[part[0]]), float(ordered[part[-1]]))
        for part in parts
    ]


def _bin(confidences: "np.ndarray", right: "np.ndarray", low: float, high: float) -> Bin:
    return Bin(low, high, len(right), float(confidences.mean()), float(right.mean()))


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The mean distance of accuracy and confidence, each bin weighing what it holds: 0 to 1.

    Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    total = sum(each.count for each in bins)
    return sum(each.count * abs(each.accuracy - each.confidence) for each in bins) / total


def brier_score(probabilities: "np.ndarray", right: "np.ndarray") -> float:
    """Of one question, 0 to 2: the squared distance of its probabilities from what is so.

    Brier 1950, "Verification of forecasts expressed in terms of probability", over all classes. Of
    several right choices it is their sum that should be 1: they count as one class.

    Args:
        probabilities: [C]
        right: [C] bool; at least one.
    """
    wrong = probabilities[~right]
    return float((wrong**2).sum() + (1 - probabilities[right].sum()) ** 2)


def negative_log_likelihood(scores: Sequence[float], right: "np.ndarray") -> float:
    """Of one question, in nats: -log of the probability of its right choices together.

    From the scores and not from their softmax, where a small probability would be 0.

    Args:
        scores: [C] log-likelihoods, all finite.
        right: [C] bool; at least one.
    """
    import numpy as np

    values = np.asarray(scores, dtype=float)
    return float(np.logaddexp.reduce(values) - np.logaddexp.reduce(values[right]))
