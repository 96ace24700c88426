"""Whether a text has a word of another one, in the same or another form.

Mexico, Mexican    invented, inventions    fl, Florida    lotr, Lord of the Rings
Spider-Man, Spiderman    first, 1st    ii, 2
"""

import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

from self_ensemble.paraphrasing.words import COMMON_WORDS, POSSESSIVE, has_digit, words

# What may differ at the end of two words that name the same: Mexico, Mexican; Italy, Italians.
ENDING = re.compile(r"[aeosyin]?|[eo]s|ns|ish|ese|ic|e?an|ians?|ia|e?rs|ern")
SHARED_LETTERS = 4

# Endings of common words, the longest first.
ENDINGS = (
    *("ations", "ation", "ingly", "ments", "ings", "ment", "ions", "edly", "ies", "ing", "ion"),
    *("ed", "es", "er", "or", "ly", "al", "s", "e", "y"),
)
SHORTEST_STEM = 3

CARDINALS = "zero one two three four five six seven eight nine ten eleven twelve"
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth"
# Not those of one letter: `i` is a word.
ROMAN = {"ii": "2", "iii": "3", "iv": "4", "vi": "6", "vii": "7", "viii": "8", "ix": "9"}
NUMBERS = {
    **{word: str(number) for number, word in enumerate(CARDINALS.split())},
    **{word: str(number) for number, word in enumerate(ORDINALS.split(), 1)},
    **ROMAN,
    **{f"{number}th": str(number) for number in range(4, 31)},
    "1st": "1",
    "2nd": "2",
    "3rd": "3",
    "21st": "21",
    "22nd": "22",
    "23rd": "23",
}

LONGEST_INITIALS = 5
UNINITIALLED = frozenset(("of", "the", "and", "for", "in"))
# A stem, and forms of it that endings do not tell.
IRREGULAR_FORMS = """
    child children
    person people
    man men
    woman women
    write wrote written
    speak spoke spoken
    sing sang sung song
    win won winner
    fight fought
    make made
    lead led
    found founded
    die died death dead
    locat located location
    nation nations
    country countries
"""
IRREGULAR = {
    form: forms[0]
    for forms in map(str.split, IRREGULAR_FORMS.strip().splitlines())
    for form in forms[1:]
}


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """What the forms of a common word share: `invent` of invented and inventions."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    for ending in ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= SHORTEST_STEM:
            return word.removesuffix(ending)
    return word


def same_name(name: str, word: str) -> bool:
    """Mexico and Mexican, Italy and Italians; a number is itself only."""
    if name[:SHARED_LETTERS] != word[:SHARED_LETTERS] or has_digit(name + word):
        return False
    shared = next(
        (i for i, (a, b) in enumerate(zip(name, word, strict=False)) if a != b),
        min(len(name), len(word)),
    )
    cuts = range(SHARED_LETTERS, shared + 1)
    return any(ENDING.fullmatch(name[cut:]) and ENDING.fullmatch(word[cut:]) for cut in cuts)


def written_out(initials: str, text: Sequence[str]) -> tuple[str, ...]:
    """The run of words whose initials these are; also without `of` and `the`. () for none."""
    if not 2 <= len(initials) <= LONGEST_INITIALS or _is_a_word(initials):
        return ()
    for start in range(len(text)):
        for skipped in (frozenset[str](), UNINITIALLED):
            run: list[str] = []
            letters = list(initials)
            for word in text[start:]:
                if letters and word[0] == letters[0]:
                    del letters[0]
                elif not (letters and run and word in skipped):
                    break
                run.append(word)
            if not letters and len(run) > 1:
                return tuple(run)
    return ()


def _is_a_word(letters: str) -> bool:
    """`in` is no short form of Indiana, but `us` one of United States."""
    return letters in COMMON_WORDS and letters != "us"


def shortens(letters: str, word: str) -> bool:
    """Two letters of a longer word, its first and a later one: fl and Florida, az and Arizona."""
    return (
        len(letters) == 2
        and len(word) > 3
        and letters.isalpha()
        and not _is_a_word(letters)
        and word[0] == letters[0]
        and letters[1] in word[1:]
    )


class WordForms:
    """The words of a text, to be looked for in any form.

    Args:
        text: as it is written.
    """

    def __init__(self, text: str):
        self.words = words(POSSESSIVE.sub("", text))
        # What one of two texts writes together counts as well: Spider-Man, Spiderman.
        self.spelled = {*self.words, *words(text), *map("".join, pairwise(self.words))}

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(map(stem, self.words))

    @cached_property
    def numbers(self) -> frozenset[str]:
        return frozenset(NUMBERS.get(word, word) for word in self.words)

    def has_name(self, name: str) -> bool:
        """Whether the text has a name, another form of it, or an abbreviation or its long form."""
        return (
            name in self.spelled
            or NUMBERS.get(name, name) in self.numbers
            or any(same_name(name, word) for word in self.spelled)
            or any(shortens(name, word) or shortens(word, name) for word in self.words)
            or bool(written_out(name, self.words))
        )

    def has_word(self, word: str) -> bool:
        """As `has_name`, and any word of the same stem."""
        return self.has_name(word) or stem(word) in self.stems

    def shared_with(self, other: "WordForms") -> frozenset[str]:
        """Words of the other text that here are written together, or stand as initials."""
        joined = {
            w for pair in pairwise(other.words) if "".join(pair) in self.spelled for w in pair
        }
        short = (word for word in self.words if word not in other.spelled)
        return frozenset(joined.union(*(written_out(word, other.words) for word in short)))


@lru_cache(maxsize=1 << 12)
def word_forms(text: str) -> WordForms:
    """See `WordForms`; a question's are looked through for each of its paraphrases."""
    return WordForms(text)
