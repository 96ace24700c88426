"""Votes: every paraphrase answers by itself, and one of the answers is taken.

A vote is a function of a question's N predictions (texts) that returns the index of the one to
take. `register_vote` gives it a name. Nothing here imports torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from self_ensemble.data.answers import normalize_answer
from self_ensemble.data.numbers import is_number, read_number
from self_ensemble.methods.own_code import check_name
from self_ensemble.methods.registries import LOGIT_METHODS, VOTES, VoteRule

__all__ = ["VOTES", "VoteRule", "majority", "register_vote"]


def register_vote(name: str) -> Callable[[VoteRule], VoteRule]:
    """Register a function of N predictions as the method ``name``.

    Raises:
        ValueError: the name is taken, or can name no file.
    """
    check_name(name, LOGIT_METHODS.__contains__)
    return VOTES.register(name)


@register_vote("vote")
def majority(predictions: Sequence[str]) -> int:
    """Which paraphrase answered what most of them did; ties to the earlier one.

    Answers are compared normalised, those that are numbers by their value: normalised, "3.14" and
    "314" would be one answer, and "3.0" and "3" two. An empty one has no vote unless all are empty.
    """
    return _first_of_most([_number_or_text(prediction) for prediction in predictions])


def majority_of_lines(predictions: Sequence[str]) -> int:
    """As `majority`, but all are compared as texts.

    Of first lines it always was so, and a finished file that is extended keeps one rule.
    """
    return _first_of_most([normalize_answer(prediction) for prediction in predictions])


def _first_of_most(answers: Sequence[Fraction | str]) -> int:
    votes = Counter(answer for answer in answers if answer != "") or Counter(answers)
    most = max(votes.values())
    return next(i for i, answer in enumerate(answers) if votes[answer] == most)


def _number_or_text(prediction: str) -> Fraction | str:
    number = read_number(prediction) if is_number(prediction) else None
    return normalize_answer(prediction) if number is None else number
