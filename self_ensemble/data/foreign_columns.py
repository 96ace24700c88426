"""Columns as files of other tools name them: an error says what to rename, nothing is guessed.

Such a file could be read wrongly without a word: its questions asked without their choices, the
number of a choice taken for the text that is right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from self_ensemble.data.cells import show, show_names
from self_ensemble.data.choice_columns import ANSWER_COLUMNS, ANSWER_INDEX, CHOICES, places_meant
from self_ensemble.system.errors import UserError

# What the same is called here. A column that lacks is first told of by its own error.
QUESTIONS = ("question_stem", "query", "ctx", "sentence", "goal", "problem", "prompt", "inputs")
TEXT_ANSWERS = (
    *("correct_answers", "correct_answer", "best_answer", "possible_answers", "expected_answer"),
    *("targets", "target"),
)
COUNTED_ANSWERS = ("label", "labels", "answerKey", "answer_key", "answer_idx", "gold", "cop")
LISTS_OF_CHOICES = ("endings", "options", "mc1_targets", "multiple_choice_targets")
APART = (  # a column a choice
    ("A", "B", "C", "D", "E"),
    ("opa", "opb", "opc", "opd", "ope"),
    ("option1", "option2", "option3", "option4"),
    ("answerA", "answerB", "answerC"),
    ("sol1", "sol2"),
    ("ending0", "ending1", "ending2", "ending3"),
)
TRUTH_VALUES = ("true", "false")
MOST = 26  # choices that letters can count
RIGHT_COLUMNS = (*ANSWER_COLUMNS, ANSWER_INDEX)


def renaming(columns: Sequence[str]) -> str:
    """What to rename, as the end of a sentence; empty where no column is known."""
    there = set(columns)
    told = []
    if "question" not in there:
        told += [f"{name} to question" for name in QUESTIONS if name in there][:1]
    if CHOICES not in there:
        told += [f"{name} to choices (a list)" for name in LISTS_OF_CHOICES if name in there][:1]
        apart = choices_apart(columns)
        if apart:
            told.append(f"{', '.join(apart)} to one list, choices")
    if not there & set(RIGHT_COLUMNS):
        told += [f"{name} to answers" for name in TEXT_ANSWERS if name in there][:1]
        counted = [name for name in COUNTED_ANSWERS if name in there][:1]
        told += [f"{name} to answer_index (numbers, counted from 0)" for name in counted]
    return f"; rename {', '.join(told)}" if told else ""


def _named_by_flag(column: str) -> str:
    return f" (--answer_column {column} reads it as it is)" if column in TEXT_ANSWERS else ""


def choices_apart(columns: Sequence[str]) -> list[str]:
    """The columns that hold a choice each, where there are two or more."""
    for names in APART:
        found = [name for name in names if name in columns]
        if len(found) > 1:
            return found
    return []


def check_right_columns(source: Path | str, columns: Sequence[str]) -> None:
    """Raises UserError where the columns do not say what is right, and one of them seems to.

    No column says it, but one of another name; or `answer_index` does, and no column has what it
    counts.
    """
    if ANSWER_INDEX in columns and CHOICES not in columns:
        raise UserError(
            f"{source} has a column answer_index, and no column choices{renaming(columns)}"
        )
    if set(columns) & set(RIGHT_COLUMNS):
        return
    seeming = [name for name in (*TEXT_ANSWERS, *COUNTED_ANSWERS) if name in columns]
    if seeming:
        raise UserError(
            f"{source} has no column answers{renaming(columns)}, or leave {seeming[0]} out to ask "
            f"without answers{_named_by_flag(seeming[0])}"
        )


@dataclass(frozen=True, slots=True)
class GivenAnswers:
    """The answers of a row, and what tells whether they are texts or numbers of choices.

    wordings: all that the row asks.
    is_bare: the cell holds one text, and no list.
    """

    where: str
    wordings: tuple[str, ...]
    choices: tuple[str, ...]
    answers: tuple[str, ...]
    is_bare: bool

    @property
    def are_shown(self) -> bool:
        """Whether the question shows each letter, number or word: `A) Lima B) Cusco`."""
        wording = "\n".join(self.wordings)
        return all(
            # A letter as it is written: every other question has an `a`.
            re.search(rf"(?<!\w){re.escape(a)}(?!\w)", wording, re.I if len(a) > 1 else 0)
            for a in self.answers
        )

    def may_count(self, count: int) -> bool:
        """Whether each answer could be the number or the letter of one of so many choices."""
        meant = (places_meant(answer, count) for answer in self.answers)
        return bool(self.answers) and all(set(places) != {None} for places in meant)


def check_answers_are_texts(columns: Sequence[str], rows: Sequence[GivenAnswers]) -> None:
    """Raises UserError where what is taken for the right texts may be numbers of choices.

    * In a row they are none of its choices and could count them.
    * In every row they are among the choices and could count them, and in one that means another.
    * In every row they could count choices, which another tool's column seems to hold.
    * In every row they are True or False, as tables write truth values.

    Nothing is said where the questions show the letters, numbers or words: then these are the
    answers.
    """
    for row in rows:
        among = set(row.answers) & set(row.choices)
        if row.choices and not among and row.may_count(len(row.choices)) and not row.are_shown:
            raise UserError(
                f"{row.where}: the answer {show(row.answers[0])} is none of the choices and seems "
                "to count them: the column answer_index does, from 0"
            )
    if not rows or not all(row.is_bare for row in rows):
        return
    if CHOICES in columns:
        _check_read_one_way([row for row in rows if row.choices])
        return
    if all(row.answers[0].lower() in TRUTH_VALUES and not row.are_shown for row in rows):
        raise UserError(
            f"{rows[0].where}: the answer {show(rows[0].answers[0])} seems to be a truth value: "
            f'write what is to be said, such as yes or no, or answers ["{rows[0].answers[0]}"]'
        )
    unread = choices_apart(columns) or [name for name in LISTS_OF_CHOICES if name in columns][:1]
    if unread and all(row.may_count(MOST) for row in rows) and not all(r.are_shown for r in rows):
        raise UserError(
            f"{rows[0].where}: the answer {show(rows[0].answers[0])} seems to count the choices in "
            f"{show_names(unread)}, which are not read{renaming(columns)}, and put the answers' "
            "numbers, counted from 0, into answer_index"
        )


def _check_read_one_way(rows: Sequence[GivenAnswers]) -> None:
    answers = [row.answers[0] for row in rows]
    if not all(answer in row.choices for answer, row in zip(answers, rows, strict=True)):
        return
    meant = [places_meant(a, len(row.choices)) for a, row in zip(answers, rows, strict=True)]
    for reading in zip(*meant, strict=True):
        if None in reading:
            continue
        for row, answer, place in zip(rows, answers, reading, strict=True):
            if place is not None and row.choices[place] != answer:
                at = row.choices.index(answer)
                raise UserError(
                    f"{row.where}: the answer {show(answer)} is choices[{at}], and could count "
                    f"choices[{place}]: write answer_index, from 0, or the text in a list"
                )
