"""Intervals and tests against scipy, statsmodels, figures worked out by hand and plain loops."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from self_ensemble.evaluation.statistics import (
    CONFIDENCE,
    Z,
    bootstrap_interval,
    cluster_bootstrap_interval,
    holm,
    mcnemar_p,
    tango_interval,
    wilson_interval,
)


def test_wilson_is_that_of_scipy():
    rng = np.random.default_rng(0)
    sizes = [1, 2, 3, 10, *rng.integers(4, 5000, 40).tolist()]
    for n in sizes:
        for right in {0, n, *rng.integers(0, n + 1, 4).tolist()}:
            expected = stats.binomtest(right, n).proportion_ci(method="wilson")
            assert wilson_interval(right, n) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("won", "lost", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (0, 5, 2 / 32),
        (1, 9, 2 * (1 + 10) / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_by_hand(won, lost, expected):
    assert mcnemar_p(won, lost) == pytest.approx(expected)


def test_mcnemar_is_a_sum_of_binomial_terms():
    rng = np.random.default_rng(1)
    for won, lost in rng.integers(0, 60, (50, 2)).tolist():
        n = won + lost
        tail = sum(math.comb(n, k) for k in range(min(won, lost) + 1)) / 2**n
        assert mcnemar_p(won, lost) == pytest.approx(min(1.0, 2 * tail))
        assert mcnemar_p(won, lost) == mcnemar_p(lost, won)


def score_statistic(won, lost, n, delta):
    """Tango's test of `difference == delta`, its likelihood maximised by search, not by formula."""

    def surprise(loss):
        cells = (won, loss + delta), (lost, loss), (n - won - lost, 1 - 2 * loss - delta)
        return -sum(count * math.log(max(share, 1e-300)) for count, share in cells if count)

    bounds = max(0.0, -delta), (1 - delta) / 2
    loss = optimize.minimize_scalar(
        surprise, bounds=bounds, method="bounded", options={"xatol": 1e-12}
    ).x
    return (won - lost - n * delta) / math.sqrt(n * (2 * loss + delta - delta**2))


def test_tango_limits_are_where_the_score_test_begins_to_refuse():
    rng = np.random.default_rng(2)
    for n in [5, 16, 100, 2000, *rng.integers(3, 500, 20).tolist()]:
        won = int(rng.integers(0, n))
        lost = int(rng.integers(0, n - won))
        low, high = tango_interval(won, lost, n)
        assert score_statistic(won, lost, n, low) == pytest.approx(Z, abs=1e-3)
        assert score_statistic(won, lost, n, high) == pytest.approx(-Z, abs=1e-3)


def test_tango_properties():
    rng = np.random.default_rng(3)
    for _ in range(300):
        n = int(rng.integers(1, 300))
        won = int(rng.integers(0, n + 1))
        lost = int(rng.integers(0, n - won + 1))
        low, high = tango_interval(won, lost, n)
        assert -1 <= low <= (won - lost) / n <= high <= 1
        assert low < high
        assert tango_interval(lost, won, n) == pytest.approx((-high, -low), abs=1e-8)
        chi_squared = (won - lost) ** 2 / (won + lost) if won + lost else 0.0
        assert (low > 0 or high < 0) == (chi_squared > Z**2), (won, lost, n)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_tango_keeps_its_width_where_all_pairs_fall_one_way(n):
    width = Z**2 / (n + Z**2)  # of two files that never differ, solved on paper
    assert tango_interval(0, 0, n) == pytest.approx((-width, width))
    low, high = tango_interval(n, 0, n)
    assert high == 1
    assert low == pytest.approx((n - Z**2) / (n + Z**2))


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(4).choice([0.0, 0.2, 0.6, 1.0], 400, p=[0.4, 0.2, 0.1, 0.3])
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, batch=1000, random_state=1
    ).confidence_interval
    found = bootstrap_interval(values, resamples=20_000, seed=0)
    assert found == pytest.approx(tuple(expected), abs=0.003)
    assert found == bootstrap_interval(values[::-1], resamples=20_000, seed=0)


def test_a_paired_bootstrap_is_that_of_scipy():
    rng = np.random.default_rng(5)
    mine, theirs = (rng.random(300) < share for share in (0.6, 0.5))

    def difference(a, b, axis):
        return a.mean(axis=axis) - b.mean(axis=axis)

    expected = stats.bootstrap(
        (mine.astype(float), theirs.astype(float)),
        difference,
        paired=True,
        method="percentile",
        n_resamples=10_000,
        batch=1000,
        rng=1,
    ).confidence_interval
    found = bootstrap_interval(mine.astype(float) - theirs)
    assert found == pytest.approx(tuple(expected), abs=0.005)


def test_a_cluster_bootstrap_is_that_of_a_plain_loop():
    rng = np.random.default_rng(6)
    clusters = rng.choice([*"abcdefghijkl"], 200)
    lean = dict(zip("abcdefghijkl", rng.normal(size=12), strict=True))
    values = np.array([lean[c] for c in clusters]) + rng.normal(size=200)
    names = sorted(set(clusters))
    means = []
    for _ in range(5000):
        drawn = rng.choice(names, len(names))
        means.append(np.concatenate([values[clusters == name] for name in drawn]).mean())
    expected = np.quantile(means, [0.025, 0.975])
    found = cluster_bootstrap_interval(values, clusters)
    assert found == pytest.approx(expected, abs=0.06)
    assert found == cluster_bootstrap_interval(values, clusters)
    assert np.diff(found) > 1.5 * np.diff(bootstrap_interval(values))


def test_clusters_of_one_question_each_are_the_plain_bootstrap():
    values = np.random.default_rng(7).normal(size=300)
    found = cluster_bootstrap_interval(values, [str(i) for i in range(300)])
    assert found == pytest.approx(bootstrap_interval(values), abs=0.01)
    assert cluster_bootstrap_interval(values, ["one"] * 300) is None
    # However many questions are drawn with the clusters: a mean of 2 is 2.
    assert cluster_bootstrap_interval(np.full(300, 2.0), [*"ab", *"c" * 298]) == (2, 2)


def test_statsmodels_agrees():
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint

    rng = np.random.default_rng(8)
    for _ in range(100):
        n = int(rng.integers(1, 3000))
        right = int(rng.integers(0, n + 1))
        expected = proportion_confint(right, n, alpha=1 - CONFIDENCE, method="wilson")
        assert wilson_interval(right, n) == pytest.approx(expected, abs=1e-12)
        won, lost = rng.integers(0, 80, 2).tolist()
        expected = mcnemar([[9, won], [lost, 9]], exact=True).pvalue if won + lost else 1.0
        assert mcnemar_p(won, lost) == pytest.approx(expected)
    for size in (1, 2, 3, 11):  # statsmodels takes its time
        p_values = rng.random(size) ** 3
        p_values = np.append(p_values, p_values[0])  # a tie
        expected = multipletests(p_values, method="holm")[1]
        assert holm(p_values.tolist()) == pytest.approx(expected)


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_constants_are_the_usual_ones():
    assert pytest.approx(1.959964, abs=1e-6) == Z
    assert CONFIDENCE == 0.95
