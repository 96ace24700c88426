"""Questions as a caller of the library gives them: checked, copied, and told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set

from self_ensemble.data.records import compact_json, question_uuid
from self_ensemble.system.errors import UserError


def checked_questions(questions: Iterable[Sequence[str]]) -> list[tuple[str, ...]]:
    """The questions, copied.

    Raises:
        UserError: they are not texts in lists.
    """
    asked: list[tuple[str, ...]] = []
    if not isinstance(questions, Iterable):
        raise UserError(f"the questions are {questions!r}; give a list of paraphrases for each")
    for index, paraphrases in enumerate(questions):
        if isinstance(paraphrases, Mapping | Set):
            raise UserError(
                f"question {index} is a {type(paraphrases).__name__}; give the list of its "
                "paraphrases"
            )
        if isinstance(paraphrases, str):
            raise UserError(
                f"question {index} is a text; give the list of its paraphrases, if only of one"
            )
        if not isinstance(paraphrases, Iterable):
            raise UserError(
                f"question {index} is {paraphrases!r}; give the list of its paraphrases"
            )
        asked.append(tuple(paraphrases))
        if not asked[-1] or not all(map(is_text, asked[-1])):
            raise UserError(
                f"question {index} has no paraphrase, or one that is empty, no text, or holds half "
                "a character"
            )
    return asked


def is_text(value: object) -> bool:
    """Whether it is one that a tokenizer can take, and not empty: half a surrogate pair is not."""
    return (
        isinstance(value, str)
        and bool(value.strip())
        and not any("\ud800" <= character <= "\udfff" for character in value)
    )


def own_uuids(questions: Sequence[Sequence[str]]) -> list[str]:
    """What tells questions apart that come without a uuid; of equal ones which of them it is.

    So a question's draws do not depend on what is asked beside it.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    uuids = []
    for paraphrases in map(tuple, questions):
        uuids.append(question_uuid(compact_json([*paraphrases, seen[paraphrases]])))
        seen[paraphrases] += 1
    return uuids
