"""What counts as an answer: the first line that was generated, and when two are the same."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_line(generation: str) -> str:
    """The prediction: the first line that holds anything, without space around it."""
    return (generation.strip().splitlines() or [""])[0].strip()


@lru_cache(maxsize=1 << 16)  # files share their answers, and matchers their texts
def normalize_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces: as SQuAD v1.1 evaluates.

    Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", the
    official evaluation script; the steps are taken in its order.
    """
    text = text.lower().translate(WITHOUT_PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", text).split())


def is_right(prediction: str, answers: Sequence[str]) -> bool:
    """Exact match: normalised, the prediction is one of the answers. Nothing is never right."""
    normalized = normalize_answer(prediction)
    return bool(normalized) and any(normalized == normalize_answer(answer) for answer in answers)


def first_token_is_right(prediction: str, answers: Sequence[str]) -> bool:
    """Normalised, the first word of the prediction is the first word of one of the answers."""
    first = normalize_answer(prediction).split()[:1]
    return bool(first) and any(first == normalize_answer(answer).split()[:1] for answer in answers)


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
