"""Names and numbers: those of a question that a paraphrase lost, and those that it brought in."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

from self_ensemble.paraphrasing.english import is_common, is_english, weight
from self_ensemble.paraphrasing.question_form import FORM_WORDS
from self_ensemble.paraphrasing.same_words import word_forms
from self_ensemble.paraphrasing.words import (
    COMMON_WORDS,
    POSSESSIVE,
    Token,
    has_digit,
    tokens,
    word_set,
    words,
)

QUOTED = re.compile(r"\"([^\"\n]+)\"|“([^”\n]+)”|«([^»\n]+)»|„([^“”\n]+)[“”]")
# A name without them is the same.
TITLES = word_set("jr sr dr mr mrs ms sir st")
IN_ENGLISH = re.compile(r"\bin english\b", re.IGNORECASE)


@lru_cache(maxsize=1 << 12)
def names(text: str) -> tuple[str, ...]:
    """The words of a text that its paraphrases must keep, as `words` spells them.

    These are words with a digit, words in double quotes, and capitalised words inside a sentence;
    never `COMMON_WORDS`, titles and single letters. Where capitals tell nothing (the first word of
    a sentence, a text without any, a headline), a word is a name if it is none that is common in
    lower case, see `english`; where they tell, a quotation without any holds no name. Scripts
    without capitals have no names. The words `in English` say how to answer.
    """
    text = IN_ENGLISH.sub("", text)
    quotes = (match[match.lastindex or 0] for match in QUOTED.finditer(text))
    telling = _capitals_tell(tokens(text))
    quoted = {
        word
        for quote in quotes
        if not (telling and quote.islower())
        for word in words(POSSESSIVE.sub("", quote))
    }
    return tuple(
        dict.fromkeys(
            word
            for word, is_name in _words_with_names(text)
            if (is_name or word in quoted)
            and word not in COMMON_WORDS | TITLES
            and (len(word) > 1 or has_digit(word))
        )
    )


def _capitals_tell(found: Sequence[Token]) -> bool:
    """One capital inside a sentence is a name's; where every word has one, it is a headline."""
    inner = [token.text[0].isupper() for token in found if not token.opens]
    return any(inner) and not (len(inner) > 3 and all(inner))


def _words_with_names(text: str) -> Iterator[tuple[str, bool]]:
    found = tokens(text)
    telling = _capitals_tell(found)
    for token in found:
        for word in words(token.text):
            if word in COMMON_WORDS:
                yield word, False
            elif telling and not token.opens:
                yield word, has_digit(word) or token.text[0].isupper()
            else:
                yield word, has_digit(word) or (_has_case(word) and not is_common(word))


def _has_case(word: str) -> bool:
    """Of scripts without capitals there are no names to be told."""
    return word.lower() != word.upper()


def lost_names(paraphrase: str, question: str) -> tuple[str, ...]:
    """The names and numbers of the question that the paraphrase has in no form."""
    said, asked = word_forms(paraphrase), word_forms(question)
    kept = said.shared_with(asked)
    return tuple(name for name in names(question) if name not in kept and not said.has_name(name))


def added_names(paraphrase: str, question: str) -> tuple[str, ...]:
    """The numbers and the words of no English list that only the paraphrase has, in any form.

    Not those that stand beside a name of the question, which they make longer: the Celtics are the
    Boston Celtics.
    """
    said, asked = word_forms(paraphrase), word_forms(question)
    kept = asked.shared_with(said)
    new = {word for token in tokens(paraphrase) for word in words(token.text)}
    new = {w for w in new if has_digit(w) or (_has_case(w) and not is_english(w))}
    new = {word for word in new if word not in kept and not asked.has_name(word)}
    if not new:
        return ()
    named = {name for name in (*names(question), *names(paraphrase)) if name not in new}
    longer = set()
    for pair in pairwise(said.words):
        for word, beside in (pair, pair[::-1]):
            if beside in named and not has_digit(word) and asked.has_name(beside):
                longer.add(word)
    return tuple(word for word in dict.fromkeys(said.words) if word in new - longer)


def kept_weight(paraphrase: str, question: str) -> float:
    """Of the weight of the question's content words, the fraction that the paraphrase has.

    1 where it has no content words. See `english.weight`; names weigh 1.
    """
    said, asked = word_forms(paraphrase), word_forms(question)
    kept, total = said.shared_with(asked), 0.0
    found = 0.0
    named = {*names(question)}
    for word in dict.fromkeys(asked.words):
        if word in FORM_WORDS:
            continue
        counts = 1.0 if word in named else weight(word)
        total += counts
        if word in kept or said.has_word(word):
            found += counts
    return found / total if total else 1.0
