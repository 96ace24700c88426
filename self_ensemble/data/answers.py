"""Answers as texts: the first line that was generated, and when two texts say the same."""

import re
import string
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
