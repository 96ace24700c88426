"""What the words of a text are, without case, accents and punctuation."""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

MASK = "[MASK]"
ARTICLES = frozenset(("a", "an", "the"))


def word_set(text: str) -> frozenset[str]:
    """The words between the spaces of a text."""
    return frozenset(text.split())


# Words that open a sentence or bind one together, and are no names however they are written.
COMMON_WORDS = word_set("""
    a about after all also am an and any are arent as at be been before being between both
    but by can cant could couldnt d did didnt do does doesnt dont during each either every
    few find for from give had hadnt has hasnt have havent he her here him his how hows i
    id if im in into is isnt it its itself ive let list ll m many may me might more most
    much must my name near neither no not now of off often on once one only or other our
    out over per please re s say several shall she should since so some such t tell than
    that the their them then there these they theyre this those through to under until up
    upon us ve was wasnt we were werent what whats when whens where wheres whether which
    while who whom whos whose why will with within without wont would wouldnt you your
    youre
""")

# Scripts that are written without spaces: every character counts as a word.
UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
GAP_ARTICLE = re.compile(r"\b(an?|the)\s+(\[MASK\])", re.IGNORECASE)
# A word as it is written: U.S., O'Neill's.
WRITTEN = re.compile(r"\w(?:[\w'’.]*\w)?")
# Within a word these are no borders: O'Neill, d’Ivoire.
APOSTROPHES = re.compile(r"(?<=\w)['’‘ʼ`´](?=\w)")
POSSESSIVE = re.compile(r"(?<=\w)(?:['’‘ʼ`´]s\b|(?<=s)['’‘ʼ`´](?!\w))", re.IGNORECASE)


@lru_cache(maxsize=1 << 16)
def words(text: str) -> tuple[str, ...]:
    """The words of a text without case, accents, punctuation and width.

    words("The  “Côte d’Ivoire”, 2.") is ("the", "cote", "divoire", "2").
    """
    text = unicodedata.normalize("NFKC", APOSTROPHES.sub("", text)).casefold()
    letters = (c for c in unicodedata.normalize("NFD", text) if not "\u0300" <= c <= "\u036f")
    text = unicodedata.normalize("NFC", "".join(map(_as_in_words, letters)))
    return tuple(UNSPACED.sub(r" \1 ", text).split())


def _as_in_words(letter: str) -> str:
    """Punctuation, controls and currencies are borders. Other symbols stay: C++ is not C."""
    category = unicodedata.category(letter)
    if category == "Cf":  # soft hyphens, joiners and the like show nothing
        return ""
    return " " if category[0] in "PZC" or category == "Sc" else letter


def key(text: str) -> tuple[str, ...]:
    """What two copies have in common: their words without articles.

    In front of a gap an article stays: `a [MASK]` and `an [MASK]` are not filled alike.
    """
    return tuple(word for word in words(GAP_ARTICLE.sub(r"\1mask", text)) if word not in ARTICLES)


def has_digit(word: str) -> bool:
    return any(map(str.isdigit, word))


@dataclass(frozen=True)
class Token:
    """A run of letters and digits; whether it opens a sentence, and follows a space alone."""

    text: str
    opens: bool
    adjoins: bool


def tokens(text: str) -> list[Token]:
    """The words of a text as they are written; `[MASK]` is a border, and `'s` left out."""
    text = POSSESSIVE.sub("", text.replace(MASK, ";"))
    found, end = [], None
    for match in WRITTEN.finditer(text):
        between = "" if end is None else text[end : match.start()]
        opens = end is None or re.search(r"[.?!:]\s", between) is not None
        found.append(Token(match[0], opens, between == " "))
        end = match.end()
    return [token for token in found if words(token.text)]
