"""Whether a prediction is right: exact match, first word, numbers, overlap of words, lemmas."""

from collections import Counter
from collections.abc import Sequence

from self_ensemble.data.answers import normalize_answer
from self_ensemble.data.numbers import read_number


def is_right(prediction: str, answers: Sequence[str]) -> bool:
    """Exact match: normalised, the prediction is one of the answers. Nothing is never right."""
    normalized = normalize_answer(prediction)
    return bool(normalized) and any(normalized == normalize_answer(answer) for answer in answers)


def first_token_is_right(prediction: str, answers: Sequence[str]) -> bool:
    """Normalised, the first word of the prediction is the first word of one of the answers."""
    first = normalize_answer(prediction).split()[:1]
    return bool(first) and any(first == normalize_answer(answer).split()[:1] for answer in answers)


def number_is_right(prediction: str, answers: Sequence[str]) -> bool:
    """The last number of the prediction is that of one of the answers, see `numbers`.

    A prediction without a number is wrong, and an answer without one never makes it right.
    """
    number = read_number(prediction)
    return number is not None and any(number == read_number(answer) for answer in answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Overlap of normalised words with the nearest answer, 0 to 1, as SQuAD v1.1 evaluates."""
    return max(_overlap(normalize_answer(prediction), normalize_answer(a)) for a in answers)


def _overlap(prediction: str, answer: str) -> float:
    words, expected = prediction.split(), answer.split()
    common = (Counter(words) & Counter(expected)).total()
    # The harmonic mean of common / words and common / expected.
    return 2 * common / (len(words) + len(expected)) if common else 0.0


def contains_run(lemmas: Sequence[str], run: Sequence[str]) -> bool:
    """Whether `run` stands in `lemmas` without a gap. Nothing holds nothing, and is held nowhere.

    contains_run(["the", "new", "york", "time"], ["new", "york"]) is True.
    """
    lemmas, run = list(lemmas), list(run)
    starts = range(len(lemmas) - len(run) + 1) if run else ()
    return any(lemmas[i : i + len(run)] == run for i in starts)


def lemmas_match(lemmas: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[bool, bool]:
    """Whether the lemmas match one way, and two ways.

    One way: an answer's lemmas are a contiguous run of the prediction's. Two ways: or the
    prediction's are one of an answer's, so that "York" is right where "New York" is.
    """
    one_way = any(contains_run(lemmas, answer) for answer in answers)
    return one_way, one_way or any(contains_run(answer, lemmas) for answer in answers)
