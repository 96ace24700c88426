"""Calibration against figures worked out by hand, loops written plainly, and reported bugs."""

import math

import numpy as np
import pytest
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax

from self_ensemble.evaluation.calibration import (
    brier_score,
    equal_mass_bins,
    equal_width_bins,
    expected_calibration_error,
    negative_log_likelihood,
    softmax,
)


def ece_by_loops(confidences, right):
    """Guo et al. 2017, equation 3, written out."""
    total = 0.0
    for m in range(1, 16):
        low, high = (m - 1) / 15, m / 15
        inside = [i for i, c in enumerate(confidences) if low < c <= high or (m == 1 and c == 0)]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(confidences[i] for i in inside) / len(inside)
            total += len(inside) / len(confidences) * abs(accuracy - confidence)
    return total


def adaptive_by_loops(confidences, right):
    """Equal mass, the first bins one larger; for confidences that are all distinct."""
    pairs = sorted(zip(confidences, right, strict=True))
    count = min(15, len(pairs))
    sizes = [len(pairs) // count + (i < len(pairs) % count) for i in range(count)]
    total, start = 0.0, 0
    for size in sizes:
        part = pairs[start : start + size]
        total += abs(sum(r for _, r in part) - sum(c for c, _ in part)) / len(pairs)
        start += size
    return total


def ece(confidences, right, bins=equal_width_bins):
    return expected_calibration_error(bins(np.array(confidences), np.array(right, dtype=bool)))


def test_by_hand():
    # Bins (0.6, 0.667]: two of 0.65, one right; (0.933, 1]: 0.95 and 1.0, both right.
    confidences, right = [0.65, 0.65, 0.95, 1.0], [True, False, True, True]
    assert ece(confidences, right) == pytest.approx(0.5 * 0.15 + 0.5 * 0.025)
    bins = equal_width_bins(np.array(confidences), np.array(right))
    assert [(b.low, b.high, b.count) for b in bins] == [
        (pytest.approx(9 / 15), pytest.approx(10 / 15), 2),
        (pytest.approx(14 / 15), 1.0, 2),
    ]
    assert [(b.confidence, b.accuracy) for b in bins] == [(0.65, 0.5), (0.975, 1.0)]
    # Four bins of one each: the two equal ones share their accuracy of a half.
    expected = (0.15 + 0.15 + 0.05 + 0) / 4
    assert ece(confidences, right, equal_mass_bins) == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2, 14, 15, 16, 44, 500])
def test_against_loops(size):
    rng = np.random.default_rng(size)
    confidences = rng.random(size) ** 0.3
    right = rng.random(size) < confidences**2
    assert ece(confidences, right) == pytest.approx(ece_by_loops(confidences, right))
    adaptive = ece(confidences, right, equal_mass_bins)
    assert adaptive == pytest.approx(adaptive_by_loops(confidences, right))


def test_confidences_of_0_and_1_and_on_the_borders_are_in_one_bin_each():
    """0 was out of range (Lightning-AI/torchmetrics 1646), 1 in a bin of its own (3510)."""
    borders = np.array([i / 15 for i in range(16)])
    bins = equal_width_bins(borders, np.ones(16, bool))
    assert [b.count for b in bins] == [2] + [1] * 14  # ((i - 1) / 15, i / 15]; the first has 0 too
    # Both in the last bin: a bin for 1.0 alone would give (0.05 + 1) / 2.
    assert ece([0.95, 1.0], [True, False]) == pytest.approx(abs(0.5 - 0.975))
    assert ece([1.0] * 4 + [0.0], [False, False, True, True, True]) == pytest.approx(
        4 / 5 * 0.5 + 1 / 5
    )


def test_a_confident_and_wrong_model_is_not_calibrated():
    """Its error was that of the labels (Lightning-AI/torchmetrics 1105)."""
    assert ece([0.99] * 3, [False] * 3) == pytest.approx(0.99)
    assert ece([0.99] * 3, [False] * 3, equal_mass_bins) == pytest.approx(0.99)


def test_fewer_answers_than_bins_leave_no_bin_empty():
    """Empty bins gave NaN (torch-uncertainty 300)."""
    for size in (1, 3, 14):
        bins = equal_mass_bins(np.linspace(0.3, 0.9, size), np.ones(size, bool))
        assert [b.count for b in bins] == [1] * size


def test_the_order_of_the_rows_changes_nothing():
    """Of equal confidences, too, some of which are right."""
    rng = np.random.default_rng(3)
    confidences = rng.choice([0.25, 0.5, 0.9], 100)
    right = rng.random(100) < 0.5
    order = rng.permutation(100)
    for bins in (equal_width_bins, equal_mass_bins):
        assert ece(confidences[order], right[order], bins) == pytest.approx(
            ece(confidences, right, bins), abs=1e-12
        )
    assert [b.count for b in equal_mass_bins(confidences, right)] == [7] * 10 + [6] * 5


def test_probabilities_and_their_scores_by_hand():
    scores = [math.log(0.2), math.log(0.3), math.log(0.5)]
    right = np.array([False, True, False])
    assert softmax(scores) == pytest.approx([0.2, 0.3, 0.5])
    assert brier_score(softmax(scores), right) == pytest.approx(0.2**2 + 0.7**2 + 0.5**2)
    assert negative_log_likelihood(scores, right) == pytest.approx(-math.log(0.3))
    # Scores of which nothing is known but their differences: a sum a token is no probability.
    assert softmax([s - 7 for s in scores]) == pytest.approx([0.2, 0.3, 0.5])


def test_several_right_choices_are_one_class():
    scores = [math.log(0.2), math.log(0.3), math.log(0.5)]
    right = np.array([True, True, False])
    assert brier_score(softmax(scores), right) == pytest.approx(0.5**2 + 0.5**2)
    assert negative_log_likelihood(scores, right) == pytest.approx(-math.log(0.5))
    everything = np.array([True, True, True])
    assert brier_score(softmax(scores), everything) == pytest.approx(0)
    assert negative_log_likelihood(scores, everything) == pytest.approx(0)


def test_the_bounds_of_brier():
    sure = softmax([0.0, -1000.0])
    assert brier_score(sure, np.array([True, False])) == 0
    assert brier_score(sure, np.array([False, True])) == 2


def test_likelihoods_of_long_choices_stay_finite():
    """Their probabilities are 0 in any float."""
    scores = [-4000.0, -1000.0, -5000.0]
    for i, expected in ((0, 3000.0), (1, 0.0), (2, 4000.0)):
        right = np.arange(3) == i
        assert negative_log_likelihood(scores, right) == pytest.approx(expected)
    assert softmax(scores).tolist() == [0, 1, 0]


def test_against_scipy():
    rng = np.random.default_rng(4)
    for _ in range(50):
        scores = rng.normal(0, 30, rng.integers(2, 9))
        right = np.arange(len(scores)) == rng.integers(len(scores))
        assert softmax(scores) == pytest.approx(scipy_softmax(scores))
        expected = -log_softmax(scores)[right][0]
        assert negative_log_likelihood(scores, right) == pytest.approx(expected)
        assert brier_score(softmax(scores), right) == pytest.approx(
            ((scipy_softmax(scores) - right) ** 2).sum()
        )
