"""Words of which none says the same as another: born, died; first, last; north, south.

A paraphrase in which a question's word of such a family is gone, and another of the same family
has come, asks for something else: where someone was born is not where he died.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise

from self_ensemble.paraphrasing.words import words

# A family a paragraph, a meaning a line.
FAMILIES = """
born birth birthplace
die died dies death dead deceased
buried bury burial grave cemetery tomb
raised
married marry wife husband spouse wed wedding
study studied studies

mother mom mum
father dad

son sons
daughter daughters

brother brothers
sister sisters

first earliest debut
second
third
last latest final newest

oldest
youngest

largest biggest greatest
smallest

tallest highest
lowest shortest

most
least fewest

best
worst

north northern
south southern
east eastern
west western

when while during under
before
after

begin began begun begins start started starts
end ended ends finish finished

win won wins winner winning victory
lose lost loses loser losing defeat

buy bought
sell sold

language languages speak spoken speaks
currency money
religion faith
capital
flag
anthem
population
"""


# What may stand right behind what and which, in the same way.
ASKED_TYPES = """
country countries nation nations
city cities town towns
county counties
continent continents
year years
month months
"""
ASKS = ("what", "which")


@cache
def families() -> Mapping[str, tuple[int, int]]:
    """Word → its family and its meaning in it."""
    found: dict[str, tuple[int, int]] = {}
    for family, paragraph in enumerate(FAMILIES.strip().split("\n\n")):
        for meaning, line in enumerate(paragraph.splitlines()):
            found |= dict.fromkeys(line.split(), (family, meaning))
    return found


@cache
def asked_types() -> Mapping[str, int]:
    return {w: i for i, line in enumerate(ASKED_TYPES.split("\n")) for w in line.split()}


def contrast(paraphrase: str, question: str) -> tuple[str, str] | None:
    """(the paraphrase's word, the question's word that it stands for), or None."""
    said, asked = words(paraphrase), words(question)
    return _other_meaning(said, asked) or _other_type(said, asked)


def _other_meaning(said: Sequence[str], asked: Sequence[str]) -> tuple[str, str] | None:
    known = families()
    given = {known[word]: word for word in said if word in known}
    wanted = {known[word]: word for word in asked if word in known}
    for (family, meaning), lost in wanted.items():
        if (family, meaning) in given:
            continue
        for (other, another), word in given.items():
            if other == family and (other, another) not in wanted:
                return word, lost
    return None


def _other_type(said: Sequence[str], asked: Sequence[str]) -> tuple[str, str] | None:
    """`which city` for `which country`; None where the paraphrase has a word of both."""
    known = asked_types()
    types = [[b for a, b in pairwise(text) if a in ASKS and b in known] for text in (said, asked)]
    if not all(types):
        return None
    (given, *_), (wanted, *_) = types
    kept = {known[word] for word in said if word in known}
    return None if known[wanted] in kept else (given, wanted)
