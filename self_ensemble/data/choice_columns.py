"""Multiple choice in a row of a file: the column `choices`, and which of them are right.

    {"question": "Capital of Peru?", "choices": ["Cusco", "Lima"], "answers": ["Lima"]}
    {"question": "Capital of Peru?", "choices": ["Cusco", "Lima"], "answer_index": 1}

The right ones are named by their text, or counted from 0 by `answer_index`. Answers that are none
of the choices are kept, for generated answers may be compared with them; `records.require_choices`
refuses them where choices are scored.
"""

import json
from collections.abc import Sequence
from typing import Any

from self_ensemble.data.cells import (
    checked_single,
    checked_texts,
    is_empty,
    is_missing,
    looks_like_list,
    show,
    show_names,
)
from self_ensemble.system.errors import UserError

ANSWER_COLUMNS = ("answers", "answer")
CHOICES, ANSWER_INDEX = "choices", "answer_index"
HOW_COUNTED = "the column answer_index counts them from 0"


def choices_of(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """The choices of a row without space around them; none where it has no such cell.

    Raises:
        UserError: they are no list of texts; see also `records.check_choices`.
    """
    value = row.get(CHOICES)
    if is_missing(value):
        return ()
    if isinstance(value, dict):  # ARC, OpenBookQA, CommonsenseQA
        raise UserError(
            f"{where}: choices must be a list of texts, found an object with "
            f"{show_names(list(value))}: make its list of texts the column, and {HOW_COUNTED}"
        )
    return tuple(text.strip() for text in checked_texts(value, CHOICES, where))


def answers_of(row: dict[str, Any], choices: Sequence[str], where: str) -> tuple[str, ...]:
    """The texts that are right, as the choices have them where there are some; none where no cell
    says it.

    Raises:
        UserError: they are no texts, or no choices, or the row says two things.
    """
    texts = _answer_texts(row, choices, where)
    # The choices stand without space around them, and the right ones are to be among them.
    texts = tuple(text.strip() if text.strip() in choices else text for text in texts)
    counted = tuple(choices[place] for place in _answer_places(row, len(choices), where))
    if texts and counted and set(texts) != set(counted):
        raise UserError(
            f"{where}: answer_index says {show_names(counted)}, and the answers are "
            f"{show_names(texts)}; leave one of the two columns out"
        )
    return texts or counted


def _answer_texts(row: dict[str, Any], choices: Sequence[str], where: str) -> tuple[str, ...]:
    column = "answer" if is_empty(row.get("answers")) else "answers"
    value = row.get(column)
    if is_empty(value):
        return ()
    if isinstance(value, str) and not looks_like_list(value):
        return (checked_single(value, column, where),)
    if not isinstance(value, (str, list)):
        remedy = ""
        if isinstance(value, dict):  # SQuAD, TriviaQA
            remedy = ": make its list of texts the column"
        elif isinstance(value, bool):
            remedy = ": write what is to be said, such as yes or no"
        elif isinstance(value, int | float) and choices:
            remedy = f": a number that counts the choices, from 0, goes into {ANSWER_INDEX}"
        raise UserError(
            f"{where}: {column} must be a text or a list of texts, found {show(value)}{remedy}"
        )
    return checked_texts(value, column, where)


def _answer_places(row: dict[str, Any], count: int, where: str) -> tuple[int, ...]:
    value = row.get(ANSWER_INDEX)
    if is_empty(value):
        return ()
    if isinstance(value, str) and looks_like_list(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(
                f"{where}: answer_index looks like a list but is not JSON: {show(value)}"
            ) from None
    if not count:
        raise UserError(f"{where}: answer_index counts choices, and the row has no choices")
    values = value if isinstance(value, list) else [value]
    places = tuple(_place(each, count, where) for each in values)
    for at, place in enumerate(places):
        if place in places[:at]:
            raise UserError(f"{where}: answer_index names {place} twice")
    return places


def _place(value: Any, count: int, where: str) -> int:
    """A whole number, also as tables with gaps have it (2.0) and as a CSV has it ("2")."""
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or number % 1 != 0:
        raise UserError(
            f"{where}: answer_index is the number of the right choice, counted from 0, or a list "
            f"of such numbers; found {show(value)}"
        )
    if not 0 <= number < count:
        raise UserError(
            f"{where}: answer_index {show(value)} is none of 0 to {count - 1}, the choices counted "
            "from 0; where none is known to be right, leave it empty"
        )
    return int(number)


def places_meant(text: str, count: int) -> tuple[int | None, int | None, int | None]:
    """Which of so many choices a text could mean: as a number from 0, from 1, and as a letter.

    `places_meant("2", 4)` is (2, 1, None), `places_meant("b", 4)` is (None, None, 1).
    """
    text = text.strip().strip("().")
    places: list[int | None] = [None, None, None]
    if text.isascii() and text.isdigit() and len(text) <= 2:
        places[0], places[1] = int(text), int(text) - 1
    elif len(text) == 1 and text.isascii() and text.isalpha():
        places[2] = ord(text.upper()) - ord("A")
    zero, one, letter = (p if p is not None and 0 <= p < count else None for p in places)
    return zero, one, letter
