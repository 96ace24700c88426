"""How far paraphrases lie apart, by hand."""

import statistics

import numpy as np
import pytest

from self_ensemble.evaluation.spread import consistency, spread_of

ALL = np.ones((4, 3), bool)
RIGHT = np.array([[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]], bool)


def test_worst_and_best_and_what_lies_between():
    found = spread_of(RIGHT, ALL)
    assert found["best"] == {"paraphrase": 0, "accuracy": 1.0}
    assert found["worst"] == {"paraphrase": 2, "accuracy": 0.25}
    assert found["spread"] == 0.75
    assert found["sd"] == pytest.approx(statistics.stdev([1.0, 0.5, 0.25]))
    assert found["complete"] == 4


def test_of_equal_ones_the_earlier_is_named():
    found = spread_of(np.array([[0, 1, 0, 1]], bool), np.ones((1, 4), bool))
    assert (found["worst"]["paraphrase"], found["best"]["paraphrase"]) == (0, 1)


def test_one_paraphrase_has_no_spread():
    found = spread_of(RIGHT[:, :1], ALL[:, :1])
    assert [found[key] for key in ("worst", "best", "spread", "sd")] == [None] * 4


def test_accuracies_of_other_questions_are_not_compared():
    """An easy question that lacks paraphrase 2 would make the others seem better."""
    present = np.array([[1, 1, 1], [1, 1, 1], [1, 1, 0]], bool)
    right = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0]], bool)
    found = spread_of(right, present)
    assert found["complete"] == 2
    assert found["spread"] == found["sd"] == 0


def test_the_consistency_rate():
    # Pairs that agree: 3 of 3, 1 of 3, 0 of 1; one answer has no pair.
    found = consistency([["a", "a", "a"], ["a", "b", "b"], ["a", "b"], ["a"]])
    assert found["pairs_agree"] == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert found["all_agree"] == pytest.approx(1 / 3)
    assert found["paired"] == 3
    assert consistency([["a"], ["b"]]) == {"pairs_agree": None, "all_agree": None, "paired": 0}


def test_the_consistency_rate_is_that_of_pairs_counted_one_by_one():
    rng = np.random.default_rng(0)
    said = [rng.integers(0, 3, rng.integers(2, 8)).tolist() for _ in range(100)]
    rates = []
    for answers in said:
        pairs = [(a, b) for i, a in enumerate(answers) for b in answers[i + 1 :]]
        rates.append(sum(a == b for a, b in pairs) / len(pairs))
    assert consistency(said)["pairs_agree"] == pytest.approx(statistics.mean(rates))
