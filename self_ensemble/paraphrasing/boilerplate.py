"""What chat models say around a paraphrase, or instead of one: announcements and refusals.

    Sure! Who leads peru?       Here is a paraphrase: who leads peru?       1. who leads peru?
    "who heads peru" can be rephrased as: who leads peru?                   I cannot answer that.

Pure functions over texts. What the question itself says counts for nothing: a song may be called
`Sorry`, and the club `1. FC Köln`.
"""

import re
from collections.abc import Sequence

from self_ensemble.evaluation.matchers import contains_run

# A shorter question stands in many a good paraphrase by chance.
SHORTEST_INSIDE = 4  # words without articles

# With a comma or the like, or the model itself, behind: `Sure Thing` is a song.
AGREEMENT = (
    r"\W*(?:sure(?: thing)?|certainly|of course|absolutely|definitely|okay|ok|alright|no problem"
    r"|understood|got it|gladly)(?:\s*(?:[!,.:;–—-]|$)|\s+(?:here|i|i'd|i'll|i’d|i’ll|let)\b)"
)
OFFER = (
    r"\W*(?:here|below|the following)(?:\s+(?:is|are)|['’]s)\s+(?:\w+\s+){0,4}?"
    r"(?:paraphras\w*|rephras\w*|reword\w*|rewrit\w*|restat\w*|variations?|versions?|alternatives?"
    r"|(?:same |original |following )?(?:question|sentence) (?:in|with|put|re))\b"
)
NUMBER = r"\s*(?:\d{1,3}[.)]|[-*•–])\s"
# A label somewhere in the line: what is named is a wording, and a colon comes after it.
LABEL = (
    r"\b(?:paraphras(?:e[sd]?|ing)|rephras(?:e[sd]?|ing)|reword(?:s|ed|ing)?|rewritten|restated"
    r"|other words|another way|alternatively|(?:could|can|might) (?:also )?(?:ask|say|write))\b"
    r"[^:.?!\n]{0,60}:"
)
OPENINGS = tuple(re.compile(p, re.IGNORECASE) for p in (AGREEMENT, OFFER, NUMBER))
LABELLED = re.compile(LABEL, re.IGNORECASE)

# In words as the quality filter has them: I'm and can't are `im` and `cant`.
REFUSAL = re.compile(
    r"(?:(?:im|i am) )?(?:so |very )?sorry\b(?: but| i\b| im\b)?"
    r"|(?:i|we) (?:can ?not|cant|could not|couldnt|will not|wont|am unable|am not able)\b"
    r"|(?:im|i am) (?:unable|not able|not sure|just an ai|an ai|a language model)\b"
    r"|i (?:do not|dont) (?:know|have|understand)\b"
    r"|as an? (?:ai|language model|assistant)\b|i apologi[sz]e\b|my apologies\b|unfortunately i\b"
)


def announces(text: str, question: str) -> bool:
    """Whether the text opens as an answer to whoever asked for it, or labels what it holds."""
    asked = question.casefold()
    openings = (pattern.match(text) for pattern in OPENINGS)
    if any(found and found[0].lstrip().casefold() not in asked for found in openings):
        return True
    return LABELLED.search(text) is not None and LABELLED.search(question) is None


def quotes_question(said: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether the question stands inside a longer text. Both as `words.key` gives them."""
    return len(said) > len(asked) >= SHORTEST_INSIDE and contains_run(said, asked)


def refuses(said: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether the text opens with an apology or with what its writer cannot do.

    Args:
        said, asked: the text and the question, as `words.words` gives them.
    """
    found = REFUSAL.match(" ".join(said))
    return found is not None and not contains_run(asked, tuple(found[0].split()))
