"""What type of answer a question asks for: a person, a place, a time, a number, a language.

Told by the interrogative and the noun that it asks with, wherever they stand: `who`, `by which
actor`, `born in what year`, `what is the name of the town where`. English only. Where the noun is
not known, or the words behind it may still belong to it (`which state flower`), nothing is told.
"""

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from self_ensemble.paraphrasing.question_form import (
    AUXILIARIES,
    IMPERATIVES,
    INTERROGATIVES,
    MAIN_CLAUSE,
    PREPOSITIONS,
)
from self_ensemble.paraphrasing.words import (
    ARTICLES,
    COMMON_WORDS,
    MASK,
    POSSESSIVE,
    word_set,
    words,
)


class Asked(NamedTuple):
    """A type as a report names it, what its answers may be, and the noun that told it."""

    name: str
    answers: frozenset[str]
    noun: str = ""


def _asked(name: str, answers: str) -> Asked:
    return Asked(name, word_set(answers))


# Two questions go together where an answer of the one may be one of the other: who won may be a
# person, a team or a country; where someone works, a town or a company.
WHO = _asked("a person", "person group nation name")
WHO_FOR = _asked("a person", "person group nation name venue")  # who he plays for
WHOSE = _asked("a person", "person group nation name spot seat venue")  # whose territory
WHERE = _asked("a place", "spot venue work language religion channel way event")
WHEN = _asked("a time", "time age")
WHY = _asked("a reason", "reason event")
HOW = _asked("a manner", "way reason venue work event name language currency")
HOW_LONG = _asked("a duration", "duration number")
HOW_MANY = _asked("a number", "number duration")
HOW_OLD = _asked("an age", "age number duration")
EVENT = _asked("an event", "event")
NAME = _asked("a name", "name")
PERSON = _asked("a person", "person group")
PLACE = _asked("a place", "spot seat")
NATION = _asked("a place", "nation spot seat")
GROUP = _asked("a group", "group venue nation")
MEMBER_OF_GROUPS = _asked("a group", "group nation")  # `which maker is it`: nobody is there
NUMBER = _asked("a number", "number")
TIME = _asked("a time", "time")

SIMPLE = {
    **dict.fromkeys(("who", "whom", "whos"), WHO),
    "whose": WHOSE,
    **dict.fromkeys(("where", "wheres"), WHERE),
    **dict.fromkeys(("when", "whens"), WHEN),
    **dict.fromkeys(("why", "whys"), WHY),
}
BEHIND_HOW = {
    **dict.fromkeys(("many", "much", "often", "tall", "high", "far", "deep", "heavy"), HOW_MANY),
    "long": HOW_LONG,
    "old": HOW_OLD,
    "come": WHY,
}
NOUNS = [
    (
        PERSON,
        """person man woman actor actors actress actresses artist artists singer singers songwriter
        musician musicians rapper composer writer writers author authors poet painter president
        presidents politician politicians king queen emperor leader leaders ruler governor inventor
        inventors scientist scientists explorer player players athlete athletes character
        characters coach director founder wife husband brother sister""",
    ),
    (NATION, "country countries nation nations state states city cities"),
    (
        PLACE,
        """place places location locations town towns village county counties region regions
        continent continents island islands birthplace""",
    ),
    (_asked("a capital", "seat"), "capital"),
    (
        GROUP,
        """team teams band bands company companies manufacturer organization organisation club
        school schools college colleges university universities""",
    ),
    (TIME, "year years date dates day days month months century decade time"),
    (_asked("an age", "age number"), "age"),
    (NUMBER, "number population rate price cost amount percentage distance"),
    (WHY, "reason reasons"),
    (NAME, "surname nickname"),
    (_asked("a sport", "sport"), "sport sports"),
    (_asked("a language", "language"), "language languages"),
    (_asked("a currency", "currency"), "currency currencies"),
    (_asked("a religion", "religion"), "religion religions"),
    (_asked("a time zone", "zone"), "timezone timezones"),
    (_asked("an instrument", "instrument"), "instrument instruments"),
    (_asked("a channel", "channel"), "channel channels"),
    (_asked("a work", "work"), "book books novel film films movie movies song songs album albums"),
]
# Nouns of other heads: `country music`, `time zone`; and those that everything may be called.
OTHER_HEADS = word_set("zone zones music name names thing things one ones kind type sort s")
VERBS = word_set("won led has made plays played sings sang wrote speaks speak borders hosts")
OWNER = 5  # words of `Martin Luther King's`
BEFORE_NOUN = 2  # adjectives and the like: `which famous American actor`
JOINED = ("and", "or")


@cache
def known_nouns() -> dict[str, Asked]:
    return {word: kind._replace(noun=word) for kind, text in NOUNS for word in text.split()}


def changed_answer_type(paraphrase: str, question: str) -> str:
    """`a place, not a time`, where no answer of the one question is of the other's type."""
    if MASK in paraphrase or MASK in question:
        return ""
    texts = [words(POSSESSIVE.sub(" s", text)) for text in (paraphrase, question)]
    said, asked = asked_for(paraphrase), asked_for(question)
    if said is None or asked is None or said.answers & asked.answers:
        return ""
    # `what is the capital` for `where is the capital`
    if said.noun in texts[1] or asked.noun in texts[0]:
        return ""
    return f"{said.name}, not {asked.name}"


