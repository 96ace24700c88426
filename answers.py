"""What counts as an answer: the first line that was generated, and when two are the same."""

import re
import string
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def first_line(generation: str) -> str:
    """The prediction: the first line that holds anything, without space around it."""
    return (generation.strip().splitlines() or [""])[0].strip()


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
