"""What form a text has: a question that asks who, when or where; one of yes or no; a statement.

English only. A text with `[MASK]` is a sentence with a gap, whose form is not looked at.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from self_ensemble.paraphrasing.same_words import stem
from self_ensemble.paraphrasing.words import COMMON_WORDS, MASK, word_set, words

INTERROGATIVES = word_set("""
    who whom whose whos what whats which when whens where wheres why whys how hows
""")
IMPERATIVES = word_set("""
    name list tell give say describe identify state explain find specify mention show
""")
AUXILIARIES = word_set("""
    is are was were do does did has have had can could will would should may might am shall
    isnt arent wasnt werent dont doesnt didnt hasnt havent hadnt cant couldnt wont wouldnt
""")
PREPOSITIONS = word_set("""
    in on at by for from of to with during under after before about into through and so
""")
NEGATIONS = word_set("""
    not never no none without cannot nor neither nobody nothing nowhere
""")
NEGATED = frozenset(word for word in COMMON_WORDS if word.endswith("nt") and word != "want")
# `none other than` denies nothing.
NO_NEGATION = re.compile(r"\b(?:none other|not only|without (?:exception|doubt|a doubt))\b", re.I)
# Behind a clause in front: `when the war began, who ruled`.
MAIN_CLAUSE = re.compile(
    r",\s+(?:and\s+)?(?:(?:in|on|at|by|for|from|of|to|with)\s+)?"
    r"(?:what|which|who|whom|whose|when|where|why|how)\b",
    re.IGNORECASE,
)
# Words of a question's form: a paraphrase need not keep them.
FORM_WORDS = (
    COMMON_WORDS
    | INTERROGATIVES
    | IMPERATIVES
    | AUXILIARIES
    | PREPOSITIONS
    | word_set("called kind type sort names please")
)


def form(text: str) -> str:
    """`a gap`, `a question`, `yes or no` or `a statement`."""
    if MASK in text:
        return "a gap"
    said = words(text)
    if not said:
        return "a statement"
    if any(word in IMPERATIVES for word in said[:2]):
        return "a question"
    begins = _interrogative_at(said)
    asks = any(word in INTERROGATIVES for word in said)
    if said[0] in AUXILIARIES and not begins:
        # `can you tell me who it was` and `is there one, and what is it` ask all the same.
        wish = any(word in IMPERATIVES or word == "know" for word in said)
        polite = said[1] == "you" and (asks or wish) if len(said) > 1 else False
        return "a question" if polite or MAIN_CLAUSE.search(text) else "yes or no"
    if asks and (begins or said[-1] in INTERROGATIVES or text.rstrip().endswith(("?", "？"))):
        return "a question"
    return "a statement"


def _interrogative_at(said: Sequence[str]) -> bool:
    """Whether the text begins with an interrogative, also behind a preposition: `by whom`."""
    return said[0] in INTERROGATIVES or (
        len(said) > 1 and said[0] in PREPOSITIONS and said[1] in INTERROGATIVES
    )


def lost_form(paraphrase: str, question: str) -> str:
    """What the paraphrase is, where the question asks and it does not; else nothing."""
    said, asked = form(paraphrase), form(question)
    if asked != "a question" or said in ("a gap", "a question"):
        return ""
    return said


def changed_negation(paraphrase: str, question: str) -> str:
    """The first negation that only one of the two has; nothing where both have or lack one."""
    said, asked = (words(NO_NEGATION.sub("", text)) for text in (paraphrase, question))
    negations = [[w for w in text if w in NEGATIONS or w in NEGATED] for text in (said, asked)]
    if bool(negations[0]) == bool(negations[1]):
        return ""
    return (negations[0] or negations[1])[0]


def swapped_roles(paraphrase: str, question: str) -> str:
    """The verb whose subject one of the two asks for, and whose object the other.

    `who killed kennedy` asks for the subject of killed, `who did kennedy kill` for its object.
    """
    subject, object_ = _subject_verb(words(question)), _object_verbs(words(paraphrase))
    if subject and stem(subject) in map(stem, object_):
        return subject
    subject, object_ = _subject_verb(words(paraphrase)), _object_verbs(words(question))
    return subject if subject and stem(subject) in map(stem, object_) else ""


def _subject_verb(said: Sequence[str]) -> str:
    """`killed` of `who killed ...`."""
    if len(said) > 2 and said[0] == "who" and said[1] not in AUXILIARIES | COMMON_WORDS:
        return said[1]
    return ""


def _object_verbs(said: Sequence[str]) -> Sequence[str]:
    """What may be the verb of `who did ... kill ...`."""
    for at, (word, behind) in enumerate(pairwise(said)):
        if word in ("who", "whom") and behind in ("did", "does", "do"):
            return () if said[at + 2 : at + 3] == ("not",) else said[at + 3 :]
    return ()