def asked_for(text: str) -> Asked | None:
    """By the first interrogative, or the first behind a comma: `when x, who`; None: not told."""
    main = MAIN_CLAUSE.search(text)
    said = words(POSSESSIVE.sub(" s", text[main.start() :] if main else text))
    ordered = next((at for at, word in enumerate(said[:2]) if word in IMPERATIVES), None)
    at = next((at for at, word in enumerate(said) if word in INTERROGATIVES), None)
    if ordered is not None and (at is None or at > ordered):
        after = said[ordered + 1 :]
        after = after[1:] if after[:1] in (("me",), ("us",)) else after
        if not after or after[0] not in INTERROGATIVES:
            return _described(after)
    if at is None or _asks_twice(said):
        return None
    word, behind = said[at], said[at + 1 :]
    if word in SIMPLE:
        employer = SIMPLE[word] is WHO and "for" in (said[-1], *said[:at][-1:])
        return WHO_FOR if employer else SIMPLE[word]
    if word in ("how", "hows"):
        return _by_how(behind)
    if behind[:1] in (("happened",), ("happens",)):
        return EVENT
    if word == "whats" or (behind and behind[0] in ("is", "was", "are", "were", "s")):
        return _described(behind if word == "whats" else behind[1:])
    found = _head(behind)
    return _as_it_stands(*found, said[:at]) if found else None


def _asks_twice(said: Sequence[str]) -> bool:
    """`where and when`, `who is he and what did he do`."""
    return any(a in JOINED and b in INTERROGATIVES for a, b in pairwise(said))


def _by_how(behind: Sequence[str]) -> Asked | None:
    if not behind or behind[:2] == ("long", "ago"):
        return None
    if behind[0] in BEHIND_HOW:
        return BEHIND_HOW[behind[0]]
    return HOW if behind[0] in AUXILIARIES and behind[0] not in ("is", "are", "was") else None


def _described(said: Sequence[str]) -> Asked | None:
    """Of `the name of the town where`, `the capital of`, `his birthplace`, `tom s nickname`."""
    named = bool(said) and said[0] in ARTICLES and "name" in said[1:4]
    if named:
        at = said.index("name")
        if said[at - 1] in ("last", "first", "middle"):
            return NAME
        rest = said[at + 1 :]
        if rest[:1] != ("of",) or rest[1:2] not in {(a,) for a in ARTICLES}:
            return None
        said = rest[1:]
    if said and said[0] in ARTICLES:
        said = said[1:]
        if said[:1] in (("state",), ("time",), ("number",)) and said[1:2] == ("of",):
            return NUMBER if said[0] == "number" else None
    elif "s" in said[:OWNER]:
        said = said[said.index("s") + 1 :]
    else:
        return None
    # `what is the king known for` asks for no king.
    found = _head(said, verbs=named)
    return found[0] if found else None


def _head(said: Sequence[str], *, verbs: bool = True) -> tuple[Asked, Sequence[str]] | None:
    """The noun at the front and what stands behind it: with `verbs`, also a verb that is told."""
    known, closed = known_nouns(), AUXILIARIES | PREPOSITIONS | COMMON_WORDS
    front = said[: BEFORE_NOUN + 1]
    at = next((at for at, word in enumerate(front) if word in known), None)
    if at is None or any(word in closed | OTHER_HEADS for word in front[:at]):
        return None
    while at + 1 < len(said) and said[at + 1] in known:
        at += 1
    kind, behind = known[said[at]], said[at + 1 :]
    if behind and behind[0] in OTHER_HEADS:
        return _zone(said[at], behind)
    if not behind or behind[0] in closed:
        return kind, behind
    # Behind a person the verb stands, if not a name: `which actor portrays`; or `actor s`.
    verb = behind[0] in VERBS or behind[0].endswith("ed") or kind.answers == PERSON.answers
    return (kind, behind) if verbs and verb and behind[0] != "s" else None


def _zone(noun: str, behind: Sequence[str]) -> tuple[Asked, Sequence[str]] | None:
    is_zone = noun == "time" and behind[0] in ("zone", "zones")
    return (known_nouns()["timezone"]._replace(noun="zone"), behind[1:]) if is_zone else None


def _as_it_stands(kind: Asked, behind: Sequence[str], before: Sequence[str]) -> Asked:
    """`in which country` is a place alone; `which company is it` no place."""
    if kind.answers == NATION.answers and before[-1:] == ("in",):
        return kind._replace(answers=PLACE.answers)
    located = any(word in PREPOSITIONS or word.endswith(("ed", "ing")) for word in behind)
    if kind.answers == GROUP.answers and not before and behind[:1] in (("is",), ("was",)):
        return kind if located else kind._replace(answers=MEMBER_OF_GROUPS.answers)
    return kind
