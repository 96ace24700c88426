"""Words of which none says the same as another: born, died; first, last; north, south.

A paraphrase in which a question's word of such a family is gone, and another of the same family
has come, asks for something else: where someone was born is not where he died.
"""

from collections.abc import Mapping
from functools import cache

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


@cache
def families() -> Mapping[str, tuple[int, int]]:
    """Word → its family and its meaning in it."""
    found: dict[str, tuple[int, int]] = {}
    for family, paragraph in enumerate(FAMILIES.strip().split("\n\n")):
        for meaning, line in enumerate(paragraph.splitlines()):
            found |= dict.fromkeys(line.split(), (family, meaning))
    return found


def contrast(paraphrase: str, question: str) -> tuple[str, str] | None:
    """(the paraphrase's word, the question's word that it stands for), or None."""
    known = families()
    said = {known[word]: word for word in words(paraphrase) if word in known}
    asked = {known[word]: word for word in words(question) if word in known}
    for (family, meaning), lost in asked.items():
        if (family, meaning) in said:
            continue
        for (other, another), word in said.items():
            if other == family and (other, another) not in asked:
                return word, lost
    return None
