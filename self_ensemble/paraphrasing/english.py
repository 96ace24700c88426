"""English words: which are no names, and how much one tells of what a text is about.

The list `english_words.txt.gz` holds 70,472 words by their frequency in lower case: line k those of
ranks 2^k to 2^(k+1) - 1. Those that stand there with a capital are more often written so, up to
4.5 times (King, Genesis); what is nearly always a name is not listed. It was made from the
table of word probabilities of spacy-lookups-data 1.0.5 (MIT, see LICENSE-english_words) by
 benchmark/english_words.py, and comes with this package, so that the filter is the same
everywhere.
"""

import gzip
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path

from self_ensemble.paraphrasing.words import COMMON_WORDS, has_digit

WORDS_FILE = Path(__file__).with_name("english_words.txt.gz")

# The list's words with these endings are words as well; what stands for the ending. Not `er` and
# `ly`, which names have: Walker, Billy.
INFLECTIONS = (("ies", "y"), ("ed", ""), ("ed", "e"), ("ing", ""), ("ing", "e"), ("ness", ""))
SHORTEST_STEM = 4
# Paris and Celtics are no plurals of common words; zoologists is.
SHORTEST_SINGULAR, SHORTEST_COMMON_SINGULAR = 7, 9
SHORTEST_PART = 5  # of a word made of two: statehouse, but not Greenland
LAST_ORDER = 16  # of the list's rarest words


@cache
def listed_words() -> Mapping[str, int]:
    """Word, as the list has it → the binary logarithm of its rank, rounded down."""
    with gzip.open(WORDS_FILE, "rt", encoding="utf-8") as file:
        return {word: order for order, line in enumerate(file) for word in line.split()}


@cache
def english_words() -> Mapping[str, int]:
    """As `listed_words`, all in lower case: 0 for the commonest word."""
    return {word.lower(): order for word, order in listed_words().items()}


@lru_cache(maxsize=1 << 16)
def is_common(word: str) -> bool:
    """Whether a word, as `words.words` spells it, is mostly written without a capital."""
    listed = listed_words()
    if word in COMMON_WORDS or word in listed:
        return True
    return _is_plural(word, listed, SHORTEST_COMMON_SINGULAR)


@lru_cache(maxsize=1 << 16)
def is_english(word: str) -> bool:
    """Whether a word is in the list, an inflection of one, or two written together.

    All that `is_common` holds, and more: what is both a word and a name, such as king or cowboys.
    """
    listed = english_words()
    if word in COMMON_WORDS or word in listed or _is_plural(word, listed, SHORTEST_SINGULAR):
        return True
    stems = (
        word.removesuffix(ending) + stem
        for ending, stem in INFLECTIONS
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM
    )
    cuts = range(SHORTEST_PART, len(word) - SHORTEST_PART + 1)
    return any(stem in listed for stem in stems) or any(
        word[:at] in listed and word[at:] in listed for at in cuts
    )


def _is_plural(word: str, listed: Mapping[str, int], shortest: int) -> bool:
    singular = word.removesuffix("s")
    return singular != word and len(singular) >= shortest and singular in listed


def weight(word: str) -> float:
    """How much a word counts: from 0 for the commonest to 1 for numbers and what is not listed.

    By Zipf's law the logarithm of a word's rank is, but for a constant, its information.
    """
    order = None if has_digit(word) else english_words().get(word)
    return 1.0 if order is None else order / LAST_ORDER
